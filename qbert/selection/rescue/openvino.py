"""Rescue of int8-openvino by NNCF's accuracy control, which is given our guard to judge by.

It reverts layers to float one by one, in the order of a ranking, until its metric has dropped by no more than it may.
Here the metric is by how much the guard is missed, on the documents whose answer a mix could change, and it may not
drop at all. To rank, it asks for the metric of a part of them: that is the squared error of the logits.

NNCF 3.4 reverts a layer to the weights of the model that it was given, but leaves the outliers that SmoothQuant had
moved into these weights out of the activations: with all layers reverted, the answers are garbage. So it is given the
smoothed model, and does not smooth.
"""

import contextlib
import io
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.tokenizer import Encoding
from qbert.selection.rescue.judging import Documents, Judge, Logits
from qbert.selection.rescue.search import Choice, Lap, Run, looked
from qbert.system import machine
from qbert.system.terminal import progress, quiet, silent
from qbert.variants import openvino

RANKED_BY = 64  # documents, of the greatest errors; as many as calibrate the other searches


class AccuracyControl:
    """Plain int8-openvino of one checkpoint, and what NNCF makes of it."""

    def __init__(self, checkpoint: Checkpoint, plain: Path, calibration: Sequence[Encoding], hint: str) -> None:
        """Start from the variant's files in the folder `plain`, calibrated on `calibration`; `hint` is its own."""
        core = openvino.module().Core()
        self._hint = hint
        quantized = core.read_model(plain / openvino.GRAPH)
        self._graphs = {frozenset[str](): quantized}
        self._alpha = float(quantized.get_rt_info(openvino.ALPHA).astype(str))
        self._sample = openvino.measured(calibration)
        with silent():  # conversion prints advice
            model = openvino.convert(checkpoint, checkpoint.load())
            self.smoothed = openvino.smoothed(model, self._sample, self._alpha)
        self._runs: dict[frozenset[str], Run] = {}

    def choose(self, guard: Judge, calibration: Documents, held: Documents, plain: Logits, lap: Lap) -> Choice:  # noqa: ARG002  it has the variant's own
        """Return what NNCF kept in float, judged by all documents `held`; `plain` are the logits in int8."""
        names = int8_products(self._graphs[frozenset()])
        near = guard.near(held, plain)
        encodings, baseline = [held.encodings[number] for number in near], held.baseline[near]
        passes = itertools.count(1)

        def metric(compiled: Any, rows: Iterable[int]) -> tuple[float, list[float]]:  # noqa: ANN401  a CompiledModel
            """Return the metric of `compiled` for the documents `rows`, and for each of them; greater is better."""
            numbers = list(rows)
            logits = np.concatenate([*map(openvino.runner(compiled), (encodings[number] for number in numbers))])
            values = -guard.squared_errors(logits, baseline[numbers])
            advance(next(passes))
            if len(numbers) < len(encodings):
                return float(values.mean()), values.tolist()
            missed_by = max(0.0, guard.judge(held, logits, near).drop_at_most - guard.limit)
            return 1.0 - missed_by, values.tolist()  # 1 where the guard holds: NNCF divides by that of fp32

        with progress("NNCF's accuracy control, pass", 2 * len(names)) as advance:
            graph = control(self.smoothed, self._sample, metric, len(encodings))
        rest = set(int8_products(graph))
        kept = tuple(name for name in names if name not in rest)
        self._graphs[frozenset(kept)] = graph
        with machine.one_core():
            judged = guard.judge(held, np.concatenate([*map(self.classifier(kept), held.encodings)]))
        lap("search")
        return Choice(kept, len(names), judged, [looked(len(kept), judged)])

    def classifier(self, kept: Collection[str]) -> Run:
        """Return what computes logits with the layers `kept` in float: none, or those that were chosen."""
        key = frozenset(kept)
        if key not in self._runs:
            self._runs[key] = openvino.runner(openvino.compile_model(self._graphs[key], self._hint))
        return self._runs[key]

    def write(self, kept: Sequence[str], folder: Path) -> None:
        """Write the graph with the layers `kept` in float, and which these are."""
        openvino.save(self._graphs[frozenset(kept)], folder)
        if kept:
            noted = {"kept_ops": sorted(kept), "kept_precision": openvino.PRECISIONS[self._hint]}
            (folder / openvino.KEPT).write_text(json.dumps(noted), encoding="utf-8")


Metric = Callable[[Any, Iterable[int]], tuple[float, list[float]]]


def control(smoothed: Any, sample: Sequence[Encoding], metric: Metric, count: int) -> Any:  # noqa: ANN401  openvino.Models
    """Return what NNCF's accuracy control makes of the model `smoothed` until `metric`, of `count` documents, is 1.

    Source: NNCF 3.4, nncf/quantization/algorithms/accuracy_control.
    """
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedAccuracyRestorerParameters

    with quiet(), contextlib.redirect_stdout(io.StringIO()):  # it draws bars
        return nncf.quantize_with_accuracy_control(
            smoothed,
            nncf.Dataset(sample),
            nncf.Dataset(list(range(count))),
            metric,
            max_drop=0.0,
            advanced_quantization_parameters=openvino.parameters(alpha=-1),
            advanced_accuracy_restorer_parameters=AdvancedAccuracyRestorerParameters(
                ranking_subset_size=max(1, min(RANKED_BY, count - 1)), num_ranking_workers=1
            ),
            **openvino.settings(smoothed, len(sample)),
        )


def int8_products(model: Any) -> list[str]:  # noqa: ANN401  an openvino.Model
    """Return the names of the layers in `model` whose weights are int8, in the order in which they run."""
    names = []
    for operation in model.get_ordered_ops():
        if operation.get_type_name() == "MatMul":
            source = operation.input_value(1).get_node()
            while source.get_input_size() and source.get_type_name() != "MatMul":
                source = source.input_value(0).get_node()
            if source.get_type_name() == "Constant" and source.get_element_type().get_type_name() in {"i8", "u8"}:
                names.append(operation.get_friendly_name())
    return names
