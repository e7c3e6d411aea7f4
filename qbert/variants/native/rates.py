"""What the library can do at best: dot products that stay in registers, its product on hot data, reading memory."""

import ctypes
import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from qbert.errors import InputError
from qbert.variants.base import Products
from qbert.variants.native import compiler

PRECISIONS = ("fp32", "bf16", "int8")
"""By their numbers in C++."""

FUNCTIONS = {
    "qbert_register_loop": (ctypes.c_int64, (ctypes.c_int, ctypes.c_int64)),
    "qbert_read_bytes": (ctypes.c_uint64, (ctypes.c_void_p, ctypes.c_int64)),
    "qbert_product_new": (ctypes.c_void_p, (ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)),
    "qbert_product_run": (None, (ctypes.c_void_p,)),
    "qbert_product_delete": (None, (ctypes.c_void_p,)),
}
"""The types of each function's result and arguments."""


@cache
def _functions() -> dict[str, Any]:
    """Return those of FUNCTIONS that the library has; empty where it cannot be compiled here."""
    if compiler.unsupported():
        return {}
    try:
        library = compiler.load_library()
    except InputError:  # the compiler fails: the variants say so
        return {}
    known = {name: getattr(library, name) for name in FUNCTIONS if hasattr(library, name)}
    for name, function in known.items():
        function.restype, function.argtypes = FUNCTIONS[name]
    return known


def register_loops() -> dict[str, Callable[[int], int]]:
    """Return for each precision that has an instruction what repeats dot products and returns their operations."""
    if not (loop := _functions().get("qbert_register_loop")):
        return {}
    loops = {precision: partial(loop, number) for number, precision in enumerate(PRECISIONS)}
    return {precision: repeated for precision, repeated in loops.items() if repeated(1)}


def reader() -> Callable[[npt.NDArray[np.uint8]], Any] | None:
    """Return what reads an array once, with prefetching; None where the library lacks it."""
    read = _functions().get("qbert_read_bytes")
    return (lambda array: read(array.ctypes.data, array.nbytes)) if read else None


def products(inputs: int, outputs: int) -> Products:
    """Yield int8-native's product with a weight; its rows and its weight are where the last call left them."""
    functions = _functions()
    if "qbert_product_new" in functions:
        yield "int8", "int8-native", partial(_Product, functions, inputs=inputs, outputs=outputs)


class _Product:
    """One product of fixed sizes; a call runs it."""

    def __init__(self, functions: dict[str, Any], rows: int, inputs: int, outputs: int) -> None:
        handle = functions["qbert_product_new"](rows, inputs, outputs)
        if not handle:
            raise MemoryError
        weakref.finalize(self, functions["qbert_product_delete"], handle)
        self._run = partial(functions["qbert_product_run"], handle)

    def __call__(self) -> None:
        self._run()
