"""One saved run of pytest-benchmark, as typed objects; a run with damaged benchmarks of this suite is refused."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from qbert.inputs import labels, metrics
from qbert.results.columns import RECORDS
from qbert.results.compare import CELL, MEASURED
from qbert.results.records import Recorded
from qbert.system import parse
from qbert.system.errors import InputError

REMEDY = "the run is damaged, so name another one"


class Stats(Struct):
    """The part of pytest-benchmark's statistics that is read; the rounds, which are most of a file, are skipped."""

    median: Any = UNSET
    q1: Any = UNSET
    q3: Any = UNSET


class Quartiles(Struct):
    """What Stats holds for a benchmark of this suite."""

    median: float
    q1: float
    q3: float


class Benchmark(Struct):
    """An entry of `benchmarks`, this suite's or another project's."""

    name: str
    extra_info: dict[str, Any]
    stats: Stats = msgspec.field(default_factory=Stats)
    fullname: str = ""
    params: Any = None

    @property
    def is_ours(self) -> bool:
        """Whether it belongs to this suite; several signs are checked, since any of them may be garbled."""
        signs = sum(name in self.extra_info for name in [*CELL, "trained", "identity", "measured"])
        named = self.name.partition("[")[0] in {f"test_{measured}" for measured in MEASURED}
        return signs > len(CELL) or (named and self._cell is not None)

    @property
    def is_unjudged(self) -> bool:
        """Whether it has not the figures that it was to measure."""
        return self.extra_info.get("measured") == "accuracy" and self._metric is None

    @property
    def _metric(self) -> str | None:
        """The key of the metric whose figures it has."""
        return next((key for key in metrics.BY_KEY if key in self.extra_info), None)

    @property
    def key(self) -> tuple[Any, ...]:
        """What it measures of which cell; a run has each once."""
        values = [self.extra_info.get(name) for name in (*CELL, "measured")]
        return tuple(value if isinstance(value, str | int | float) else str(value) for value in values)

    @property
    def _cell(self) -> list[Any] | None:
        """The cell in pytest's `params`; its `extra_info` names it too."""
        known = isinstance(self.params, dict) and all(name in self.params for name in CELL)
        return [self.params[name] for name in CELL] if known else None

    def check(self, source: str) -> None:
        """Check that it is complete and consistent; `source` names the run.

        Raises:
            InputError: a value is missing, of another type, impossible, or contradicts another one.
        """
        name = f"{source}: {self.name}"
        measured = self.extra_info.get("measured")
        if not isinstance(measured, str) or measured not in MEASURED:
            raise InputError(f"{name} measures {measured!r}, and not {', '.join(MEASURED)}: {REMEDY}")
        key = self._metric or metrics.F1_OF_ONE.key
        info = parse.convert(self.extra_info, RECORDS[measured, key], name, REMEDY)
        parse.convert(msgspec.to_builtins(self.stats), Quartiles, name, REMEDY)
        answers = getattr(info, "answers", UNSET)
        if answers is not UNSET and answers.metric not in (UNSET, key):
            raise InputError(f"{name} is judged by {key}, and its `answers` by {answers.metric}: {REMEDY}")
        for contradiction in [*self._contradictions(info), *CONTRADICTIONS[measured](info, self.stats.median)]:
            raise InputError(f"{name} cannot be used ({contradiction.replace('score', key)}): {REMEDY}")

    def _contradictions(self, info: Any) -> Iterator[str]:  # noqa: ANN401
        """Yield each contradiction among what every benchmark has; `info` is its typed `extra_info`."""
        if self._cell not in (None, [getattr(info, name) for name in CELL]):
            yield "`params` and `extra_info` name different cells"
        if not 0 < self.stats.q1 <= self.stats.median <= self.stats.q3:
            yield "`q1`, `median` and `q3` of `stats` are not above 0, or not ascending"


def _of_latency(info: Any, median: float) -> Iterator[str]:  # noqa: ANN401  of RECORDS
    if not _agree(median, info.p50_s):
        yield "`p50_s` is not the median of `stats`"
    if (info.speedup_low is UNSET) != (info.speedup_high is UNSET):
        yield "`speedup_low` or `speedup_high` is missing"
    if not _ascending(info.speedup_low, info.speedup, info.speedup_high):
        yield "`speedup` is outside its interval"
    for name, floor_s in (("share_of_limit", "floor_s"), ("share_of_best_limit", "best_floor_s")):
        share, seconds = getattr(info, name), getattr(info, floor_s)
        if (share is UNSET) != (seconds is UNSET):
            yield f"`{floor_s}` or `{name}` is missing"
        if not _agree(share, seconds, info.p50_s):
            yield f"`{name}` is not `{floor_s}` over `p50_s`"
    if info.process_speedups is not UNSET:
        if not _agree(info.speedup, math.prod(info.process_speedups) ** (1 / len(info.process_speedups))):
            yield "`speedup` is not the geometric mean of `process_speedups`"
        if info.identity.definition.runtime is UNSET:
            yield "the `runtime` of its definition is missing"


def _of_accuracy(info: Any, _: float) -> Iterator[str]:  # noqa: ANN401
    if not _agree(info.drop, info.score_baseline - info.score):
        yield "`score_drop` is not `score_baseline` less `score`"
    if info.drop_low > info.drop_high:
        yield "`score_drop_low` is above `score_drop_high`"
    if info.answers is not UNSET:
        found = [info.answers.labels, info.answers.predicted, info.answers.queries, info.answers.rows]
        if {len(ids.split(" ")) for ids in found if ids is not UNSET} != {info.documents}:
            yield "`answers` are not of as many `documents`"
        elif info.answers.predicted is UNSET and not _are_numbers(info.answers):
            yield "`answers` have neither `predicted` labels nor numbers of their `metric`"
        elif info.answers.logits is not UNSET and not _are_logits(info.answers, info.documents):
            yield "the `logits` of `answers` are not of as many `documents`"


def _are_numbers(answers: Recorded) -> bool:
    """Whether `answers` are numbers that their metric can read, with a true number each."""
    record = msgspec.to_builtins(answers)
    metric = metrics.BY_KEY.get(record.get("metric", ""))
    try:
        return metric is not None and metric.reads(record)
    except (KeyError, ValueError):
        return False


def _are_logits(answers: Recorded, documents: int) -> bool:
    try:
        return len(labels.unpacked_logits(msgspec.to_builtins(answers), documents)) == documents
    except (KeyError, ValueError):
        return False


def _of_capacity(info: Any, median: float) -> Iterator[str]:  # noqa: ANN401
    if not _agree(median, info.loaded_p50_s):
        yield "`loaded_p50_s` is not the median of `stats`"
    if len(info.worker_shares) != info.workers:
        yield "`worker_shares` are not of as many `workers`"
    if len(info.rates) != len(info.rates_p99_s) or info.rates != sorted(info.rates):
        yield "`rates` do not ascend, or have not one `rates_p99_s` each"
    if not _ascending(info.loaded_over_alone_low, info.loaded_over_alone, info.loaded_over_alone_high):
        yield "`loaded_over_alone` is outside its interval"
    if not _ascending(info.loaded_p50_s, info.loaded_p95_s, info.loaded_p99_s, info.loaded_worst_s):
        yield "the percentiles under load do not ascend"
    if not _ascending(info.rate_within_limit, info.rates[-1]):
        yield "`rate_within_limit` is above all `rates`"


CONTRADICTIONS: dict[str, Callable[[Any, float], Iterable[str]]] = {
    "latency": _of_latency,
    "accuracy": _of_accuracy,
    "capacity": _of_capacity,
    "footprint": lambda _, __: (),
}
"""What yields each contradiction among a benchmark's figures: its typed `extra_info`, and the median of `stats`."""


class Commit(Struct):
    """The commit, as pytest-benchmark records it."""

    id: str
    dirty: bool = False


class Outcome(Struct):
    """What this suite adds to a saved run."""

    failed: list[str] = []
    part: bool = False
    """Whether the run was interrupted."""
    boot: str = ""


class Run(Struct):
    """One JSON file of pytest-benchmark."""

    benchmarks: list[Benchmark]
    datetime: datetime
    commit_info: Commit
    machine_info: dict[str, Any] = {}
    qbert: Outcome | None = None

    def cells(self, source: str) -> list[Benchmark]:
        """Return the benchmarks of this suite; `source` names the run.

        Raises:
            InputError: one of them is damaged, or measures what another one measures.
        """
        failed = self.qbert.failed if self.qbert else []
        ours = [entry for entry in self.benchmarks if entry.is_ours]
        # A judgement that failed before it had its figures has saved its cell's name only.
        ours = [entry for entry in ours if entry.fullname not in failed or not entry.is_unjudged]
        check_once(ours, source)
        identities: dict[tuple[Any, ...], Any] = {}
        for entry in ours:
            entry.check(source)
            identity = entry.extra_info["identity"]
            if identities.setdefault(tuple(entry.extra_info[name] for name in CELL), identity) != identity:
                raise InputError(f"{source}: {entry.name} has another `identity` than its cell has elsewhere: {REMEDY}")
        compared = [entry.extra_info for entry in ours if {"speedup_low", "process_speedups"} & entry.extra_info.keys()]
        if len({"baseline_p50_s" in info for info in compared}) > 1:
            raise InputError(f"{source} has `baseline_p50_s` in some of its cells only: {REMEDY}")
        return ours


def check_once(benchmarks: list[Benchmark], source: str) -> None:
    """Check that no two `benchmarks` of this suite measure the same of one cell; `source` names the run.

    Raises:
        InputError: two do. Their order must not decide which counts, and an interval is of the processes of one.
    """
    seen: dict[tuple[Any, ...], Benchmark] = {}
    for entry in benchmarks:
        if entry.is_ours and (first := seen.setdefault(entry.key, entry)) is not entry:
            names = " and ".join(dict.fromkeys([first.name, entry.name]))
            raise InputError(
                f"{source} has measured one cell twice ({names}): keep one of them; runs that are to count together "
                "stay files of their own, and are named together"
            )


def read(path: Path) -> Run:
    """Return the run in the file `path`.

    Raises:
        InputError: the file cannot be read, or is no run of pytest-benchmark.
    """
    remedy = "name a run that pytest-benchmark saved"
    content = parse.read_bytes(path, remedy)
    try:
        return parse.decode(path, content, Run, remedy)
    except InputError:
        try:  # pytest-benchmark writes what no JSON has, NaN and Infinity, where somebody's `extra_info` holds it
            run = json.loads(content, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            run = None
        if run is None:
            raise
        return parse.convert(run, Run, str(path), remedy)


def from_pytest(run: Mapping[str, Any], source: str) -> Run:
    """Return as typed object the `run` that pytest-benchmark has read; `source` names it.

    Raises:
        InputError: it is no run of pytest-benchmark.
    """
    return parse.convert(run, Run, source, REMEDY)


def _ascending(*values: float | UnsetType) -> bool:
    known = [value for value in values if isinstance(value, float)]
    return known == sorted(known)


def _agree(quotient: float | UnsetType, dividend: float | UnsetType, divisor: float = 1) -> bool:
    """Whether `quotient` is `dividend` over `divisor`, except for rounding; True if one of them is not known."""
    if isinstance(quotient, UnsetType) or isinstance(dividend, UnsetType):
        return True
    return math.isclose(quotient, dividend / divisor, rel_tol=1e-6, abs_tol=1e-9)
