"""Base against head in one job: pairs of processes that alternate on one core, until each cell's verdict is sure."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from qbert import __version__, accuracy, stats
from qbert import variants as table
from qbert.errors import CannotRunError, InputError
from qbert.gate.sides import Side, Subject, Worker
from qbert.results import compare
from qbert.settings import Limit
from qbert.stats import CONFIDENCE
from qbert.terminal import counted, progress, say

# So long each cell is timed in a pair: until its ABBAs tell the logarithm of its ratio within the standard error ERROR,
# but no shorter than SECONDS or ABBAS, and no longer than MOST_SECONDS unless one ABBA takes longer.
SECONDS = 0.5
ABBAS = 6
MOST_SECONDS = 2.0
ERROR = 0.008
LEAST_SECONDS, SECONDS_A_CELL = 240, 40  # on a quiet machine half of it is enough
PREPARE_TIMEOUT_S = 3600  # a training or a compilation may be under way

PASSED, REGRESSION, USAGE, INCONCLUSIVE, NOT_COMPARABLE = range(5)
"""What `qbert gate` exits with."""


@dataclass(frozen=True)
class Budget:
    """When to stop adding pairs."""

    min_effect: float = stats.MIN_EFFECT
    min_f1_effect: float = stats.MIN_F1_EFFECT
    max_pairs: int = 40
    max_seconds: float | None = None
    """Of timing; what has to be built before is not counted. By the number of cells where it is None."""
    timeout_s: float = 60
    """A side that does not answer for so long is hanging."""

    def seconds(self, cells: int) -> float:
        """Return the time for the pairs of so many cells."""
        return self.max_seconds or max(LEAST_SECONDS, SECONDS_A_CELL * cells)


@dataclass
class Cell:
    """One model, maximum length and variant on both sides, and what was found."""

    model: str
    """Head's name of it."""
    max_length: int
    variant: str
    base_model: str
    min_effect: float
    slowdown: float = 0.0
    """Put into head on purpose, as a share of each call."""
    verdict: str = "inconclusive"
    differs: list[str] = field(default_factory=list)
    """Why it is not comparable."""
    log_ratios: list[float] = field(default_factory=list)
    """Head over base, one a pair of processes."""
    base_s: list[float] = field(default_factory=list)
    head_s: list[float] = field(default_factory=list)
    change: tuple[float, float, float] = (math.nan, -math.inf, math.inf)
    """The median log ratio, and its interval."""
    f1: dict[str, Any] = field(default_factory=dict)
    """The fields of accuracy.Comparison, base for the baseline, and the verdict; empty without a trained head."""
    load: dict[str, Any] = field(default_factory=dict)
    """Of each side's name, how its worker loads the cell."""
    base_disk_bytes: int | None = None
    head_disk_bytes: int | None = None
    timed_s: float = 0.0
    """How long the timing of it took."""
    over: list[str] = field(default_factory=list)
    """Limits that head exceeds, each in words."""
    told: list[str] = field(default_factory=list)
    """What to know of it that decides nothing, each in words."""

    @property
    def name(self) -> str:
        """As in test ids."""
        return f"{self.model}-{self.max_length}-{self.variant}"

    def add(self, base_s: Sequence[float], head_s: Sequence[float]) -> None:
        """Add a pair of processes, each with the calls of its ABBAs."""
        self.log_ratios.append(float(np.median(log_ratios(base_s, head_s))))
        self.base_s.append(float(np.median(base_s)))
        self.head_s.append(float(np.median(head_s)))

    def judge(self, confidence: float) -> None:
        """Take the verdict by the pairs that there are."""
        self.change = stats.signed_rank_interval(self.log_ratios, confidence)
        self.verdict = stats.verdict(*self.change[1:], self.min_effect)

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; `change` is head over base less 1, `base_s` and `head_s` are medians of pairs."""
        shown = asdict(self)
        del shown["load"]
        for name, value in zip(("change", "change_low", "change_high"), shown.pop("change"), strict=True):
            shown[name] = math.expm1(value) if math.isfinite(value) else None
        return shown | {side: float(np.median(shown[side])) if shown[side] else None for side in ("base_s", "head_s")}


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
    """Hold `head` against `base`: the figures of each cell, and `exit_code`, in a dictionary that JSON can hold.

    `may_differ` names what of the sides' identity may differ (compare.SUBJECT). For each (slowdown, minimum effect)
    that `slowdowns` gives for a cell, a copy of it is measured beside it with that slowdown put into head. With
    `every_pair` each cell is measured in all of `budget.max_pairs`, however sure its verdict. Sides that are the same
    are refused unless `against_itself`: nothing that could change would have been looked at. With `strict` a verdict
    that is not sure decides the exit code.

    Raises:
        InputError: head finds a mistake in what the person asked for, or both sides are the same.
        SideError: a side cannot run.
    """
    start = time.monotonic()
    found = {}
    timeout_s = max(PREPARE_TIMEOUT_S, budget.timeout_s)
    with Worker(base, subject, timeout_s=timeout_s, shown=True) as on_base:
        with Worker(head, subject, timeout_s=timeout_s, shown=True) as on_head:
            for worker in (on_head, on_base):
                worker.send_open()
            # A mistake in what was asked for shows at head, and is the person's.
            opened = {worker.side.name: worker.receive() for worker in (on_head, on_base)}
            if not against_itself:
                _refuse_the_same(on_base, on_head)
            found["head"] = _prepare(on_head, opened["head"], subject, limits)
        found["base"] = _prepare(on_base, opened["base"], subject, ())
    cells = _cells(found["base"], found["head"], budget, limits, may_differ)
    comparable = [cell for cell in cells if cell.verdict == "inconclusive"]
    slowed = [
        replace(cell, slowdown=slowdown, min_effect=min_effect, log_ratios=[], base_s=[], head_s=[], f1={}, over=[])
        for cell in comparable
        for slowdown, min_effect in slowdowns(cell)
    ]
    prepared = time.monotonic()
    short = _measure(base, head, subject, budget, comparable + slowed, every_pair=every_pair)
    measured = time.monotonic()
    for cell in (cell for cell in comparable if cell.head_s):
        latency_ms = float(np.median(cell.head_s)) * 1e3
        for limit in (limit for limit in limits if limit.covers(cell.model, cell.max_length, cell.variant)):
            if latency_ms > limit.max_latency_ms:
                cell.over.append(f"latency {latency_ms:.4g} ms > {limit.max_latency_ms:g} ms")
    return {
        "qbert": __version__,
        "sides": {
            side.name: asdict(side)
            | {"tree": side.tree and str(side.tree)}
            | {"identity": next((record["identity"] for record in found[side.name].values()), {})}
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
    """Return what the gate ends with: a regression outweighs what could not be compared, that what is not sure.

    It is INCONCLUSIVE where no latency was decided, though some was timed; with `strict` where any verdict is not sure.
    """
    if any(cell.verdict == "slower" or cell.f1.get("verdict") == "worse" or cell.over for cell in cells):
        return REGRESSION
    if not cells or any(cell.verdict == "not comparable" for cell in cells):
        return NOT_COMPARABLE
    unsure = [cell for cell in cells if cell.verdict == "inconclusive"]
    nothing = unsure and not any(cell.verdict in stats.DECIDED for cell in cells)
    in_f1 = any(cell.f1.get("verdict") == "inconclusive" for cell in cells)
    return INCONCLUSIVE if nothing or (strict and (unsure or in_f1)) else PASSED


Key = tuple[int, int, str]
"""A cell by its model's place in the list, its maximum length and its variant: names of models differ between sides."""
Record = dict[str, Any]


def _refuse_the_same(base: Worker, head: Worker) -> None:
    """Raise InputError where both sides have the same code, libraries, models and dataset."""
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
    """Build every cell of a side once: what each is, what it predicts with a trained head, and its size."""
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


def _cells(
    base: dict[Key, Record],
    head: dict[Key, Record],
    budget: Budget,
    limits: Sequence[Limit],
    may_differ: Collection[str],
) -> list[Cell]:
    """Return the cells of both sides: what cannot be compared and why, F1, and the limits on what does not vary."""
    cells = []
    confidence = stats.bonferroni(CONFIDENCE, sum("answers" in record for record in head.values()))
    for key in dict.fromkeys([*head, *base]):
        here = head.get(key) or base[key]
        there = base.get(key) or here
        cell = Cell(here["model"], here["max_length"], here["variant"], there["model"], budget.min_effect)
        cells.append(cell)
        if key not in base:
            cell.verdict, cell.differs = "new", ["only head has it"]
        elif key not in head:
            cell.verdict, cell.differs = "not comparable", ["only base has it"]
        elif differs := compare.differences(there["identity"], here["identity"], may_differ=may_differ):
            cell.verdict, cell.differs = "not comparable", differs
        elif "answers" in here and "answers" in there:
            cell.f1 = accuracy.compare_answers(there["answers"], here["answers"], confidence, budget.min_f1_effect)
            cell.told = over_own_limit(there, here)
        if key in head and key in base:
            cell.load = {"base": there["load"], "head": here["load"]}
            cell.base_disk_bytes, cell.head_disk_bytes = there["disk_bytes"], here["disk_bytes"]
        if key in head:
            covering = [limit for limit in limits if limit.covers(cell.model, cell.max_length, cell.variant)]
            cell.over = [sentence for limit in covering for sentence in _over(here, limit)]
    return cells


def over_own_limit(base: Record, head: Record) -> list[str]:
    """Return in words that head's F1 drop against fp32 is over the variant's own limit, and whether base's is too."""
    over = [record["f1_drop"] > record["max_f1_drop"] for record in (base, head)]
    if not over[1]:
        return []
    was = "as base's is" if over[0] else "base's is not"
    figures = f"{base['f1_drop']:+.4f} -> {head['f1_drop']:+.4f}"
    return [f"F1 drop against fp32 {figures}, over the variant's own limit {head['max_f1_drop']:g}, {was}"]


def _over(record: Record, limit: Limit) -> list[str]:
    """Return, in words, each limit on F1, size and memory that `record` exceeds."""
    figures = (
        ("F1 drop", record.get("f1_drop", -math.inf), limit.max_f1_drop, ""),
        ("disk", record["disk_bytes"] / 1e6, limit.max_disk_mb, " MB"),
        ("memory", record.get("peak_rss_bytes", 0) / 1e6, limit.max_memory_mb, " MB"),
    )
    return [f"{name} {value:.4g}{unit} > {most:g}{unit}" for name, value, most, unit in figures if value > most]


def _measure(
    base: Side, head: Side, subject: Subject, budget: Budget, cells: Sequence[Cell], *, every_pair: bool
) -> str:
    """Add pairs of processes until each cell's verdict is sure, or the budget ends.

    Which side is started first is drawn within every two pairs, so that no disturbance with a period of its own is
    always with the same one. Where no verdict can be reached within the budget, end after the first pair; return why.
    """
    max_seconds = budget.seconds(len(cells))
    begun = time.monotonic()
    longest = 0.0
    left = list(cells)
    chance = np.random.default_rng()
    orders = drawn_orders(base, head, chance)
    with progress("timing pairs, of the seconds allowed", round(max_seconds)) as advance:
        for number in range(budget.max_pairs):
            if not left or time.monotonic() - begun + longest > max_seconds:
                break
            start = time.monotonic()
            first, second = next(orders)
            with (
                Worker(first, subject, timeout_s=budget.timeout_s) as one,
                Worker(second, subject, timeout_s=budget.timeout_s) as other,
            ):
                _pair(one, other, left, chance)
            longest = max(longest, time.monotonic() - start)
            judge(left, budget.max_pairs)
            if number == 0 and not every_pair and (short := too_short(len(cells), longest, budget)):
                say(short)
                return short
            left = [cell for cell in cells if every_pair or cell.verdict == "inconclusive"]
            sure = sum(cell.verdict != "inconclusive" for cell in cells)
            spent = max((number + 1) / budget.max_pairs, (time.monotonic() - begun) / max_seconds)
            advance(round(spent * max_seconds), f"{number + 1} pairs, {sure} of {len(cells)} sure")
    return ""


T = TypeVar("T")


def drawn_orders(one: T, other: T, chance: np.random.Generator) -> Iterator[tuple[T, T]]:
    """Yield both in either order, without an end: of every two times once in each, which first is drawn."""
    while True:
        orders = [(one, other), (other, one)]
        chance.shuffle(orders)
        yield from orders


def judge(cells: Sequence[Cell], looks: int) -> None:
    """Take the verdicts of `cells` after one of at most `looks` pairs, so that all of them hold together.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure": those that are sure though all of
    `cells` share the error leave it to the rest.
    """
    left = list(cells)
    while left:
        confidence = stats.over_looks(stats.bonferroni(CONFIDENCE, len(left)), looks)
        for cell in left:
            cell.judge(confidence)
        unsure = [cell for cell in left if cell.verdict == "inconclusive"]
        if len(unsure) == len(left):
            return
        left = unsure


def least_pairs(cells: int, looks: int) -> int:
    """Return how many pairs the first of `cells` needs at least to be sure, looked at up to `looks` times."""
    return stats.min_sample_size(stats.over_looks(stats.bonferroni(CONFIDENCE, cells), looks))


def too_short(cells: int, pair_s: float, budget: Budget) -> str:
    """Return in a sentence why `cells`, of which a pair takes `pair_s`, cannot be decided, and what can; or nothing."""
    seconds, needed = budget.seconds(cells), least_pairs(cells, budget.max_pairs)
    if needed > budget.max_pairs:
        return f"for {counted(cells, 'cell')} {needed} pairs are needed at least: give --max-pairs {2 * needed}"
    if needed * pair_s <= seconds:
        return ""
    fit = next(
        (
            fewer
            for fewer in range(cells, 0, -1)
            if least_pairs(fewer, budget.max_pairs) * pair_s * fewer / cells <= seconds
        ),
        0,
    )
    fewer = f", or name {counted(fit, 'cell')} or fewer (--variants, --max-lengths, --model)" if fit else ""
    return (
        f"for {counted(cells, 'cell')} {needed} pairs of {pair_s:.0f} s are needed at least, and {seconds:.0f} s hold "
        f"{int(seconds / pair_s)}: give --max-seconds {math.ceil(1.5 * needed * pair_s / 10) * 10}{fewer}"
    )


def _pair(one: Worker, other: Worker, cells: Sequence[Cell], chance: np.random.Generator) -> None:
    """Time each cell on both workers in turn; those of one model are built together, both sides at once.

    An ABBA begins with either side, drawn within every two of them.
    """
    workers = (one, other)
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
            orders = drawn_orders(one, other, chance)
            while not is_enough(log_ratios(seconds["base"], seconds["head"]), time.monotonic() - start):
                first, second = next(orders)
                for worker in (first, second, second, first):
                    slowdown = cell.slowdown if worker.side.name == "head" else 0.0
                    worker.send("time", cell=cell.name, cost_s=costs[cell.name], slowdown=slowdown)
                    seconds[worker.side.name].append(worker.receive())
            cell.add(seconds["base"], seconds["head"])
            cell.timed_s += time.monotonic() - start


def log_ratios(base_s: Sequence[float], head_s: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the log ratio, head over base, of each ABBA, of two turns of each side."""
    ratios = np.log(head_s) - np.log(base_s)
    return np.asarray((ratios[::2] + ratios[1::2]) / 2)


def is_enough(ratios: npt.NDArray[np.float64], spent_s: float) -> bool:
    """Whether a pair has ABBAs enough of a cell, after so many seconds.

    Source: the standard error of a median of normal values, with their spread taken from the median deviation, which a
    burst does not move: Rousseeuw and Croux 1993, "Alternatives to the Median Absolute Deviation".
    """
    count = len(ratios)
    if not count or spent_s < SECONDS:
        return False
    if spent_s * (count + 1) / count > MOST_SECONDS:
        return True
    spread = 1.4826 * float(np.median(np.abs(ratios - np.median(ratios))))
    return count >= ABBAS and math.sqrt(math.pi / 2) * spread / math.sqrt(count) <= ERROR


def calibrated(found: dict[str, Any], slowdowns: Sequence[float]) -> list[dict[str, Any]]:
    """Return how likely a gate is to find each of `slowdowns` in a cell, from a calibration's result `found`.

    A row for each slowdown, with a minimum effect of half of it: `found` is the chance with the spread of the pairs of
    the cell that spreads most, `found_at_least` that with the upper end of the spread's 95 % interval, `false_alarms`
    the chance to call that cell slower when it is not.

    Source: the interval is that of a variance of normal values (chi-squared). The chances are by simulation of POWER
    gates, with the error of all cells shared as for the first verdict.
    """
    from scipy import special  # scipy.stats takes a second to import

    cells = [cell["log_ratios"] for cell in found["cells"] if len(cell["log_ratios"]) > 1]
    if not cells:
        return []
    looks = found["settings"]["max_pairs"]
    confidence = stats.over_looks(stats.bonferroni(CONFIDENCE, len(cells)), looks)
    spread = max(float(np.std(ratios, ddof=1)) for ratios in cells)
    freedom = min(map(len, cells)) - 1
    wide = spread * math.sqrt(freedom / float(special.chdtri(freedom, (1 + CONFIDENCE) / 2)))
    noise = np.random.default_rng(0).standard_normal((POWER, looks))

    def called_slower(slowdown: float, sd: float, min_effect: float) -> float:
        told = stats.verdicts(math.log1p(slowdown) + sd * noise, confidence, min_effect)
        first = np.take_along_axis(told, (told != "inconclusive").argmax(axis=1)[:, None], axis=1)
        return float((first == "slower").mean())

    return [
        {
            "slowdown": slowdown,
            "cells": len(cells),
            "spread": spread,
            "found": called_slower(slowdown, spread, slowdown / 2),
            "found_at_least": called_slower(slowdown, wide, slowdown / 2),
            "false_alarms": called_slower(0.0, spread, slowdown / 2),
        }
        for slowdown in slowdowns
    ]


POWER = 4000
