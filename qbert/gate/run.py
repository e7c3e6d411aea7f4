"""Compare head with base in one job: pairs of processes alternate on one core until each cell's verdict is sure."""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from qbert import __version__
from qbert import variants as table
from qbert.gate.sides import Side, Subject, Worker
from qbert.inputs import metrics
from qbert.inputs.settings import Limit
from qbert.measure import accuracy, stats
from qbert.measure.stats import CONFIDENCE
from qbert.results import compare
from qbert.system.errors import CannotRunError, InputError
from qbert.system.terminal import counted, progress, say

# In a pair, each cell is timed until its ABBAs give the log ratio with the standard error ERROR: for at least SECONDS
# and ABBAS, and at most MOST_SECONDS unless one ABBA takes longer.
SECONDS = 0.5
ABBAS = 6
MOST_SECONDS = 2.0
ERROR = 0.008
LEAST_SECONDS, SECONDS_PER_CELL = 240, 40  # on a quiet machine half of it is enough
PREPARE_TIMEOUT_S = 3600  # a training or a compilation may be under way

PASSED, REGRESSION, USAGE, INCONCLUSIVE, NOT_COMPARABLE = range(5)
"""The exit codes of `qbert gate`."""


@dataclass(frozen=True)
class Budget:
    """When to stop adding pairs."""

    min_effect: float = stats.MIN_EFFECT
    min_drop: float = stats.MIN_DROP
    max_pairs: int = 40
    max_seconds: float | None = None
    """For timing, without building; None: by the number of cells."""
    timeout_s: float = 60
    """A side that does not answer within this time counts as hanging."""

    def seconds(self, cells: int) -> float:
        """Return the time for the pairs of this number of cells."""
        return self.max_seconds or max(LEAST_SECONDS, SECONDS_PER_CELL * cells)


@dataclass
class Cell:
    """One model, maximum length and variant on both sides, with its results."""

    model: str
    """Head's name for the model."""
    max_length: int
    variant: str
    base_model: str
    min_effect: float
    slowdown: float = 0.0
    """Slowdown added to head on purpose, as a share of each call."""
    verdict: str = "inconclusive"
    differs: list[str] = field(default_factory=list)
    """Why it is not comparable."""
    log_ratios: list[float] = field(default_factory=list)
    """Logarithms of head over base, one per pair of processes."""
    base_s: list[float] = field(default_factory=list)
    head_s: list[float] = field(default_factory=list)
    change: tuple[float, float, float] = (math.nan, -math.inf, math.inf)
    """The median log ratio, and its interval."""
    judged: dict[str, Any] = field(default_factory=dict)
    """The figures of accuracy.Comparison, with base as the baseline, and the verdict; empty without a trained head."""
    load: dict[str, Any] = field(default_factory=dict)
    """How the worker of each side, by its name, loads the cell."""
    base_disk_bytes: int | None = None
    head_disk_bytes: int | None = None
    timed_s: float = 0.0
    """How long its timing took."""
    over: list[str] = field(default_factory=list)
    """A sentence for each limit that head exceeds."""
    told: list[str] = field(default_factory=list)
    """Notes that do not affect the verdict, each a sentence."""

    @property
    def name(self) -> str:
        """The name, as in test ids."""
        return f"{self.model}-{self.max_length}-{self.variant}"

    def add(self, base_s: Sequence[float], head_s: Sequence[float]) -> None:
        """Add a pair of processes: the seconds of each side's calls in its ABBAs."""
        self.log_ratios.append(float(np.median(log_ratios(base_s, head_s))))
        self.base_s.append(float(np.median(base_s)))
        self.head_s.append(float(np.median(head_s)))

    def judge(self, confidence: float) -> None:
        """Set the verdict from the pairs so far."""
        self.change = stats.signed_rank_interval(self.log_ratios, confidence)
        self.verdict = stats.verdict(*self.change[1:], self.min_effect)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON: `change` is head over base less 1, `base_s` and `head_s` are medians of pairs."""
        result = asdict(self)
        del result["load"]
        for name, value in zip(("change", "change_low", "change_high"), result.pop("change"), strict=True):
            result[name] = math.expm1(value) if math.isfinite(value) else None
        medians = {side: float(np.median(result[side])) if result[side] else None for side in ("base_s", "head_s")}
        return result | medians


def run(
    base: Side,
    head: Side,
    subject: Subject,
    budget: Budget,
    *,
    limits: Sequence[Limit] = (),
    may_differ: Collection[str] = (),
    slowdowns: Callable[[Cell], Sequence[tuple[float, float]]] = lambda _: (),
    every_pair: bool = False,
    against_itself: bool = False,
    strict: bool = False,
) -> dict[str, Any]:
    """Compare `head` with `base`: return the figures of each cell and the `exit_code` as a dictionary for JSON.

    `may_differ` names the keys of the sides' identity that may differ (compare.SUBJECT). For each (slowdown, minimum
    effect) that `slowdowns` returns for a cell, a copy of the cell is measured with that slowdown added to head. With
    `every_pair` each cell is measured in all `budget.max_pairs`, even if its verdict is sure. Equal sides are refused
    unless `against_itself`: their comparison would check nothing. With `strict` an inconclusive verdict affects the
    exit code.

    Raises:
        InputError: head finds a mistake in the request, or both sides are the same.
        SideError: a side cannot run.
    """
    start = time.monotonic()
    records = {}
    timeout_s = max(PREPARE_TIMEOUT_S, budget.timeout_s)
    with Worker(base, subject, timeout_s=timeout_s, shown=True) as on_base:
        with Worker(head, subject, timeout_s=timeout_s, shown=True) as on_head:
            for worker in (on_head, on_base):
                worker.send_open()
            # Head's answer is read first: a mistake in the request shows there and is the user's.
            opened = {worker.side.name: worker.receive() for worker in (on_head, on_base)}
            if not against_itself:
                refuse_equal_sides(on_base, on_head)
            records["head"] = _prepare(on_head, opened["head"], subject, limits)
        records["base"] = _prepare(on_base, opened["base"], subject, ())
    cells = compared(records["base"], records["head"], budget, limits, may_differ)
    comparable = [cell for cell in cells if cell.verdict == "inconclusive"]
    slowed = [
        replace(cell, slowdown=slowdown, min_effect=min_effect, log_ratios=[], base_s=[], head_s=[], judged={}, over=[])
        for cell in comparable
        for slowdown, min_effect in slowdowns(cell)
    ]
    prepared = time.monotonic()
    short = _measure(base, head, subject, budget, comparable + slowed, every_pair=every_pair)
    measured = time.monotonic()
    judge_latency(comparable, limits)
    return {
        "qbert": __version__,
        "sides": {
            side.name: asdict(side)
            | {"tree": side.tree and str(side.tree)}
            | {"identity": next((record["identity"] for record in records[side.name].values()), {})}
            for side in (base, head)
        },
        "settings": asdict(subject) | asdict(budget),
        "cells": [cell.as_dict() for cell in cells + slowed],
        "too_short": short,
        "prepare_s": prepared - start,
        "measure_s": measured - prepared,
        "exit_code": exit_code(cells, strict=strict),
    }


def exit_code(cells: Sequence[Cell], *, strict: bool = False) -> int:
    """Return the gate's exit code; REGRESSION comes before NOT_COMPARABLE, that before INCONCLUSIVE.

    It is INCONCLUSIVE if latency was timed but no verdict on it is sure; with `strict`, if any verdict is not sure.
    """
    if any(cell.verdict == "slower" or cell.judged.get("drop_verdict") == "worse" or cell.over for cell in cells):
        return REGRESSION
    if not cells or any(cell.verdict == "not comparable" for cell in cells):
        return NOT_COMPARABLE
    unsure = [cell for cell in cells if cell.verdict == "inconclusive"]
    none_decided = unsure and not any(cell.verdict in stats.DECIDED for cell in cells)
    unsure_drop = any(cell.judged.get("drop_verdict") == "inconclusive" for cell in cells)
    return INCONCLUSIVE if none_decided or (strict and (unsure or unsure_drop)) else PASSED


Key = tuple[int, int, str]
"""A cell's model as index, its maximum length and its variant: the models' names differ between the sides."""
Record = dict[str, Any]


def refuse_equal_sides(base: Worker, head: Worker) -> None:
    """Raise InputError if both sides have the same code, libraries, models and dataset."""
    on_base, on_head = (worker.ask("fingerprints") for worker in (base, head))
    if on_base["same"] != on_head["same"]:
        return
    ref, tree = base.side.ref, head.side.tree
    paths = [Path(name) for name in (*head.side.models, head.side.dataset, *on_head["files"])]
    outside = ref and tree and not any(path.is_absolute() and path.resolve().is_relative_to(tree) for path in paths)
    raise InputError(
        f"base{f' ({ref})' if ref else ''} and head have the same code, libraries, models and dataset"
        f"{f', none of them from the repository {tree}' if outside else ''}, so nothing could be found worse: "
        "name another --base-ref, --base-python, --base-model or --base-dataset"
    )


def _prepare(worker: Worker, opened: Any, subject: Subject, limits: Sequence[Limit]) -> dict[Key, Record]:  # noqa: ANN401
    """Build every cell of a side once and return its description, its size and, if its head is trained, its answers."""
    records: dict[Key, Record] = {}
    keys = [
        (number, max_length, variant)
        for number in range(len(opened["models"]))
        for max_length in subject.max_lengths
        for variant in opened["variants"]
    ]
    with progress(f"preparing {worker.side.name}", len(keys)) as advance:
        for done, (number, max_length, variant) in enumerate(keys, start=1):
            named = {"model": opened["models"][number], "max_length": max_length, "variant": variant}
            try:
                record = worker.ask("prepare", **named)
                if record["trained"]:
                    record |= worker.ask("judge", documents=subject.documents, **named)
            except CannotRunError as error:
                if worker.side.name == "head" and variant in table.named(subject.variants):
                    raise
                say(f"{worker.side.name} leaves out a cell: {error}")
                continue
            if any(limit.covers(**named) and math.isfinite(limit.max_memory_mb) for limit in limits):
                record["peak_rss_bytes"] = worker.ask("peak_memory", **named)
            records[number, max_length, variant] = record
            advance(done)
    return records


def compared(
    base: dict[Key, Record],
    head: dict[Key, Record],
    budget: Budget,
    limits: Sequence[Limit],
    may_differ: Collection[str],
) -> list[Cell]:
    """Return the cells of both sides, with all results that need no timing: comparability, answers, other limits."""
    cells = []
    confidence = stats.bonferroni(CONFIDENCE, sum("answers" in record for record in head.values()))
    for key in dict.fromkeys([*head, *base]):
        after = head.get(key) or base[key]
        before = base.get(key) or after
        cell = Cell(after["model"], after["max_length"], after["variant"], before["model"], budget.min_effect)
        cells.append(cell)
        if key not in base:
            cell.verdict, cell.differs = "new", ["only head has it"]
        elif key not in head:
            cell.verdict, cell.differs = "not comparable", ["only base has it"]
        elif differs := compare.differences(before["identity"], after["identity"], may_differ=may_differ):
            cell.verdict, cell.differs = "not comparable", differs
        elif "answers" in after and "answers" in before:
            cell.judged = accuracy.compare_answers(before["answers"], after["answers"], confidence, budget.min_drop)
            cell.told = over_own_limit(before, after)
        if key in head and key in base:
            cell.load = {"base": before["load"], "head": after["load"]}
            cell.base_disk_bytes, cell.head_disk_bytes = before["disk_bytes"], after["disk_bytes"]
        if key in head:
            covering = [limit for limit in limits if limit.covers(cell.model, cell.max_length, cell.variant)]
            cell.over = [sentence for limit in covering for sentence in _over(after, limit)]
    return cells


def over_own_limit(base: Record, head: Record) -> list[str]:
    """Return a sentence if head's drop against fp32 is over the variant's own limit: whether base's is, too."""
    over = [record["drop"] > record["max_drop"] for record in (base, head)]
    if not over[1]:
        return []
    was = "as base's is" if over[0] else "base's is not"
    figures = f"{base['drop']:+.4f} -> {head['drop']:+.4f}"
    short = metrics.named(head["answers"].get("metric")).short
    return [f"{short} drop against fp32 {figures}, over the variant's own limit {head['max_drop']:g}, {was}"]


def judge_latency(cells: Iterable[Cell], limits: Sequence[Limit]) -> None:
    """Note in each of the `cells` that was timed the limits on latency that head exceeds."""
    for cell in (cell for cell in cells if cell.head_s):
        latency_ms = float(np.median(cell.head_s)) * 1e3
        for limit in limits:
            if limit.covers(cell.model, cell.max_length, cell.variant) and latency_ms > limit.max_latency_ms:
                cell.over.append(f"latency {latency_ms:.4g} ms > {limit.max_latency_ms:g} ms")


def _over(record: Record, limit: Limit) -> list[str]:
    """Return a sentence for each limit on the drop, size and memory that `record` exceeds."""
    short = metrics.named(record.get("answers", {}).get("metric")).short
    figures = (
        (f"{short} drop", record.get("drop", -math.inf), limit.drop, ""),
        ("disk", record["disk_bytes"] / 1e6, limit.max_disk_mb, " MB"),
        ("memory", record.get("peak_rss_bytes", 0) / 1e6, limit.max_memory_mb, " MB"),
    )
    return [f"{name} {value:.4g}{unit} > {most:g}{unit}" for name, value, most, unit in figures if value > most]


def _measure(
    base: Side, head: Side, subject: Subject, budget: Budget, cells: Sequence[Cell], *, every_pair: bool
) -> str:
    """Add pairs of processes until each cell's verdict is sure, or the budget ends.

    The starting order of the sides is random and balanced within every two pairs, so that no periodic disturbance
    always hits the same side. If the budget is too short for any verdict, stop after the first pair and return why.
    """
    max_seconds = budget.seconds(len(cells))
    start = time.monotonic()
    longest = 0.0
    pending = list(cells)
    rng = np.random.default_rng()
    orders = random_orders(base, head, rng)
    with progress("timing pairs, of the seconds allowed", round(max_seconds)) as advance:
        for number in range(budget.max_pairs):
            if not pending or time.monotonic() - start + longest > max_seconds:
                break
            pair_start = time.monotonic()
            first, second = next(orders)
            with (
                Worker(first, subject, timeout_s=budget.timeout_s) as first_worker,
                Worker(second, subject, timeout_s=budget.timeout_s) as second_worker,
            ):
                _time_pair((first_worker, second_worker), pending, rng)
            longest = max(longest, time.monotonic() - pair_start)
            judge(pending, budget.max_pairs)
            if number == 0 and not every_pair and (short := too_short(len(cells), longest, budget)):
                say(short)
                return short
            pending = [cell for cell in cells if every_pair or cell.verdict == "inconclusive"]
            sure = sum(cell.verdict != "inconclusive" for cell in cells)
            spent = max((number + 1) / budget.max_pairs, (time.monotonic() - start) / max_seconds)
            advance(round(spent * max_seconds), f"{number + 1} pairs, {sure} of {len(cells)} sure")
    return ""


T = TypeVar("T")


def random_orders(a: T, b: T, rng: np.random.Generator) -> Iterator[tuple[T, T]]:
    """Yield (a, b) and (b, a) endlessly: once each within every two, in random order."""
    while True:
        orders = [(a, b), (b, a)]
        rng.shuffle(orders)
        yield from orders


def judge(cells: Sequence[Cell], looks: int) -> None:
    """Set the verdicts of `cells` after one of at most `looks` pairs, so that all of them hold together.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure": cells that are sure while all share
    the error pass their share to the others.
    """
    pending = list(cells)
    while pending:
        confidence = stats.over_looks(stats.bonferroni(CONFIDENCE, len(pending)), looks)
        for cell in pending:
            cell.judge(confidence)
        unsure = [cell for cell in pending if cell.verdict == "inconclusive"]
        if len(unsure) == len(pending):
            return
        pending = unsure


def min_pairs(cells: int, looks: int) -> int:
    """Return the least number of pairs after which the first of `cells` can be sure, with up to `looks` looks."""
    return stats.min_sample_size(stats.over_looks(stats.bonferroni(CONFIDENCE, cells), looks))


def too_short(cells: int, pair_s: float, budget: Budget) -> str:
    """Return why the budget is too short for `cells` with pairs of `pair_s`, and what would do; empty if it is not."""
    seconds, needed = budget.seconds(cells), min_pairs(cells, budget.max_pairs)
    if needed > budget.max_pairs:
        return f"for {counted(cells, 'cell')} {needed} pairs are needed at least: give --max-pairs {2 * needed}"
    if needed * pair_s <= seconds:
        return ""
    fit = next(
        (
            fewer
            for fewer in range(cells, 0, -1)
            if min_pairs(fewer, budget.max_pairs) * pair_s * fewer / cells <= seconds
        ),
        0,
    )
    fewer = f", or name {counted(fit, 'cell')} or fewer (--variants, --max-lengths, --model)" if fit else ""
    return (
        f"for {counted(cells, 'cell')} {needed} pairs of {pair_s:.0f} s are needed at least, and {seconds:.0f} s hold "
        f"{int(seconds / pair_s)}: give --max-seconds {math.ceil(1.5 * needed * pair_s / 10) * 10}{fewer}"
    )


def _time_pair(workers: tuple[Worker, Worker], cells: Sequence[Cell], rng: np.random.Generator) -> None:
    """Time each cell on both workers in turn; the cells of a model are built together, on both sides at once.

    The side that begins an ABBA is random and balanced within every two.
    """
    for model in dict.fromkeys(cell.model for cell in cells):
        costs: dict[str, float] = {}
        of_model = [cell for cell in cells if cell.model == model]
        for cell in {cell.name: cell for cell in of_model}.values():
            for worker in workers:
                worker.send("build", cell=cell.name, model=model, load=cell.load[worker.side.name])
            costs[cell.name] = max(worker.receive() for worker in workers)
        for cell in of_model:
            start = time.monotonic()
            seconds: dict[str, list[float]] = {"base": [], "head": []}
            orders = random_orders(*workers, rng)
            while not is_enough(log_ratios(seconds["base"], seconds["head"]), time.monotonic() - start):
                first, second = next(orders)
                for worker in (first, second, second, first):
                    slowdown = cell.slowdown if worker.side.name == "head" else 0.0
                    worker.send("time", cell=cell.name, cost_s=costs[cell.name], slowdown=slowdown)
                    seconds[worker.side.name].append(worker.receive())
            cell.add(seconds["base"], seconds["head"])
            cell.timed_s += time.monotonic() - start


def log_ratios(base_s: Sequence[float], head_s: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the log ratio, head over base, of each ABBA, which has two turns of each side."""
    ratios = np.log(head_s) - np.log(base_s)
    return np.asarray((ratios[::2] + ratios[1::2]) / 2)


def is_enough(ratios: npt.NDArray[np.float64], spent_s: float) -> bool:
    """Whether a pair has enough ABBAs of a cell after `spent_s`; `ratios` are their log ratios.

    Source: the standard error of a median of normal values; their standard deviation is estimated from the median
    absolute deviation, robust to bursts: Rousseeuw and Croux 1993, "Alternatives to the Median Absolute Deviation".
    """
    count = len(ratios)
    if not count or spent_s < SECONDS:
        return False
    if spent_s * (count + 1) / count > MOST_SECONDS:
        return True
    spread = 1.4826 * float(np.median(np.abs(ratios - np.median(ratios))))
    return count >= ABBAS and math.sqrt(math.pi / 2) * spread / math.sqrt(count) <= ERROR


def calibrated(result: dict[str, Any], slowdowns: Sequence[float]) -> list[dict[str, Any]]:
    """Return the chance of a gate to find each of `slowdowns` in a cell, from a calibration's `result`.

    Each row has a slowdown, with a minimum effect of half of it. `found` is the chance for the spread of the noisiest
    cell's pairs, `found_at_least` that for the upper end of the spread's 95 % interval, and `false_alarms` the chance
    that the cell is called slower without a slowdown.

    Source: the interval is that of a variance of normal values (chi-squared). The chances come from SIMULATIONS
    simulated gates, with the error of all cells shared as for the first verdict.
    """
    from scipy import special  # scipy.stats takes a second to import

    cells = [cell["log_ratios"] for cell in result["cells"] if len(cell["log_ratios"]) > 1]
    if not cells:
        return []
    looks = result["settings"]["max_pairs"]
    confidence = stats.over_looks(stats.bonferroni(CONFIDENCE, len(cells)), looks)
    spread = max(float(np.std(ratios, ddof=1)) for ratios in cells)
    freedom = min(map(len, cells)) - 1
    spread_high = spread * math.sqrt(freedom / float(special.chdtri(freedom, (1 + CONFIDENCE) / 2)))
    noise = np.random.default_rng(0).standard_normal((SIMULATIONS, looks))

    def called_slower(slowdown: float, sd: float, min_effect: float) -> float:
        verdicts = stats.verdicts(math.log1p(slowdown) + sd * noise, confidence, min_effect)
        first = np.take_along_axis(verdicts, (verdicts != "inconclusive").argmax(axis=1)[:, None], axis=1)
        return float((first == "slower").mean())

    return [
        {
            "slowdown": slowdown,
            "cells": len(cells),
            "spread": spread,
            "found": called_slower(slowdown, spread, slowdown / 2),
            "found_at_least": called_slower(slowdown, spread_high, slowdown / 2),
            "false_alarms": called_slower(0.0, spread, slowdown / 2),
        }
        for slowdown in slowdowns
    ]


SIMULATIONS = 4000
