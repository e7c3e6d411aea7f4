"""The limit of one core: the best rate of matrix products in each precision, over all installed runtimes.

The products are a BERT layer's: `length` rows times its weights, which the runtime has packed in its own order.
The fastest of all runtimes and shapes is the limit; a variant's distance to it is what could still be gained.
"""

import importlib.util
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from qbert.machine import one_core
from qbert.terminal import silent
from qbert.variants import eager, onnxruntime, openvino

if TYPE_CHECKING:
    from qbert.checkpoint import Checkpoint

SHAPES = ((128, 768, 3072), (384, 768, 3072), (384, 3072, 768))
"""Rows, inputs and outputs: BERT-base's feed-forward layers at two lengths."""
SECONDS = 0.06  # per product; the fastest third is free of a rising clock and of most neighbours' bursts
PRECISIONS = ("fp32", "bf16", "int8")

RUNTIMES = {
    ("torch",): eager.products,
    ("onnx", "onnxruntime"): onnxruntime.products,
    ("openvino",): openvino.products,
}
"""The probes, by the packages that they need."""


@cache
def rates() -> dict[str, tuple[float, str]]:
    """Measure the best rate of each precision on one core; return operations per second, and the runtime.

    A multiplication and its addition are two operations. The measurement takes a few seconds.
    """
    best: dict[str, tuple[float, str]] = {}
    with silent(), one_core():
        for packages, probes in RUNTIMES.items():
            for shape in SHAPES if all(map(importlib.util.find_spec, packages)) else ():
                for precision, runtime, product in probes(*shape):
                    rate = 2 * np.prod(shape) / _seconds(product)
                    best[precision] = max(best.get(precision, (0.0, "")), (float(rate), runtime))
    return {precision: best[precision] for precision in PRECISIONS if precision in best}


def _seconds(product: Callable[[], Any]) -> float:
    """Return the seconds of one call: the slowest of the fastest third."""
    calls: list[float] = []
    product()
    while sum(calls) < SECONDS:
        start = time.perf_counter()
        product()
        calls.append(time.perf_counter() - start)
    return float(np.quantile(calls, 1 / 3))


@cache
def operations(checkpoint: "Checkpoint", length: int) -> float:
    """Return the operations of all matrix products for one encoding of `length` tokens; nan if not known."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    tokens = torch.ones(1, length, dtype=torch.int64, device="meta")
    try:
        with silent(), FlopCounterMode(display=False) as counter, torch.no_grad():
            checkpoint.skeleton(input_ids=tokens)
    except (RuntimeError, NotImplementedError):  # some architectures read the tokens, which have no values here
        return float("nan")
    return float(counter.get_total_flops())


def floor_seconds(checkpoint: "Checkpoint", length: int, precision: str) -> float:
    """Return the seconds that the matrix products alone take at the best rate of `precision`; nan without a rate."""
    rate, _ = rates().get(precision.partition("-")[0], (float("nan"), ""))
    return operations(checkpoint, length) / rate
