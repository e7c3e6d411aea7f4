"""The limit of one core: the least time for a cell's products, by the best rates and the bandwidth measured beside it.

A rate is the best of any kernel: loops of dot products that stay in registers, and the products that the runtimes and
`int8-native` make of the model's own shapes. The bandwidth is that of reading as many bytes as the model's weights
have, again and again. No variant can be faster, and its distance to the limit is what could still be gained.
"""

import contextlib
import copy
import importlib.util
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from qbert.system.errors import CannotRunError
from qbert.system.machine import one_core
from qbert.system.terminal import silent
from qbert.variants import eager, onnxruntime, openvino, trimmed
from qbert.variants.base import Products
from qbert.variants.native import rates as native

if TYPE_CHECKING:
    from qbert.inputs.checkpoint import Checkpoint

Shapes = tuple[tuple[int, int], ...]
"""Inputs and outputs of each product."""

DEFINITION = 2
"""Of the limit, as saved runs name it. The first took oneDNN's products of BERT-base's shapes for every cell, counted
what trimming leaves out, put attention at the rate of the other products, and knew no bandwidth."""
PRECISIONS = {"fp32": 4, "bf16": 2, "int8": 1}
"""The bytes of a number in each."""
NAMES = {"float32": "fp32", "bfloat16": "bf16", "int8": "int8"}
"""Precisions by their names in a classifier's evidence."""
REGISTERS = "in registers"

RUNTIMES: dict[tuple[str, ...], Callable[[int, int], Products]] = {
    (): native.products,
    ("torch",): eager.products,
    ("onnx", "onnxruntime"): onnxruntime.products,
    ("openvino",): openvino.products,
}
"""What yields the kernels to measure, by the packages that it needs."""
CALLS, SECONDS = 2, 0.0005  # of each kernel, whichever takes longer: a second for BERT-base at 384 tokens
LONG_S = 0.1
"""A first call that takes longer is not repeated where it has less than a quarter of the best rate: it is no kernel of
this processor's, or emulated."""
PASSES = 4  # over the weights
REGISTERS_S = 0.0005  # of one call of a loop in registers


@dataclass(frozen=True)
class Work:
    """What one encoding needs, whichever variant computes it."""

    products: float
    """Operations of the products with weights; a multiplication and its addition are two."""
    attention: float
    """Operations of the products in attention."""
    weights: int
    """Numbers in the weights."""
    shapes: Shapes
    """The products that are made of every token, each once."""


@dataclass(frozen=True)
class Core:
    """What one core did at best with the products of a model at a number of tokens."""

    rates: Mapping[str, Mapping[str, float]]
    """Operations per second, by precision and kernel."""
    bandwidths: Mapping[str, float]
    """Bytes per second of reading the weights, by their precision."""

    def rate(self, precision: str) -> float:
        """Return the best rate of any kernel; nan where there is none."""
        return max(self.rates.get(precision, {}).values(), default=math.nan)

    @property
    def best_rate(self) -> float:
        """The best rate of any precision."""
        return max(map(self.rate, self.rates), default=math.nan)

    def crossing(self, precision: str) -> float:
        """Return the tokens below which reading the weights takes longer than the products with them."""
        return self.rate(precision) * PRECISIONS[precision] / self.bandwidths[precision] / 2


@dataclass(frozen=True)
class Floor:
    """The least seconds for one encoding."""

    own_s: float
    """With attention at the rate of the precision in which the variant computes it."""
    best_s: float
    """With attention at the best rate of any precision."""


BERT_BASE = (((768, 768), (768, 3072), (3072, 768)), 12 * (4 * 768 * 768 + 2 * 768 * 3072))
"""Shapes and numbers of the weights."""


@cache
def work(checkpoint: "Checkpoint", length: int) -> Work | None:
    """Return what one encoding of `length` tokens needs; None if not known.

    Where the head reads the first token alone, the last layer needs only the keys and values of the others.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = copy.deepcopy(checkpoint.skeleton)
    body = f"{model.base_model_prefix}."
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    shapes = {(int(m.in_features), int(m.out_features)) for name, m in linear.items() if name.startswith(body)}
    if not shapes:
        return None
    with contextlib.suppress(CannotRunError):  # an architecture that nothing here trims
        model = trimmed.cut(checkpoint, model)
    tokens = torch.ones(1, length, dtype=torch.int64, device="meta")
    try:
        with silent(), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=tokens)
    except (RuntimeError, NotImplementedError):  # some architectures read the tokens, which have no values here
        return None
    counts = counter.get_flop_counts()["Global"]
    attention = sum(count for operation, count in counts.items() if _is_attention(str(operation)))
    return Work(
        products=float(counter.get_total_flops() - attention),
        attention=float(attention),
        weights=sum(module.weight.numel() for module in linear.values()),
        shapes=tuple(sorted(shapes)),
    )


def _is_attention(operation: str) -> bool:
    """Whether both factors of torch's `operation` depend on the text, unlike a product with a weight."""
    return "bmm" in operation or "attention" in operation


@cache
def core(shapes: Shapes, weights: int, tokens: int) -> Core:
    """Measure what one core does at best: products of `tokens` rows of these `shapes`, reading that many `weights`."""
    rates: dict[str, dict[str, float]] = {precision: {} for precision in PRECISIONS}
    loops, built = native.register_loops(), kernels(shapes)
    with silent(), one_core():
        for precision, loop in loops.items():
            rates[precision][REGISTERS] = _register_rate(loop)
        for precision, kernel, (inputs, outputs), product in built:
            best = max(rates[precision].values(), default=0.0)
            rate = product_rate(2 * tokens * inputs * outputs, product(tokens), best)
            rates[precision][kernel] = max(rates[precision].get(kernel, 0.0), rate)
        return Core({name: known for name, known in rates.items() if known}, _bandwidths(weights))


@lru_cache(maxsize=1)
def kernels(shapes: Shapes) -> list[tuple[str, str, tuple[int, int], Callable[[int], Callable[[], Any]]]]:
    """Return all kernels, built, each with its precision, library and shape."""
    with silent():
        return [
            (precision, kernel, shape, product)
            for packages, products in RUNTIMES.items()
            if all(map(importlib.util.find_spec, packages))
            for shape in shapes
            for precision, kernel, product in products(*shape)
        ]


def product_rate(operations: int, call: Callable[[], Any], best: float) -> float:
    """Return the operations per second of the fastest `call`; of the first alone where that is hopeless."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    hopeless = first > LONG_S and operations / first < best / 4
    return operations / (first if hopeless else seconds_of(call))


def _register_rate(loop: Callable[[int], int]) -> float:
    """Return the best rate of `loop`, which returns the operations of that many repetitions."""
    repeats, seconds = 1, 0.0
    while seconds < REGISTERS_S:
        repeats *= 2
        start = time.perf_counter()
        operations = loop(repeats)
        seconds = time.perf_counter() - start
    return operations / seconds_of(partial(loop, repeats))


def _bandwidths(weights: int) -> dict[str, float]:
    """Return the bytes per second at which `weights` numbers are read in each precision."""
    read = native.reader() or np.max
    memory = np.ones(max(PRECISIONS.values()) * weights, dtype=np.uint8)  # zeros may all be one page
    return {
        name: size * weights / seconds_of(partial(read, memory[: size * weights]), PASSES)
        for name, size in PRECISIONS.items()
    }


def seconds_of(call: Callable[[], Any], least: int = CALLS) -> float:
    """Return the seconds of the fastest call: what else runs only slows one."""
    calls: list[float] = []
    call()
    while len(calls) < least or sum(calls) < SECONDS:
        start = time.perf_counter()
        call()
        calls.append(time.perf_counter() - start)
    return min(calls)


def floor(work: Work, core: Core, precision: str, attention: str = "") -> Floor:
    """Return the least seconds of `work` for weights in `precision`; nan without a rate.

    `attention` is the precision of attention as a classifier's evidence has it; where it is not known, the best rate
    counts.
    """
    precision = precision.partition("-")[0]
    if precision not in core.rates:
        return Floor(math.nan, math.nan)
    weights_s = PRECISIONS[precision] * work.weights / core.bandwidths[precision]
    products_s = work.products / core.rate(precision)
    own_rate = core.rate(NAMES.get(attention, ""))
    own, best = (
        max(weights_s, products_s + work.attention / rate)
        for rate in (core.best_rate if math.isnan(own_rate) else own_rate, core.best_rate)
    )
    return Floor(own, best)
