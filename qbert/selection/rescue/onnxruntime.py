"""Mixes of int8-onnxruntime: a session for each; its graph is put together of the fp32 and the int8 one.

ONNX Runtime's `quantize_dynamic` with nodes to exclude gives the same graph, and takes eight times as long (MiniLM).
"""

import tempfile
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from qbert.inputs.checkpoint import Checkpoint
from qbert.selection.rescue.search import Run, Work
from qbert.system.terminal import silent
from qbert.variants import onnxruntime

SESSIONS = 3  # that are kept: two are timed in turn
INT8 = "int8.onnx"


def mix(fused: Any, int8: Any, kept: Collection[str]) -> Any:  # noqa: ANN401  onnx.ModelProto
    """Return the graph `int8`, which was quantized from `fused`, with the nodes `kept` as they are in `fused`."""
    import onnx

    floats = {node.output[0]: node for node in fused.graph.node if node.name in kept}
    before = {name for node in fused.graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in (*int8.graph.initializer, *fused.graph.initializer)}
    read = {output.name for output in int8.graph.output}
    nodes = []
    for number in reversed(range(len(int8.graph.node))):  # those that read before those that are read
        node = floats.get(int8.graph.node[number].output[0], int8.graph.node[number])
        if before.union(read).intersection(node.output):  # else it prepares what a kept one does not read
            nodes.append(node)
            read.update(node.input)
    unchanged = {tensor.name for tensor in int8.graph.initializer} & {tensor.name for tensor in fused.graph.initializer}
    mixed = onnx.ModelProto()
    mixed.CopyFrom(int8)
    del mixed.graph.node[:], mixed.graph.initializer[:]
    mixed.graph.node.extend(reversed(nodes))
    mixed.graph.initializer.extend(tensor for name, tensor in weights.items() if name in read | unchanged)
    return mixed


class OnnxMixes:
    """The mixes of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Export `checkpoint` in both precisions."""
        import onnx
        from onnxruntime.quantization.onnx_model import ONNXModel

        self._place = tempfile.TemporaryDirectory()  # removed with this object
        self._path = Path(self._place.name) / onnxruntime.GRAPH
        with silent():  # exporters print advice
            onnxruntime.fuse(checkpoint, checkpoint.load(attn_implementation="eager"), self._path)
            floats = ONNXModel(onnx.load(self._path))
            of_all_tokens = {node.name for node in floats.nodes()}
            floats.replace_gemm_with_matmul()  # as quantization does first; exporters write Gemm of a single row alone
            floats.save_model_to_file(str(self._path))
            onnxruntime.quantize(self._path, self._path.with_name(INT8))
        self._fused, self._int8 = floats.model, onnx.load(self._path.with_name(INT8))
        rest = {node.name for node in self._int8.graph.node}
        weights = {tensor.name: tuple(tensor.dims) for tensor in self._fused.graph.initializer}
        self._shapes = {
            node.name: (*weights[node.input[1]], node.name in of_all_tokens)
            for node in self._fused.graph.node
            if node.op_type in onnxruntime.TO_QUANTIZE and node.name not in rest
        }
        """Inputs and outputs of each layer, and whether it sees all tokens."""
        self.names: list[str] = list(self._shapes)
        self._sessions: OrderedDict[frozenset[str], Run] = OrderedDict()

    def groups(self) -> list[list[str]]:
        """Return the layers of one shape."""
        shapes = dict.fromkeys(self._shapes.values())
        return [[name for name in self.names if self._shapes[name] == shape] for shape in shapes]

    def work(self, tokens: int) -> Work:
        """Return each layer's multiplications for a text of `tokens` tokens, and its weights."""
        return {
            name: (float(inputs * outputs * (tokens if every else 1)), float(inputs * outputs))
            for name, (inputs, outputs, every) in self._shapes.items()
        }

    def graph(self, kept: Collection[str]) -> Any:  # noqa: ANN401  an onnx.ModelProto
        """Return the graph with the layers `kept` in fp32."""
        return mix(self._fused, self._int8, kept)

    def classifier(self, kept: Collection[str]) -> Run:
        """Return what runs the session with the layers `kept` in fp32."""
        key = frozenset(kept)
        if key not in self._sessions:
            if len(self._sessions) == SESSIONS:
                self._sessions.popitem(last=False)
            session = onnxruntime.open_session(self.graph(key).SerializeToString())
            self._sessions[key] = onnxruntime.runner(session)
        self._sessions.move_to_end(key)
        return self._sessions[key]

    def write(self, kept: Sequence[str], folder: Path) -> None:
        """Write the graph with the layers `kept` in fp32, and its evidence."""
        with silent():
            onnxruntime.quantize(self._path, folder / onnxruntime.GRAPH, kept)
        onnxruntime.note_evidence(folder, kept)
