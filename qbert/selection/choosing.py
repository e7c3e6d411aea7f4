"""Find the fastest variant that holds the guard on this machine, reading no more documents than it takes."""

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import optimize

from qbert import variants
from qbert.inputs import dataset as datasets
from qbert.inputs import metrics
from qbert.inputs.bounds import Paired
from qbert.inputs.dataset import Dataset, text_rows
from qbert.measure import accuracy, capacity, footprint, latency, stats
from qbert.measure.cells import Cell, baseline_of
from qbert.measure.stats import CONFIDENCE
from qbert.selection.kept_answers import KeptAnswers
from qbert.system import machine
from qbert.system.cache import build_folder, is_filled, seal
from qbert.system.errors import CannotRunError, InputError
from qbert.system.terminal import an, counted, progress
from qbert.variants import BASELINE

if TYPE_CHECKING:
    import pandas as pd

    from qbert.selection.evaluation import Workers

Prefer = Literal["latency", "capacity", "size"]
RECORD = "choose.json"

FIRST_LOOK = 32  # documents at most
LOOKS = 3  # of them can show that a variant holds: at a quarter of the documents, at half, and at all
ROUNDS, TEXTS = 5, 12  # of the latency pass: 60 texts, enough for p95
MOST = 1_000  # times the documents at hand: nobody labels that many more
CAPACITY_S = 1.5  # for each variant, as in the bench


@dataclass(frozen=True)
class Wanted:
    """What the variant has to hold, and which of those that do is the best."""

    max_drop: float
    guard: str = "point"
    """`point`: a drop that is within the limit in all documents suffices; `interval`: it has to be surely within."""
    latency_limit_s: float | None = None
    """Of 95 of 100 texts."""
    max_disk_bytes: float | None = None
    max_memory_bytes: float | None = None
    """At the peak of a process that serves it."""
    prefer: Prefer = "latency"


@dataclass
class Row:
    """What is known of one variant."""

    variant: str
    latency_s: float | None = None
    """The mean of a block of texts, median of ROUNDS blocks."""
    p95_s: float | None = None
    disk_bytes: int = 0
    peak_rss_bytes: int | None = None
    texts_per_s: float | None = None
    verdict: str = "not read"
    """`holds` surely; `within` the limit in all documents, not surely; `unsure`: the same where it has to hold surely;
    `over`; `outside` of a limit other than the guard; `cannot` run; or `not read`."""
    why: str = ""
    documents: int = 0
    """How many it was judged by."""
    flips: int | None = None
    """None where any answer changes a little."""
    drop: float | None = None
    drop_at_most: float | None = None
    """What its drop surely does not exceed, however many variants are judged and however often."""
    documents_to_be_sure: int | None = None
    """If its drop stays as it is; None where it is sure, or over the limit."""

    @property
    def chosen(self) -> bool:
        """Whether it may be chosen."""
        return self.verdict in {"holds", "within"}


@dataclass
class Choice:
    """What was found, and what was written."""

    wanted: Wanted
    rows: list[Row]
    """The variants, best first."""
    documents: int
    """How many there were to judge by."""
    judged_by: str
    """Which these are, and whether the model has seen them, in words."""
    metric: str = metrics.F1_OF_ONE.key
    """The key of what the variants are judged by."""
    chosen: Row | None = None
    test: dict[str, Any] = field(default_factory=dict)
    """The figures of accuracy.Comparison for the chosen variant on the test split."""
    classified: int = 0
    """Answers that were computed in this call, of the documents above."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of the making, the latency pass and the races."""

    @property
    def sentence(self) -> str:
        """What to know of it."""
        return "\n".join([self._found(self.chosen) if self.chosen else self._nothing(), self.judged_by])

    def _found(self, chosen: Row) -> str:
        limit, metric = self.wanted.max_drop, metrics.named(self.metric)
        best = {"latency": "fastest", "capacity": "one with the highest capacity", "size": "smallest"}
        said = f"{chosen.variant} is the {best[self.wanted.prefer]} that holds a limit of {limit:g}"
        if chosen.variant == BASELINE:
            said += ", being the baseline"
        elif limit == 0 and metric.flip:
            said += f": it changes no {metric.flip} of {counted(chosen.documents, 'document')}"
        elif chosen.verdict == "holds":
            said += f", surely, after {chosen.documents} of {counted(self.documents, 'document')}"
        else:
            said += f" at a look: in all {self.documents} documents its {metric.short} drop is {chosen.drop:+.4f},"
            said += f" and surely no more than {chosen.drop_at_most:.4f}"
            if chosen.documents_to_be_sure:
                said += f" (about {chosen.documents_to_be_sure:,} would make it sure)"
        for row in self.rows[: self.rows.index(chosen)]:
            if row.documents_to_be_sure:
                said += f"; {row.variant} may hold it too: about {row.documents_to_be_sure:,} documents would tell"
        drop, documents = self.test["drop"], self.test["documents"]
        said += f". On the test split, read once, its {metric.short} drop is {drop:+.4f} ({documents} documents)"
        return said + ("." if drop <= limit else ": OVER THE LIMIT, so the choice is not confirmed.")

    def _nothing(self) -> str:
        limit, metric = self.wanted.max_drop, metrics.named(self.metric)
        judged = [row for row in self.rows if row.drop is not None and row.verdict != "cannot"]
        if not judged:
            left_out = [row for row in self.rows if row.verdict in {"outside", "cannot"}]
            reasons = "; ".join(f"{row.variant} {row.why}" for row in left_out)
            if any(row.verdict == "outside" for row in left_out):
                return f"No variant is within the limits: {reasons}. Raise a limit, or name more variants."
            return f"No variant can be judged: {reasons}. Name others."
        # What was dropped early is known less well, and is farther.
        nearest = min(judged, key=lambda row: (row.documents < self.documents, row.drop))
        drop, at_most = nearest.drop or 0.0, nearest.drop_at_most or 0.0
        said = f"No variant holds a limit of {limit:g}. The nearest is {nearest.variant}: its {metric.short} drop of "
        said += f"{drop:+.4f} in {counted(nearest.documents, 'document')} is "
        if limit == 0 and nearest.flips is not None:
            said += f"{counted(nearest.flips, f'changed {metric.flip}')} away from none"
        else:
            said += f"over by {drop - limit:.4f}" if drop > limit else f"within, and surely no more than {at_most:.4f}"
        helps = []
        if nearest.documents_to_be_sure:
            helps.append(f"more documents (about {nearest.documents_to_be_sure:,} decide, if its drop stays)")
        helps.append(f"a limit of {math.ceil(1e4 * at_most) / 1e4:.4f}")
        helps.append(f"{BASELINE} or another exact variant in --variants")
        return f"{said}. What would help: {', '.join(helps)}; a rescue may help: qbert rescue."

    def to_record(self) -> dict[str, Any]:
        """Return all figures that are known."""
        named = {"metric": self.metric}
        flips = {"flips": 0} if metrics.named(self.metric).flip else {}
        rows = [flips | {key: value for key, value in asdict(row).items() if value is not None} for row in self.rows]
        return {
            "metric": self.metric,
            "wanted": metrics.own_names(named | asdict(self.wanted)),
            "chosen": self.chosen and self.chosen.variant,
            "sentence": self.sentence,
            "variants": [metrics.own_names(named | row) for row in rows],
            "test": metrics.own_names(self.test),
            "documents": self.documents,
            "classified": self.classified,
            "seconds": self.seconds,
            "confidence": CONFIDENCE,
        }


def check_workers(workers: "Workers") -> None:
    """Raise InputError where a worker of `workers` is unlike this machine, for which a variant is chosen."""
    if workers.notes:
        raise InputError(f"a variant is chosen for this machine, and {workers.notes[0]}: leave that worker out")


def choose(
    model: str,
    dataset: str,
    names: str,
    output: Path,
    wanted: Wanted,
    *,
    validation: Path | None = None,
    max_length: int | None = None,
    workers: "Workers | None" = None,
) -> Choice:
    """Write the best variant of the list `names` that holds what is `wanted` to the folder `output`.

    It is chosen by the documents of `validation`, a file like train.csv, or by a part of the training split, and then
    judged by the test split once. Nothing is written if no variant holds. The workers of `workers`, if given and like
    this machine (check_workers), judge the documents; latency is this machine's.

    Raises:
        InputError: something cannot be used, no variant runs here, or `output` exists already.
    """
    if is_filled(output):
        raise InputError(f"{output} exists already: remove it or name another folder")
    chosen = {variant.name: variant for variant in variants.select(names)}
    loaded = datasets.load(dataset)
    baseline = baseline_of(model, loaded, max_length)
    calibration = variants.CALIBRATION_DOCUMENTS if any(row.calibrated for row in chosen.values()) else 0
    trained_on = baseline.checkpoint.record.get("dataset_sha256")
    documents, judged_by = loaded.to_choose_by(validation, calibration, trained_on)
    started = time.monotonic()
    _ = baseline.classifier  # an error of the model is no variant's
    wanted_cells = [baseline.suite.cell(baseline.model.name, baseline.max_length, variant) for variant in chosen]
    baseline.suite.make(wanted_cells)
    cells, rows = _built(wanted_cells)
    if not cells:
        raise InputError(f"none of {names} runs here: {'; '.join(row.why for row in rows)}")
    made = time.monotonic()
    texts = text_rows(documents)
    _time(cells, rows, texts)
    _narrow(cells, rows, texts, wanted)
    rows.sort(key=lambda row: (row.verdict == "cannot", row.verdict == "outside", _order(row, wanted.prefer)))
    timed = time.monotonic()
    choice = Choice(wanted, rows, len(documents), judged_by, baseline.metric.key)
    judge = _Judge(baseline, documents, wanted, sum(row.verdict == "not read" for row in rows), workers)
    choice.chosen = next((row for row in rows if judge.holds(cells, row)), None)
    choice.classified = judge.classified
    raced = time.monotonic()
    choice.seconds = {"making": made - started, "latency": timed - made, "races": raced - timed}
    if choice.chosen:
        cell = cells[choice.chosen.variant]
        choice.test = _on_test(cell, baseline, loaded, workers)
        _write(output, cell, choice, baseline.max_length)
    return choice


def _built(cells: Iterable[Cell]) -> tuple[dict[str, Cell], list[Row]]:
    """Return those of `cells` that can run, by variant, and a row for each."""
    able, rows = {}, []
    for cell in cells:
        row = Row(cell.variant.name)
        rows.append(row)
        try:
            _ = cell.classifier
        except CannotRunError as error:
            row.verdict, row.why = "cannot", str(error)
            continue
        able[row.variant] = cell
        row.disk_bytes = cell.disk_bytes
    return able, rows


def _time(cells: Mapping[str, Cell], rows: Iterable[Row], texts: Sequence[tuple[str, ...]]) -> None:
    """Time the `cells` in turns, all on the same texts at their own lengths, and note it in their `rows`."""
    numbers = capacity.representative(texts, ROUNDS * TEXTS)
    first = next(iter(cells.values()))
    encodings = [first.encoder(*texts[number], max_length=first.max_length) for number in numbers]
    blocks: dict[str, list[list[float]]] = {name: [] for name in cells}
    costs: dict[str, float] = {}
    with machine.one_core(), progress("latency, turn", (ROUNDS + 1) * len(cells)) as advance:
        for turn in range(-1, ROUNDS):  # the first turn warms up
            for place, (name, cell) in enumerate(cells.items()):
                classifier = cell.classifier
                if turn < 0:
                    calls = [latency.time_call(classifier, encoding) for encoding in encodings[:TEXTS]]
                    costs[name] = float(np.median(calls))
                else:
                    for number in range(latency.settling_calls(costs[name])):
                        classifier(encodings[number % len(encodings)])
                    block = encodings[turn * TEXTS : (turn + 1) * TEXTS]
                    blocks[name].append([latency.time_call(classifier, encoding) for encoding in block])
                advance((turn + 1) * len(cells) + place + 1)
    for row in rows:
        if row.variant in blocks:
            row.latency_s = float(np.median([np.mean(block) for block in blocks[row.variant]]))
            row.p95_s = accuracy.percentiles(np.concatenate(blocks[row.variant]))["p95_s"]


def _narrow(cells: Mapping[str, Cell], rows: Iterable[Row], texts: Sequence[tuple[str, ...]], wanted: Wanted) -> None:
    """Mark the `rows` that are outside a limit other than the guard, and measure what the others are preferred by."""

    def outside(row: Row, value: float | None, limit: float | None, what: str, scale: float, unit: str) -> None:
        if limit is not None and value is not None and value > limit and row.verdict == "not read":
            row.verdict = "outside"
            row.why = f"{what} {value * scale:.3g} {unit} (limit {limit * scale:.3g})"

    for row in rows:
        if row.verdict != "not read":
            continue
        cell = cells[row.variant]
        outside(row, row.p95_s, wanted.latency_limit_s, "takes", 1e3, "ms for 95 of 100 texts")
        outside(row, row.disk_bytes, wanted.max_disk_bytes, "takes", 1e-6, "MB of disk")
        if row.verdict == "not read" and wanted.max_memory_bytes is not None:
            longest = cell.encoder(*max(texts, key=lambda text: sum(map(len, text))), max_length=cell.max_length)
            row.peak_rss_bytes = footprint.measure(cell.variant, cell.folder, longest).peak_rss_bytes
            outside(row, row.peak_rss_bytes, wanted.max_memory_bytes, "takes", 1e-6, "MB of memory")
        if row.verdict == "not read" and wanted.prefer == "capacity":
            load = capacity.Load(texts, "the documents it is chosen by", seconds=CAPACITY_S)
            row.texts_per_s = capacity.measure(cell, load)[1]["texts_per_s"]


def _order(row: Row, prefer: Prefer) -> tuple[float, float]:
    """Return what sorts the best row first."""
    latency_s = row.latency_s or 0.0
    return {"size": row.disk_bytes, "capacity": -(row.texts_per_s or 0.0), "latency": latency_s}[prefer], latency_s


class _Judge:
    """Judges variants by documents in one random order, more of them only if those before do not decide."""

    def __init__(
        self, baseline: Cell, documents: "pd.DataFrame", wanted: Wanted, variants: int, workers: "Workers | None"
    ) -> None:
        """Start with what is kept of the baseline's answers, to judge so many `variants`."""
        self._texts, self._documents, self._dataset = text_rows(documents), documents, baseline.dataset
        self._metric = baseline.metric
        self._wanted, self._workers = wanted, workers
        self._baseline = KeptAnswers(baseline, workers)
        truth = self._metric.truth(self._dataset, documents)
        self._looks = list(dict.fromkeys(self._metric.whole(truth, count) for count in looks(len(self._texts))))
        # All that are said to hold surely do, with a chance of CONFIDENCE; each that is dropped is over with that.
        self._to_hold = stats.bonferroni(CONFIDENCE, LOOKS * variants)
        self._to_drop = stats.bonferroni(CONFIDENCE, len(self._looks))
        self._classified = 0

    @property
    def classified(self) -> int:
        """How many answers were computed."""
        return self._classified + self._baseline.classified

    def holds(self, cells: Mapping[str, Cell], row: Row) -> bool:
        """Judge `row`, unless something else has; return whether it may be chosen."""
        if row.verdict == "not read" and row.variant == BASELINE:
            row.verdict = "holds"
        elif row.verdict == "not read":
            answers = KeptAnswers(cells[row.variant], self._workers)
            try:
                with progress(f"judging {row.variant}, document", len(self._texts)) as advance:
                    for count in self._looks:
                        advance(row.documents)
                        self._look(answers, row, count)
                        if row.verdict != "not read":
                            break
            except CannotRunError as error:
                row.verdict, row.why = "cannot", str(error)
            self._classified += answers.classified
        return row.chosen

    def _look(self, answers: KeptAnswers, row: Row, count: int) -> None:
        """Judge by the first `count` documents."""
        limit, documents, metric = self._wanted.max_drop, len(self._texts), self._metric
        truth = metric.truth(self._dataset, self._documents[:count])
        before, after = (metric.answers(side.logits(self._texts[:count])) for side in (self._baseline, answers))
        paired = metric.paired(truth, before, after)
        row.documents, row.flips = count, metric.figures(truth, before, after).get("flips")
        row.drop, row.drop_at_most = paired.drop, paired.at_most(self._to_hold)
        if limit == 0 and row.flips is not None:  # documents can show no true drop of exactly 0 where answers change
            if row.flips:
                row.verdict, row.why = "over", f"changes {an(metric.flip)} within {counted(count, 'document')}"
            elif count == documents:
                row.verdict = "within"
        elif row.drop_at_most <= limit and count in self._looks[-LOOKS:]:
            row.verdict = "holds"
        elif paired.at_least(self._to_drop) > limit:
            row.verdict = "over"
        elif count == documents:
            row.documents_to_be_sure = documents_to_be_sure(paired, documents, limit, self._to_hold)
            row.verdict = "unsure" if self._wanted.guard == "interval" else "within"
            if row.drop > limit:
                row.verdict = "over"


def looks(documents: int) -> list[int]:
    """Return after how many of the `documents` a variant is judged: of all, of half of them, and so on."""
    halvings = max(0, math.ceil(math.log2(documents / FIRST_LOOK)))
    return [math.ceil(documents / 2**number) for number in reversed(range(halvings + 1))]


def documents_to_be_sure(paired: Paired, documents: int, limit: float, confidence: float) -> int | None:
    """Return about how many documents like the `documents` seen, to two digits, show the drop to be within `limit`.

    None if the drop is not within the limit, or so little that MOST times as many do not show it.
    """

    def excess(times: float) -> float:
        return paired.at_most(confidence, times) - limit

    if excess(MOST) > 0:
        return None
    needed = documents * float(optimize.brentq(excess, 1.0, MOST, rtol=1e-3))
    digits: int = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return digits * math.ceil(needed / digits)


def _on_test(cell: Cell, baseline: Cell, loaded: Dataset, workers: "Workers | None" = None) -> dict[str, Any]:
    """Judge the chosen `cell` by the test split."""
    texts = text_rows(loaded.test)
    sides = []
    for side in (baseline, cell):
        with progress(f"test split, {side.variant.name}, document", len(texts)) as advance:
            sides.append(KeptAnswers(side, workers).logits(texts, advance))
    return cell.compare(loaded.test, *sides).figures()


def _write(output: Path, cell: Cell, choice: Choice, max_length: int) -> None:
    """Write what `qbert quantize` writes, and why it was chosen."""
    record = choice.to_record() | {
        "model": cell.model.name,
        "max_length": max_length,
        "dataset": cell.suite.dataset.name,
        "dataset_sha256": cell.suite.dataset.sha256,
        "checkpoint_sha256": cell.checkpoint.sha256,
        "identity": machine.identity(*cell.variant.packages),
        "disturbances": machine.disturbances(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }

    def fill(stage: Path) -> None:
        variants.write_artefact(cell.variant, cell.checkpoint, stage, cell.suite.dataset, max_length)
        text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
        (stage / RECORD).write_text(text + os.linesep, encoding="utf-8")
        seal(stage)

    build_folder(output, fill)
