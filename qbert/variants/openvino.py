"""OpenVINO: fp32, bf16, and int8 by NNCF's post-training quantization, calibrated on training documents."""

import collections
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbert import InputError, machine, reason
from qbert.checkpoint import Checkpoint, Encoding
from qbert.variants import eager

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qbert.variants import Classifier

GRAPH = "model.xml"
PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def export(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the graph of `checkpoint` in fp32."""
    _import().save_model(_convert(checkpoint), folder / GRAPH, compress_to_fp16=False)


def export_int8(checkpoint: Checkpoint, folder: Path, *, calibration: Sequence[Encoding]) -> None:
    """Write the graph of `checkpoint` with the ranges of its activations as `calibration` showed them.

    NNCF has to be told that it is a transformer. Else it quantizes what attention cannot bear, for 3 % of speed
    (MiniLM on SST-2: 134 of 872 labels flipped instead of 3).
    """
    openvino = _import()
    import nncf

    nncf.set_log_level(logging.ERROR)
    model = _convert(checkpoint)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(calibration),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=[_logits_layer(model)]),
        subset_size=len(calibration),
    )
    openvino.save_model(quantized, folder / GRAPH, compress_to_fp16=False)


def _logits_layer(model: Any) -> str:  # noqa: ANN401  an openvino.Model
    """Return the name of the product that gives the logits: it takes no time, and is left as it is.

    Of two int8 layers of one row each (DistilBERT's head), OpenVINO 2026.4 on one thread makes nonsense.
    """
    node = model.get_results()[0].input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name())


def load(folder: Path, *, hint: str) -> "Classifier":
    """Return the graph in `folder` compiled for one thread; what is not int8 is computed in `hint`, `f32` or `bf16`.

    Raises:
        InputError: the graph is damaged.
    """
    from qbert.variants import Classifier

    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": hint,  # left alone it takes bf16 wherever the processor has it
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        compiled = _import().Core().compile_model(folder / GRAPH, "CPU", settings)
    except RuntimeError as error:
        raise InputError(
            f"{folder / GRAPH} is damaged ({reason(error, -1)}): make it again with qbert quantize"
        ) from error
    request = compiled.create_infer_request()

    def run(encoding: Encoding) -> "npt.NDArray[np.float32]":
        return request.infer(encoding, share_inputs=True)[0]  # type: ignore[no-any-return]

    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    products = collections.Counter(
        node["runtimePrecision"].astype(str)
        for node in nodes
        if node["layerType"].astype(str) in {"FullyConnected", "MatMul", "ScaledDotProductAttention"}
    )
    return Classifier(
        run,
        {
            "matrix_products": dict(products),
            "precision": PRECISIONS[compiled.get_property("INFERENCE_PRECISION_HINT").to_string()],
            "quantized_ops": products["i8"] + products["u8"],
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
        },
    )


def no_bf16() -> str:
    """Say why OpenVINO would not compute in bf16 here; empty where it would."""
    if machine.has("avx512_bf16", "amx_bf16"):
        return ""
    return "this processor has no bf16 instructions that OpenVINO uses (AVX512-BF16 or AMX)"


def _import() -> Any:  # noqa: ANN401  the module openvino
    """Import OpenVINO without its telemetry: it, and NNCF, do without where that package is missing."""
    absent: Any = None  # what Python takes for a module that is not installed
    sys.modules.setdefault("openvino_telemetry", absent)
    import openvino

    return openvino


def _convert(checkpoint: Checkpoint) -> Any:  # noqa: ANN401  an openvino.Model
    """Return the graph of `checkpoint`, its length left open."""
    openvino = _import()
    example = dict(zip(checkpoint.encoder.inputs, eager.example(checkpoint), strict=True))
    return openvino.convert_model(
        checkpoint.load(),
        example_input=example,
        input=[(name, openvino.PartialShape([1, -1]), openvino.Type.i64) for name in example],
    )
