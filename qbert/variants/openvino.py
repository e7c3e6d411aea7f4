"""OpenVINO: fp32, bf16, and int8 by NNCF's post-training quantization, calibrated on training documents."""

import collections
import functools
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qbert.inputs.tokenizer import Encoding
from qbert.system import machine
from qbert.system.errors import InputError, reason
from qbert.variants import eager, held, trimmed
from qbert.variants.base import Classifier, Products

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qbert.inputs.checkpoint import Checkpoint

GRAPH = "openvino_model.xml"
"""The name that optimum-intel uses."""
FORMER_GRAPH = "model.xml"
"""Its name in artefacts of earlier versions."""
BINDING = "HWLOC_THISSYSTEM"
"""The environment variable that says whether the library hwloc may bind threads to processors."""
_FIRST_USE = threading.Lock()
PRODUCTS = {"FullyConnected", "MatMul", "ScaledDotProductAttention"}
ALPHAS = (0.95, 0.7)
"""SmoothQuant's alphas to try: NNCF's default, and one that suits other models (MiniLM on SST-2: half the flips)."""
ALPHA = ["qbert", "alpha"]
"""Where a quantized graph says which of them it has."""
KEPT = "kept.json"
"""Names the products that `qbert rescue` kept in float, and says in which precision."""
PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_NOT_INSTALLED: Any = None  # as an entry of sys.modules
sys.modules.setdefault("openvino_telemetry", _NOT_INSTALLED)  # OpenVINO and NNCF, when imported, run without it


def export(checkpoint: "Checkpoint", folder: Path) -> None:
    """Write the graph of `checkpoint` in fp32."""
    save(convert(checkpoint, checkpoint.load()), folder)


def export_trimmed(checkpoint: "Checkpoint", folder: Path, *, max_length: int) -> None:
    """Write the trimmed graph of `checkpoint` in fp32, for `max_length` tokens."""
    save(convert(checkpoint, trimmed.trim(checkpoint)), folder, max_length)


def export_int8(checkpoint: "Checkpoint", folder: Path, *, calibration: Sequence[Encoding]) -> None:
    """Write the quantized graph of `checkpoint`."""
    save(_quantize(checkpoint, convert(checkpoint, checkpoint.load()), calibration), folder)


def export_int8_trimmed(
    checkpoint: "Checkpoint", folder: Path, *, calibration: Sequence[Encoding], max_length: int
) -> None:
    """Write the trimmed and quantized graph of `checkpoint` for `max_length` tokens."""
    model = _quantize(checkpoint, convert(checkpoint, trimmed.trim(checkpoint)), calibration)
    save(model, folder, max_length)


def save(model: Any, folder: Path, max_length: int | None = None) -> None:  # noqa: ANN401  an openvino.Model
    """Write `model` to `folder`, with a variable length unless it is to have one."""
    if max_length:
        model.reshape({port.get_any_name(): [1, max_length] for port in model.inputs})
    module().save_model(model, folder / GRAPH, compress_to_fp16=False)


def _quantize(checkpoint: "Checkpoint", model: Any, calibration: Sequence[Encoding]) -> Any:  # noqa: ANN401  openvino.Models
    """Return `model`, the graph of `checkpoint`, quantized with the ranges of activations measured on `calibration`.

    Before NNCF quantizes, it moves outliers of activations into the weights; how far is best depends on the model. So
    every third document of `calibration` is held out, and of the graphs for ALPHAS the one whose logits of these
    documents are nearest to fp32's is kept. Its own alpha is noted in it.

    Source: Xiao et al. 2023, "SmoothQuant", section 4, on the migration strength alpha.
    """
    module()
    import nncf
    import numpy as np

    def quantize(alpha: float) -> Any:  # noqa: ANN401  an openvino.Model
        sample = measured(calibration)
        candidate = nncf.quantize(
            model, nncf.Dataset(sample), advanced_parameters=parameters(alpha), **settings(model, len(sample))
        )
        candidate.set_rt_info(str(alpha), ALPHA)
        return candidate

    held.hold("OpenVINO's graph", checkpoint, runner(compile_model(model, "f32")))

    def logits(model: Any) -> "npt.NDArray[np.float32]":  # noqa: ANN401  an openvino.Model
        return np.concatenate([*map(runner(compile_model(model, "f32")), calibration[::3])])

    if not checkpoint.trained:
        return quantize(ALPHAS[0])  # any will do
    candidates, expected = [quantize(alpha) for alpha in ALPHAS], logits(model)
    return min(candidates, key=lambda candidate: float(np.abs(logits(candidate) - expected).mean()))


def measured(calibration: Sequence[Encoding]) -> list[Encoding]:
    """Return those documents of `calibration` on which ranges are measured: two of three."""
    return [encoding for row, encoding in enumerate(calibration) if row % 3]


def settings(model: Any, documents: int) -> dict[str, Any]:  # noqa: ANN401  an openvino.Model
    """Return the arguments with which NNCF quantizes `model` by that many `documents`, without `parameters`.

    NNCF needs `model_type` TRANSFORMER. Without it, it also quantizes parts of attention that lose too much precision,
    for 3 % of speed (MiniLM on SST-2: 134 of 872 labels flipped instead of 3).
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    return {
        "model_type": nncf.ModelType.TRANSFORMER,
        "ignored_scope": nncf.IgnoredScope(names=[_logits_layer(model)]),
        "subset_size": documents,
    }


def parameters(alpha: float) -> Any:  # noqa: ANN401  NNCF's AdvancedQuantizationParameters
    """Return NNCF's advanced parameters; outliers move into the weights by `alpha`, or not where it is negative."""
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )

    return AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE if machine.saturates() else OverflowFix.FIRST_LAYER,  # NNCF's default
        smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=alpha),
    )


def smoothed(model: Any, sample: Sequence[Encoding], alpha: float) -> Any:  # noqa: ANN401  openvino.Models
    """Return `model` in fp32 with outliers moved into the weights: what NNCF quantizes, as a graph of its own."""
    import nncf

    nothing = {"ignored_scope": nncf.IgnoredScope(patterns=[".*"], validate=False)}
    arguments = settings(model, len(sample)) | nothing
    return nncf.quantize(model, nncf.Dataset(sample), advanced_parameters=parameters(alpha), **arguments)


def _logits_layer(model: Any) -> str:  # noqa: ANN401  an openvino.Model
    """Return the name of the product that gives the logits, which is not quantized: it takes no time.

    Two int8 layers of one row each (DistilBERT's head) give wrong results in OpenVINO 2026.4 on one thread.
    """
    node = model.get_results()[0].input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name())


def load(folder: Path, *, hint: str, threads: int = 1) -> Classifier:
    """Load the graph in `folder` on `threads` threads; what is not int8 runs in `hint`: `f32` or `bf16`.

    Raises:
        InputError: the graph is damaged.
    """
    graph = folder / GRAPH
    if not graph.exists() and (folder / FORMER_GRAPH).exists():
        graph = folder / FORMER_GRAPH
    kept = folder / KEPT
    try:
        noted = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        return classifier(compile_model(graph, hint, threads), noted)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{graph} is damaged ({reason(error, -1)}): make it again with qbert quantize") from error


def classifier(compiled: Any, noted: Mapping[str, Any] = MappingProxyType({})) -> Classifier:  # noqa: ANN401  a CompiledModel
    """Return a classifier of `compiled`, whose inputs are named like an encoding's arrays; its evidence has `noted`."""
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    nodes = [
        {key: value.astype(str) for key, value in node.get_rt_info().items()}
        for node in compiled.get_runtime_model().get_ops()
    ]
    products = collections.Counter(node["runtimePrecision"] for node in nodes if node["layerType"] in PRODUCTS)
    fused = collections.Counter(node["layerType"] for node in nodes if "," in node["originalLayersNames"])
    return Classifier.counted(
        runner(compiled),
        {
            **noted,
            "fused_ops": dict(fused),
            "matrix_products": dict(products),
            "precision": PRECISIONS.get(hint, hint),
            "quantized_ops": products["i8"] + products["u8"],
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
        },
    )


def compile_model(model: Any, hint: str, threads: int = 1) -> Any:  # noqa: ANN401  a path or a model of OpenVINO; a compiled one
    """Return `model` compiled for `threads` threads and one call at a time, computing in `hint`: `f32` or `bf16`."""
    settings = {
        "ENABLE_CPU_PINNING": False,  # else all processes compute on the first processor that they might use
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": hint,  # its default is bf16 wherever the processor has it
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    return module().Core().compile_model(model, "CPU", settings)


def runner(compiled: Any) -> "Callable[[Encoding], npt.NDArray[np.float32]]":  # noqa: ANN401  a CompiledModel
    """Return the function from an encoding to logits, `(1, num_labels)`, that `compiled` is."""
    request = compiled.create_infer_request()
    length = compiled.inputs[0].partial_shape[1]

    def run(encoding: Encoding) -> "npt.NDArray[np.float32]":
        if length.is_static:
            encoding = trimmed.padded(encoding, length.get_length())
        return request.infer(encoding, share_inputs=True)[0]  # type: ignore[no-any-return]

    return run


def lacks_bf16() -> str:
    """Return why OpenVINO would not compute in bf16 here; empty where it would."""
    if machine.has("avx512_bf16", "amx_bf16"):
        return ""
    return "this processor has no bf16 instructions that OpenVINO uses (AVX512-BF16 or AMX)"


@functools.cache
def module() -> Any:  # noqa: ANN401
    """Return the module openvino, which leaves threads on the processors that their affinity masks allow.

    Source: hwloc's manual, "Environment Variables": where HWLOC_THISSYSTEM is 0, hwloc binds nothing. Else TBB would
    bind a thread during each call to all processors that the process might use when OpenVINO was first used.
    """
    import openvino

    with _FIRST_USE:
        before = os.environ.get(BINDING)
        os.environ[BINDING] = "0"
        try:
            openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")  # reads the variable, once for the process
        finally:  # other programs that this process starts may bind
            del os.environ[BINDING]
            if before is not None:
                os.environ[BINDING] = before
    return openvino


def convert(checkpoint: "Checkpoint", model: Any) -> Any:  # noqa: ANN401  a torch module, and an openvino.Model
    """Return the graph of `model`, made from `checkpoint`, with a variable length."""
    openvino = module()
    example = dict(zip(checkpoint.encoder.inputs, eager.example(checkpoint), strict=True))
    return openvino.convert_model(
        model,
        example_input=example,
        input=[(name, openvino.PartialShape([1, -1]), openvino.Type.i64) for name in example],
    )


def products(inputs: int, outputs: int) -> Products:
    """Yield products with a weight, each as a graph of one product.

    None is of int8: alone, with what quantizes its rows and brings its sums to fp32, it takes twice oneDNN's time.
    """
    import numpy as np

    ov = module()
    from openvino import opset13

    x = opset13.parameter([-1, inputs], np.float32)
    weight = opset13.constant(np.random.default_rng(0).random((outputs, inputs), dtype=np.float32))
    model = ov.Model([opset13.matmul(x, weight, transpose_a=False, transpose_b=True)], [x])

    def product(request: Any, rows: int) -> Callable[[], Any]:  # noqa: ANN401  an InferRequest
        data = np.random.default_rng(0).random((rows, inputs), dtype=np.float32)
        return functools.partial(request.infer, {0: data}, share_inputs=True)

    for precision, hint in (("fp32", "f32"), ("bf16", "bf16")):
        if precision == "fp32" or not lacks_bf16():
            request = compile_model(model, hint).create_infer_request()
            yield precision, "OpenVINO", functools.partial(product, request)
