"""ONNX Runtime: exported with eager attention, fused by its transformer optimizer, then quantized dynamically.

The optimizer recognizes attention only as transformers' `eager` implementation writes it. It fuses no layer of an SDPA
export, nor of a graph from PyTorch's newer exporter.
"""

import collections
import functools
import json
import tempfile
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbert.inputs.tokenizer import Encoding
from qbert.system import machine
from qbert.system.errors import CannotRunError, InputError, reason
from qbert.variants import eager, held, trimmed
from qbert.variants.base import Classifier, Products

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qbert.inputs.checkpoint import Checkpoint

GRAPH = "model.onnx"
EVIDENCE = "evidence.json"
OPSET = 18
LENGTH = "length"
FUSED = ("Attention", "QAttention", "BiasGelu", "Gelu", "SkipLayerNormalization", "EmbedLayerNormalization")
TO_QUANTIZE = ("MatMul", "Attention")
QUANTIZED = ("QAttention", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat")
FUSIBLE = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
"""The architectures of which the optimizer fuses every layer; others run as they were exported."""


def export(checkpoint: "Checkpoint", folder: Path, *, int8: bool) -> None:
    """Write the fused graph of `checkpoint`, quantized where `int8`, and the counts of its operations.

    Raises:
        InputError: a layer of a known architecture is not fused.
    """
    _export(checkpoint, checkpoint.load(attn_implementation="eager"), folder, int8=int8)


def export_trimmed(checkpoint: "Checkpoint", folder: Path, *, int8: bool, max_length: int) -> None:
    """Write the trimmed and fused graph of `checkpoint` for `max_length` tokens, quantized where `int8`."""
    _export(checkpoint, trimmed.trim(checkpoint, attn_implementation="eager"), folder, int8=int8, max_length=max_length)


def _export(checkpoint: "Checkpoint", model: Any, folder: Path, *, int8: bool, max_length: int | None = None) -> None:  # noqa: ANN401  a torch module
    with tempfile.TemporaryDirectory(dir=folder) as work:
        fused = Path(work) / "fused.onnx" if int8 else folder / GRAPH
        fuse(checkpoint, model, fused, max_length)
        if int8:
            held.hold("ONNX Runtime's fused graph", checkpoint, runner(open_session(fused)), max_length=max_length)
            quantize(fused, folder / GRAPH)
    evidence = note_evidence(folder)
    attention = evidence["fused_ops"].get("Attention", 0) + evidence["fused_ops"].get("QAttention", 0)
    fusible = checkpoint.config.num_hidden_layers - (max_length is not None)  # a trimmed last layer's is not fused
    if checkpoint.config.model_type in FUSIBLE and attention != fusible:
        remedy = "take another release of onnxruntime or torch"
        if getattr(checkpoint.config, "is_decoder", False):
            remedy = "leave it out, since it knows no decoder's (is_decoder in config.json)"
        raise CannotRunError(
            f"ONNX Runtime's optimizer fused the attention of {attention} of {fusible} layers of "
            f"{checkpoint.folder}, which is slower than it has to be: {remedy}"
        )


def fuse(checkpoint: "Checkpoint", model: Any, path: Path, max_length: int | None = None) -> None:  # noqa: ANN401  a torch module
    """Write the fused graph of `model`, made from `checkpoint`, to `path`: for one length, if that is given."""
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed
    from onnxruntime.transformers import optimizer

    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        exported = Path(work) / "exported.onnx"
        _trace(checkpoint, model, exported)
        optimized = optimizer.optimize_model(
            str(exported),
            model_type="bert",
            num_heads=checkpoint.config.num_attention_heads,
            hidden_size=checkpoint.config.hidden_size,
            opt_level=0,  # a session does the other optimizations when it loads the graph
        )
        if max_length:  # after the optimizer, which does not recognize attention of a fixed length
            make_dim_param_fixed(optimized.model.graph, LENGTH, max_length)
        optimized.save_model_to_file(str(path))


def quantize(fused: Path, quantized: Path, kept: Iterable[str] = ()) -> None:
    """Quantize the weights of `fused` to signed int8 with a scale per output channel; activations, when it runs.

    The nodes `kept` stay as they are.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        fused,
        quantized,
        op_types_to_quantize=list(TO_QUANTIZE),
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=machine.saturates(),
        nodes_to_exclude=list(kept),
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
    )


def _trace(checkpoint: "Checkpoint", model: Any, path: Path) -> None:  # noqa: ANN401  a torch module
    import torch

    names = list(checkpoint.encoder.inputs)
    with torch.no_grad():
        torch.onnx.export(
            eager.positional(model, names),
            eager.example(checkpoint),
            str(path),
            input_names=names,
            output_names=["logits"],
            dynamic_axes={name: {1: LENGTH} for name in names},
            opset_version=OPSET,
            dynamo=False,
        )


def note_evidence(folder: Path, kept: Collection[str] = ()) -> dict[str, Any]:
    """Write, and return, the counts of the operations of the graph in `folder`, and the products `kept` in fp32."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        evidence = _count(folder / GRAPH, Path(place) / "running.onnx")
    if kept:
        evidence |= {"kept_ops": sorted(kept), "kept_precision": "float32"}
    (folder / EVIDENCE).write_text(json.dumps(evidence), encoding="utf-8")
    return evidence


def _count(graph: Path, running: Path) -> dict[str, Any]:
    """Count the fused and quantized operations of a session of `graph`; write the graph that it runs to `running`."""
    import onnx

    open_session(graph, running)
    counts = collections.Counter(node.op_type for node in onnx.load(running, load_external_data=False).graph.node)
    return {
        "fused_ops": {name: counts[name] for name in FUSED if counts[name]},
        "quantized_ops": sum(counts[name] for name in QUANTIZED),
    }


def load(folder: Path, threads: int = 1) -> Classifier:
    """Return a classifier that runs the graph in `folder` on `threads` threads.

    Raises:
        InputError: the graph is damaged.
    """
    try:
        # The evidence is from `export`: to count operations takes the package `onnx`, which serving does not need.
        session = open_session(folder / GRAPH, threads=threads)
        return _classifier(session, json.loads((folder / EVIDENCE).read_text(encoding="utf-8")))
    except Exception as error:  # ONNX Runtime's exceptions have no narrower common class
        raise InputError(f"{folder / GRAPH} is damaged ({reason(error)}): make it again with qbert quantize") from error


def classifier(graph: Path) -> Classifier:
    """Return a classifier that runs `graph`, whose inputs are named like the arrays of an encoding."""
    with tempfile.TemporaryDirectory() as place:
        evidence = _count(graph, Path(place) / "running.onnx")
    return _classifier(open_session(graph), evidence)


def _classifier(session: Any, evidence: dict[str, Any]) -> Classifier:  # noqa: ANN401  an InferenceSession
    return Classifier.counted(
        runner(session),
        evidence | {"precision": "float32", "threads": session.get_session_options().intra_op_num_threads},
        concurrent=True,  # ONNX Runtime, "Thread safety": Run of one session may be called from several threads
    )


def runner(session: Any) -> "Callable[[Encoding], npt.NDArray[np.float32]]":  # noqa: ANN401  an InferenceSession
    """Return the function from an encoding to logits, `(1, num_labels)`, that `session` is."""
    inputs = [node.name for node in session.get_inputs()]  # without ineffective ones, as DeBERTa's token types
    length = session.get_inputs()[0].shape[1]  # a name, where it is variable

    def run(encoding: Encoding) -> "npt.NDArray[np.float32]":
        if isinstance(length, int):
            encoding = trimmed.padded(encoding, length)
        return session.run(None, {name: encoding[name] for name in inputs})[0]  # type: ignore[no-any-return]

    return run


def open_session(graph: Path | bytes, running: Path | None = None, threads: int = 1) -> Any:  # noqa: ANN401  an InferenceSession
    """Return a session of `graph` on `threads` threads; write the graph that it runs to `running`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # it warns of what we ask for
    if running:
        options.optimized_model_filepath = str(running)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def products(inputs: int, outputs: int) -> Products:
    """Yield products with a weight, each as a graph of one node."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)

    def session(operation: str, weight: Any, kinds: tuple[int, int]) -> Any:  # noqa: ANN401  an InferenceSession
        graph = helper.make_graph(
            [helper.make_node(operation, ["x", "w"], ["y"])],
            "product",
            [helper.make_tensor_value_info("x", kinds[0], ["rows", inputs])],
            [helper.make_tensor_value_info("y", kinds[1], ["rows", outputs])],
            [numpy_helper.from_array(weight, "w")],
        )
        opset = helper.make_opsetid("", OPSET)
        return open_session(helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString())

    def floats(rows: int) -> Callable[[], Any]:
        return functools.partial(of_floats.run, None, {"x": generator.random((rows, inputs), dtype=np.float32)})

    def integers(rows: int) -> Callable[[], Any]:
        x = generator.integers(0, 256, (rows, inputs), dtype=np.uint8)
        return functools.partial(of_integers.run, None, {"x": x})

    weight = generator.random((inputs, outputs), dtype=np.float32)
    of_floats = session("MatMul", weight, (TensorProto.FLOAT,) * 2)
    yield "fp32", "ONNX Runtime", floats
    steps = generator.integers(-127, 128, (inputs, outputs), dtype=np.int8)
    of_integers = session("MatMulInteger", steps, (TensorProto.UINT8, TensorProto.INT32))
    yield "int8", "ONNX Runtime", integers
