"""What one core can do at best: the rate of matrix products in each precision, by any installed runtime.

The products are a BERT layer's, `length` rows by its weights, kept in the order that the runtime packs them in.
The fastest of all runtimes and shapes is the limit; how far a variant stays below it tells what is left to win.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from qbert.latency import one_core
from qbert.terminal import silent
from qbert.variants import eager, onnxruntime, openvino

if TYPE_CHECKING:
    from qbert.checkpoint import Checkpoint

SHAPES = ((128, 768, 3072), (384, 768, 3072), (384, 3072, 768))
"""Rows, inputs and outputs: BERT-base's feed-forward layers at two lengths."""
SECONDS = 0.06  # a product; ends of a clock's rise and of a neighbour's burst fall out with the fastest third
PRECISIONS = ("fp32", "bf16", "int8")

Probe = Iterator[tuple[str, str, Callable[[], Any]]]
"""Precision, library, and one product."""


def _pytorch(rows: int, inputs: int, outputs: int) -> Probe:
    """Products as nn.Linear calls them, and as TorchInductor does: oneDNN with weights packed beforehand."""
    import torch

    eager.one_thread()
    x, weight = torch.rand(rows, inputs) - 0.5, torch.rand(outputs, inputs) - 0.5
    onednn = torch.ops.mkldnn
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if precision == "fp32" or not eager.lacks_bf16():
            typed = x.to(dtype), weight.to(dtype)
            yield precision, "PyTorch", partial(torch.nn.functional.linear, *typed)
            if torch.backends.mkldnn.is_available():
                packed = onednn._reorder_linear_weight(typed[1], rows)  # noqa: SLF001  what TorchInductor calls
                yield precision, "oneDNN", partial(onednn._linear_pointwise, typed[0], packed, None, "none", [], "")  # noqa: SLF001  likewise
    steps = torch.randint(-127, 128, (inputs, outputs), dtype=torch.int8)
    yield "int8", "oneDNN", partial(torch._int_mm, torch.randint(-127, 128, (rows, inputs), dtype=torch.int8), steps)  # noqa: SLF001  what torchao calls


def _onnxruntime(rows: int, inputs: int, outputs: int) -> Probe:
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)

    def session(operation: str, weight: Any, kinds: tuple[int, int]) -> Any:  # noqa: ANN401
        graph = helper.make_graph(
            [helper.make_node(operation, ["x", "w"], ["y"])],
            "product",
            [helper.make_tensor_value_info("x", kinds[0], [rows, inputs])],
            [helper.make_tensor_value_info("y", kinds[1], [rows, outputs])],
            [numpy_helper.from_array(weight, "w")],
        )
        opset = helper.make_opsetid("", onnxruntime.OPSET)
        return onnxruntime.session(helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString())

    x = generator.random((rows, inputs), dtype=np.float32)
    floats = session("MatMul", generator.random((inputs, outputs), dtype=np.float32), (TensorProto.FLOAT,) * 2)
    yield "fp32", "ONNX Runtime", partial(floats.run, None, {"x": x})
    steps = generator.integers(-127, 128, (inputs, outputs), dtype=np.int8)
    integers = session("MatMulInteger", steps, (TensorProto.UINT8, TensorProto.INT32))
    bytes_ = generator.integers(0, 256, (rows, inputs), dtype=np.uint8)
    yield "int8", "ONNX Runtime", partial(integers.run, None, {"x": bytes_})


def _openvino(rows: int, inputs: int, outputs: int) -> Probe:
    ov = openvino.module()
    from openvino import opset13

    generator = np.random.default_rng(0)
    x = opset13.parameter([rows, inputs], np.float32)
    weight = opset13.constant(generator.random((outputs, inputs), dtype=np.float32))
    model = ov.Model([opset13.matmul(x, weight, transpose_a=False, transpose_b=True)], [x])
    data = generator.random((rows, inputs), dtype=np.float32)
    for precision, hint in (("fp32", "f32"), ("bf16", "bf16")):
        if precision == "fp32" or not openvino.lacks_bf16():
            request = openvino.compile_model(model, hint).create_infer_request()
            yield precision, "OpenVINO", partial(request.infer, {0: data}, share_inputs=True)


RUNTIMES = {("torch",): _pytorch, ("onnx", "onnxruntime"): _onnxruntime, ("openvino",): _openvino}
"""The probes, and the packages that they need."""


@cache
def rates() -> dict[str, tuple[float, str]]:
    """Measure the best rate of each precision on one core: operations a second, and whose it is.

    A multiplication and its addition are two operations. It takes a few seconds.
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
    """Return the seconds of one call, the fastest third's slowest."""
    calls: list[float] = []
    product()
    while sum(calls) < SECONDS:
        start = time.perf_counter()
        product()
        calls.append(time.perf_counter() - start)
    return float(np.quantile(calls, 1 / 3))


@cache
def operations(checkpoint: "Checkpoint", length: int) -> float:
    """Return the operations of all matrix products of one encoding of `length` tokens; nan where they are not known."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    tokens = torch.ones(1, length, dtype=torch.int64, device="meta")
    try:
        with silent(), FlopCounterMode(display=False) as counter, torch.no_grad():
            checkpoint.skeleton(input_ids=tokens)
    except (RuntimeError, NotImplementedError):  # some architectures look at the tokens, which have no values here
        return float("nan")
    return float(counter.get_total_flops())


def floor_seconds(checkpoint: "Checkpoint", length: int, precision: str) -> float:
    """Return the seconds that the matrix products alone take at the best rate of `precision`; nan without a rate."""
    rate, _ = rates().get(precision.partition("-")[0], (float("nan"), ""))
    return operations(checkpoint, length) / rate
