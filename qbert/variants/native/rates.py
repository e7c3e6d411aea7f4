"""What the library can do at best: dot products that stay in registers, its product on hot data, reading memory."""

import ctypes
import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from qbert.system.errors import InputError
from qbert.variants.base import Products
from qbert.variants.native import compiler

PRECISIONS = ("fp32", "bf16", "int8")
"""By their numbers in C++."""


@cache
def _library() -> ctypes.CDLL | None:
    if compiler.unsupported():
        return None
    try:
        return compiler.load_library()
    except InputError:  # the compiler fails: the variants say so
        return None


def register_loops() -> dict[str, Callable[[int], int]]:
    """Return for each precision that has an instruction what repeats dot products and returns their operations."""
    if not (library := _library()):
        return {}
    loops = {precision: partial(library.qbert_register_loop, number) for number, precision in enumerate(PRECISIONS)}
    return {precision: repeated for precision, repeated in loops.items() if repeated(1)}


def reader() -> Callable[[npt.NDArray[np.uint8]], Any] | None:
    """Return what reads an array once, with prefetching; None where there is no library."""
    if not (library := _library()):
        return None
    return lambda array: library.qbert_read_bytes(array.ctypes.data, array.nbytes)


def products(inputs: int, outputs: int) -> Products:
    """Yield int8-native's product with a weight; its rows and its weight are where the last call left them."""
    if library := _library():
        yield "int8", "int8-native", partial(_Product, library, inputs=inputs, outputs=outputs)


class _Product:
    """One product of fixed sizes; a call runs it."""

    def __init__(self, library: ctypes.CDLL, rows: int, inputs: int, outputs: int) -> None:
        handle = library.qbert_product_new(rows, inputs, outputs)
        if not handle:
            raise MemoryError
        weakref.finalize(self, library.qbert_product_delete, handle)
        self._run = partial(library.qbert_product_run, handle)

    def __call__(self) -> None:
        self._run()
