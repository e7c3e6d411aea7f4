"""The steps of a rescue: judge plain int8, have the float layers chosen, judge by the test split, write."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qbert import variants
from qbert.inputs import dataset as datasets
from qbert.measure.accuracy import Comparison
from qbert.measure.cells import Cell, baseline_of
from qbert.selection.kept_answers import name_of
from qbert.selection.rescue.judging import Documents, Judge, Logits, answers, ask
from qbert.selection.rescue.native import NativeMixes
from qbert.selection.rescue.onnxruntime import OnnxMixes
from qbert.selection.rescue.openvino import AccuracyControl
from qbert.selection.rescue.search import Choice, Mixes, Product, Search, looked, timed
from qbert.system import machine, sources
from qbert.system.cache import build_folder, cache_dir, is_filled, seal
from qbert.system.errors import InputError
from qbert.system.terminal import progress, say
from qbert.variants import VARIANTS, Variant, native, onnxruntime, openvino
from qbert.variants.build import calibration_encodings
from qbert.variants.native.encoder import WEIGHTS

CALIBRATION_DOCUMENTS = 64  # 256 gave the same first six layers (MiniLM, SST-2)
REPORT = "rescue.json"


Rescuer = Search | AccuracyControl
"""What chooses the float layers of one variant of a checkpoint."""


def _search(cell: Cell, mixes: Mixes) -> Search:
    """Search among `mixes` of `cell`; the cache keeps what its layers cost on this machine."""
    ingredients = [cell.suite.dataset.sha256, machine.identity(), sources.sha256("qbert.selection.rescue.run")]
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]
    return Search(mixes, cache_dir() / "prices" / f"{name_of(cell)}-{key}")


def _native(cell: Cell) -> Rescuer:
    return _search(cell, NativeMixes(cell.checkpoint, cell.folder / WEIGHTS, **cell.variant.options))


def _onnxruntime(cell: Cell) -> Rescuer:
    return _search(cell, OnnxMixes(cell.checkpoint))


def _openvino(cell: Cell) -> Rescuer:
    calibration = calibration_encodings(cell.checkpoint, cell.suite.dataset)
    return AccuracyControl(cell.checkpoint, cell.folder, calibration, cell.variant.options["hint"])


RESCUERS: dict[Callable[..., None] | None, Callable[[Cell], Rescuer]] = {
    native.export: _native,
    native.export_calibrated: _native,
    onnxruntime.export: _onnxruntime,
    openvino.export_int8: _openvino,
}
"""By the function that exports a variant."""


def can_rescue(variant: Variant) -> bool:
    """Whether `variant` has int8 layers that can be kept in float."""
    return variant.precision.startswith("int8") and variant.export in RESCUERS


@dataclass(frozen=True)
class Rescued:
    """The result: which layers are kept in float, and what that brings and costs. Its fields are the record's keys."""

    model: str
    dataset: str
    variant: str
    limit: float
    """Of the drop."""
    judged_by: str
    """Which documents decide, and whether the model has seen them, in words."""
    kept: tuple[str, ...]
    """In the order in which they were chosen; where nothing holds the guard, all, or what NNCF kept in the end."""
    every: int
    """The number of layers; 0 where int8 held the guard."""
    holds: bool
    precision: str
    """Of the float layers."""
    products: tuple[Product, ...]
    """All of the model's, those worth most first; empty where int8 held the guard, or NNCF chose."""
    plain: Comparison
    """Every layer in int8, on the held-out documents."""
    chosen: Comparison
    """With `kept`, on the held-out documents."""
    chosen_at_most: float
    """The drop that `chosen` surely does not exceed."""
    plain_at_most: float
    test: Comparison | None
    """With `kept`, on the test split, which nothing was chosen by; None where nothing holds the guard."""
    plain_test: Comparison | None
    latency_ratio: float
    """Latency with `kept` over that of plain int8."""
    additivity: float | None
    """Correlation of the layers' summed errors with the error of drawn mixes; None without a search."""
    priced: str | None
    """When the times were measured that the order of the layers depends on, in words; None without a search. Runs
    with one cache use those of the first."""
    searched: tuple[dict[str, Any], ...]
    """The numbers of float layers that the guard judged, and what it said."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What each step took."""

    def record(self) -> dict[str, Any]:
        """Return its fields for JSON, the figures under the metric's own names."""
        judged = {name: it.record() for name, it in vars(self).items() if isinstance(it, Comparison)}
        return asdict(self) | judged


def rescue(
    model: str,
    dataset: str,
    limit: float,
    output: Path,
    *,
    variant: str = "int8-native",
    validation: Path | None = None,
    documents: int = 2_000,
    max_length: int | None = None,
) -> Rescued:
    """Write `model` to the folder `output` as `variant` with as few layers in float as hold the drop at `limit`.

    Held-out rows of the training split decide, or those of the file `validation`; the test split is read once, at the
    end. Where nothing holds, nothing is written.

    Raises:
        InputError: something cannot be used, or there are too few documents to tell a drop of `limit`.
    """
    row = variants.get(variant)
    if not can_rescue(row):
        known = ", ".join(name for name, other in VARIANTS.items() if can_rescue(other))
        raise InputError(f"variant {variant} has no int8 layers to keep in float: name one of {known}")
    if is_filled(output):
        raise InputError(f"{output} exists already: remove it or name another folder")
    loaded = datasets.load(dataset)
    baseline = baseline_of(model, loaded, max_length)
    checkpoint = baseline.checkpoint
    trained_on = checkpoint.record.get("dataset_sha256")
    calibrated_on = max(CALIBRATION_DOCUMENTS, variants.CALIBRATION_DOCUMENTS if row.calibrated else 0)
    rows, judged_by = loaded.to_choose_by(validation, calibrated_on, trained_on)
    clock = _Clock()
    metric = baseline.metric
    held = ask(baseline, rows[: metric.whole(metric.truth(baseline.dataset, rows), documents)], "held out")
    guard = Judge(baseline.dataset, metric, limit)
    guard.check_enough(held)
    clock.lap("baseline")
    cell = baseline.suite.cell(baseline.model.name, baseline.max_length, row.name)
    plain_logits = answers(cell, held.rows, "held out")
    plain = guard.judge(held, plain_logits)
    clock.lap("plain")
    choice, rescuer, ratio = Choice((), 0, plain, []), None, 1.0
    if not guard.holds(plain):
        calibration = ask(baseline, loaded.calibration(CALIBRATION_DOCUMENTS), "calibration")
        clock.lap("baseline")
        say(f"{row.name} does not hold the guard: preparing the search over its layers")
        rescuer = RESCUERS[row.export](cell)
        clock.lap("export")
        choice = rescuer.choose(guard, calibration, held, plain_logits, clock.lap)
        kept_s, plain_s = timed(rescuer.classifier, held.median, [choice.kept, ()]).T
        ratio = float(np.median(kept_s / plain_s))
        clock.lap("latency")
    holds = guard.holds(choice.judged)
    test = plain_test = None
    if holds:
        tested = ask(baseline, loaded.test, "test")
        plain_test = guard.judge(tested, answers(cell, tested.rows, "test"))
        test = guard.judge(tested, _answers(rescuer, choice, tested)) if rescuer else plain_test
        clock.lap("test")
    rescued = Rescued(
        model=baseline.model.name,
        dataset=loaded.name,
        variant=row.name,
        limit=limit,
        judged_by=judged_by,
        kept=choice.kept,
        every=choice.every,
        holds=holds,
        precision=_precision(cell),
        products=choice.products,
        plain=plain,
        plain_at_most=plain.drop_at_most,
        chosen=choice.judged,
        chosen_at_most=choice.judged.drop_at_most,
        test=test,
        plain_test=plain_test,
        latency_ratio=ratio,
        additivity=choice.additivity,
        priced=choice.priced and f"{choice.priced}; where the times are measured anew, the order can be another",
        searched=(looked(0, plain), *choice.searched),
        seconds=clock.laps,
    )
    if holds:
        build_folder(output, partial(_fill, rescued, rescuer, cell))
    return rescued


def _answers(rescuer: Rescuer, choice: Choice, documents: Documents) -> Logits:
    """Return the logits of the chosen mix."""
    run, logits = rescuer.classifier(choice.kept), []
    with progress("rescued, test", len(documents)) as advance:
        for number, encoding in enumerate(documents.encodings, start=1):
            logits.append(run(encoding))
            advance(number)
    return np.concatenate(logits)


def _precision(cell: Cell) -> str:
    """Return the precision of float layers, in short."""
    evidence = cell.classifier.evidence
    return {"bfloat16": "bf16", "float32": "fp32"}[evidence.get("attention", evidence["precision"])]


def _fill(rescued: Rescued, rescuer: Rescuer | None, cell: Cell, stage: Path) -> None:
    """Write the artefact and the record of why to `stage`."""
    variants.write_artefact(cell.variant, cell.checkpoint, stage, cell.suite.dataset, cell.max_length)
    if rescuer:
        rescuer.write(rescued.kept, stage)
    record = rescued.record() | {"machine": machine.identity(*cell.variant.packages)}
    (stage / REPORT).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    seal(stage)


class _Clock:
    """The seconds of steps that follow one another."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._start = time.monotonic()

    def lap(self, what: str) -> None:
        now = time.monotonic()
        self.laps[what], self._start = self.laps.get(what, 0.0) + now - self._start, now
