"""ONNX Runtime: the model exported with its attention spelled out, fused by its own optimizer, then quantized.

From transformers' default attention (SDPA) the optimizer fuses no attention at all, from `eager` every layer's.
"""

import collections
import importlib.util
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbert import InputError, machine
from qbert.checkpoint import Checkpoint, Encoding

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qbert.variants import Classifier

GRAPH = "model.onnx"
EVIDENCE = "evidence.json"
OPSET = 18
QUANTIZED = {"DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QAttention"}
FUSED = {"Attention", "BiasGelu", "EmbedLayerNormalization", "Gelu", "QAttention", "SkipLayerNormalization"}

HAS_VNNI = machine.has("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
"""Without it, signed weights times unsigned activations saturate in 16 bits unless weights keep to 7 bits.

Source: ONNX Runtime's documentation, "Quantize ONNX models", on saturation with AVX2 and AVX-512.
"""


def missing() -> str:
    """Say what brings ONNX Runtime; empty where it is installed."""
    if all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        return ""
    return "pip install 'qbert[onnxruntime]'"


def export(checkpoint: Checkpoint, folder: Path, *, int8: bool) -> None:
    """Write the fused graph of `checkpoint`, quantized where `int8`, and the count of what runs in it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    with tempfile.TemporaryDirectory(dir=folder) as place:
        exported, fused = Path(place) / "exported.onnx", Path(place) / "fused.onnx"
        export_graph(checkpoint, exported)
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)  # advice on steps that were taken just above
        try:
            optimizer.optimize_model(
                str(exported),
                model_type="bert",
                num_heads=getattr(checkpoint.config, "num_attention_heads", 0),
                hidden_size=getattr(checkpoint.config, "hidden_size", 0),
                opt_level=0,  # the session does the rest when it loads
            ).save_model_to_file(str(fused if int8 else folder / GRAPH))
            if int8:
                quantize_dynamic(
                    fused,
                    folder / GRAPH,
                    op_types_to_quantize=["MatMul", "Attention"],
                    per_channel=True,
                    reduce_range=not HAS_VNNI,
                    weight_type=QuantType.QInt8,
                    extra_options={"DefaultTensorType": 1, "MatMulConstBOnly": True},
                )
        finally:
            logging.disable(level)
    (folder / EVIDENCE).write_text(json.dumps(_count(folder)))


def export_graph(checkpoint: Checkpoint, path: Path) -> None:
    """Write `checkpoint` to `path` as ONNX, its length left open.

    Raises:
        InputError: an operator of the model has no ONNX counterpart.
    """
    import torch

    names = checkpoint.encoder.inputs

    class Positional(torch.nn.Module):
        """Take the encoding's arrays in order and give the logits alone, as the exporter wants it."""

        def __init__(self) -> None:
            super().__init__()
            self.model = checkpoint.load(attn_implementation="eager")

        def forward(self, *arrays: Any) -> Any:  # noqa: ANN401  tensors
            return self.model(**dict(zip(names, arrays, strict=True))).logits

    example = {"attention_mask": torch.ones, "input_ids": torch.ones}
    arrays = tuple(example.get(name, torch.zeros)(1, 16, dtype=torch.int64) for name in names)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # the tracing exporter is deprecated; from the new one no attention is fused
            torch.onnx.export(
                Positional(),
                arrays,
                str(path),
                input_names=list(names),
                output_names=["logits"],
                dynamic_axes={name: {1: "length"} for name in names},
                opset_version=OPSET,
                dynamo=False,
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{checkpoint.folder} cannot be exported to ONNX ({reason}): choose other variants") from error


def load(folder: Path, **_: object) -> "Classifier":
    """Return the session of the graph in `folder`, on one thread."""
    from qbert.variants import Classifier

    session = _session(folder)

    def run(encoding: Encoding) -> "npt.NDArray[np.float32]":
        return session.run(None, encoding)[0]  # type: ignore[no-any-return]

    return Classifier(run, json.loads((folder / EVIDENCE).read_text()) | {"precision": "float32", "threads": 1})


def _session(folder: Path, optimized: Path | None = None) -> Any:  # noqa: ANN401  an InferenceSession
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{folder / GRAPH} cannot be run ({reason}): make it again with qbert quantize") from error


def _count(folder: Path) -> dict[str, Any]:
    """Return how many quantized and fused operations are in the graph that a session makes of the one in `folder`."""
    import onnx

    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "optimized.onnx"
        _session(folder, path)
        operations = collections.Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    return {
        "quantized_ops": sum(operations[name] for name in QUANTIZED),
        "fused_ops": {name: operations[name] for name in sorted(FUSED) if operations[name]},
    }
