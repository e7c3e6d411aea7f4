"""One saved run of pytest-benchmark, as typed objects: what it holds of this suite is whole, or it is refused."""

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from qbert import parse
from qbert.errors import InputError
from qbert.results.compare import CELL

Seconds = Annotated[float, Meta(gt=0, lt=1e6)]  # nobody waits eleven days for one call
Ratio = Annotated[float, Meta(gt=0, lt=1e6)]
Bytes = Annotated[float, Meta(ge=0, lt=2**60)]
Share = Annotated[float, Meta(ge=0, le=1)]
Drop = Annotated[float, Meta(ge=-1, le=1)]
Count = Annotated[int, Meta(ge=0)]
REMEDY = "the run is damaged, so name another one"


class Definition(Struct):
    """What is read of a variant's definition."""

    precision: str
    runtime: str | UnsetType = UNSET


class Identity(Struct):
    """What was measured on what: compare.SUBJECT."""

    processor: str
    instruction_sets: list[str]
    versions: dict[str, str]
    checkpoint_sha256: str
    dataset_sha256: str
    definition: Definition
    threads: int | None
    dataset: str
    hardware: dict[str, int | str] | UnsetType = UNSET


class Cell(Struct):
    """What every benchmark of this suite says of itself in its `extra_info`."""

    model: str
    max_length: Annotated[int, Meta(ge=1)]
    variant: str
    trained: bool
    identity: Identity


class Latency(Cell):
    """`extra_info` of a benchmark of latency."""

    speedup: Ratio
    p50_s: Seconds
    p95_s: Seconds | UnsetType = UNSET
    p99_s: Seconds | UnsetType = UNSET
    process_speedups: Annotated[list[Ratio], Meta(min_length=1)] | UnsetType = UNSET
    process_p50_s: list[Seconds] | UnsetType = UNSET
    speedup_low: Ratio | UnsetType = UNSET
    speedup_high: Ratio | UnsetType = UNSET
    baseline_p50_s: Seconds | UnsetType = UNSET
    floor_s: Seconds | UnsetType = UNSET
    share_of_limit: Annotated[float, Meta(gt=0, lt=100)] | UnsetType = UNSET


class Flip(Struct):
    """One of `flipped`: a document whose label differs from the baseline's, its labels as people read them."""

    row: Count
    label: str
    baseline: str
    variant: str
    baseline_margin: float
    variant_margin: float
    text: str


Ids = Annotated[str, Meta(pattern=r"^(-|\d{1,4}(,\d{1,4})*)( (-|\d{1,4}(,\d{1,4})*))*$")]
"""Of each document, as labels.packed writes them."""


class Answers(Struct):
    """What was answered for each test document, as labels.answers tells it."""

    labels: Ids
    predicted: Ids
    logits_sha256: str


class Accuracy(Cell):
    """`extra_info` of a benchmark of accuracy."""

    documents: Annotated[int, Meta(ge=1)]
    f1: Share
    f1_baseline: Share
    f1_drop: Drop
    f1_drop_low: Drop
    f1_drop_high: Drop
    flips: Count
    mcnemar_p: Share
    max_f1_drop: float
    f1_guard: str
    flipped: list[Flip]
    visible_drop: Share | UnsetType = UNSET
    answers: Answers | UnsetType = UNSET
    over_limit: bool | UnsetType = UNSET


class Footprint(Cell):
    """`extra_info` of a benchmark of footprint."""

    disk_bytes: Bytes
    load_s: Seconds
    first_call_s: Seconds
    peak_rss_bytes: Bytes
    after_pause_s: Seconds | UnsetType = UNSET


MEASURED: Mapping[str, type[Cell]] = {"latency": Latency, "accuracy": Accuracy, "footprint": Footprint}


class Stats(Struct):
    """What is read of pytest-benchmark's statistics; every round, which is most of a file, is skipped."""

    median: float
    q1: float
    q3: float


class Benchmark(Struct):
    """An entry of `benchmarks`, this suite's or another project's."""

    name: str
    extra_info: dict[str, Any]
    stats: Stats
    fullname: str = ""
    params: Any = None

    @property
    def is_ours(self) -> bool:
        """Whether it is of this suite; by more than one sign, since any of them may be garbled."""
        signs = sum(name in self.extra_info for name in [*CELL, "trained", "identity", "measured"])
        named = self.name.partition("[")[0] in {f"test_{measured}" for measured in MEASURED}
        return signs > len(CELL) or (named and self._place is not None)

    @property
    def _place(self) -> list[Any] | None:
        """The cell that pytest ran it for, which its `extra_info` names too."""
        known = isinstance(self.params, dict) and all(name in self.params for name in CELL)
        return [self.params[name] for name in CELL] if known else None

    def check(self, source: str) -> None:
        """Find out whether it is whole; `source` names the run.

        Raises:
            InputError: a value is missing, of another type, impossible, or at odds with another one.
        """
        what = f"{source}: {self.name}"
        measured = self.extra_info.get("measured")
        if not isinstance(measured, str) or measured not in MEASURED:
            raise InputError(f"{what} measures {measured!r}, and not {', '.join(MEASURED)}: {REMEDY}")
        found = parse.convert(self.extra_info, MEASURED[measured], what, REMEDY)
        for why in self._at_odds(found):
            raise InputError(f"{what} cannot be used ({why}): {REMEDY}")

    def _at_odds(self, found: Cell) -> Iterator[str]:
        """Yield what contradicts itself in its figures, of which `found` are typed."""
        if self._place not in (None, [getattr(found, name) for name in CELL]):
            yield "`params` and `extra_info` name different cells"
        if not 0 < self.stats.q1 <= self.stats.median <= self.stats.q3:
            yield "`q1`, `median` and `q3` of `stats` are not above 0, or not ascending"
        if isinstance(found, Latency):
            yield from self._latency_at_odds(found)
        if isinstance(found, Accuracy):
            yield from _accuracy_at_odds(found)

    def _latency_at_odds(self, found: Latency) -> Iterator[str]:
        if not _agree(self.stats.median, found.p50_s):
            yield "`p50_s` is not the median of `stats`"
        if _known(found.speedup_low) != _known(found.speedup_high):
            yield "`speedup_low` or `speedup_high` is missing"
        if _known(found.floor_s) != _known(found.share_of_limit):
            yield "`floor_s` or `share_of_limit` is missing"
        if not _ascending(found.speedup_low, found.speedup, found.speedup_high):
            yield "`speedup` is outside its interval"
        if not _agree(found.share_of_limit, found.floor_s, found.p50_s):
            yield "`share_of_limit` is not `floor_s` over `p50_s`"
        if isinstance(found.process_speedups, list):
            if not _agree(found.speedup, math.prod(found.process_speedups) ** (1 / len(found.process_speedups))):
                yield "`speedup` is not the geometric mean of `process_speedups`"
            if found.identity.definition.runtime is UNSET:
                yield "the `runtime` of its definition is missing"


def _accuracy_at_odds(found: Accuracy) -> Iterator[str]:
    if not _agree(found.f1_drop, found.f1_baseline - found.f1):
        yield "`f1_drop` is not `f1_baseline` less `f1`"
    if found.f1_drop_low > found.f1_drop_high:
        yield "`f1_drop_low` is above `f1_drop_high`"
    if isinstance(found.answers, Answers):
        counts = {len(ids.split(" ")) for ids in (found.answers.labels, found.answers.predicted)}
        if counts != {found.documents}:
            yield "`answers` are not of so many `documents`"


class Commit(Struct):
    """What pytest-benchmark knows of the commit."""

    id: str
    dirty: bool = False


class Outcome(Struct):
    """What the suite adds to a run."""

    failed: list[str] = []
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
            InputError: one of them is damaged.
        """
        failed = self.qbert.failed if self.qbert else []
        # A test that failed before it had its figures left the name of its cell.
        ours = [one for one in self.benchmarks if one.is_ours and not (one.fullname in failed and _is_begun(one))]
        subjects: dict[tuple[Any, ...], Any] = {}
        for one in ours:
            one.check(source)
            identity = one.extra_info["identity"]
            if subjects.setdefault(tuple(one.extra_info[name] for name in CELL), identity) != identity:
                raise InputError(f"{source}: {one.name} has another `identity` than its cell has elsewhere: {REMEDY}")
        sped = [one.extra_info for one in ours if {"speedup_low", "process_speedups"} & one.extra_info.keys()]
        if len({"baseline_p50_s" in info for info in sped}) > 1:
            raise InputError(f"{source} has `baseline_p50_s` in some of its cells only: {REMEDY}")
        return ours


def _is_begun(benchmark: Benchmark) -> bool:
    return benchmark.extra_info.get("measured") == "accuracy" and "f1" not in benchmark.extra_info


def read(path: Path) -> Run:
    """Return the run in the file `path`.

    Raises:
        InputError: the file cannot be read, or is no run of pytest-benchmark.
    """
    return parse.read_json(path, Run, "name a run that pytest-benchmark saved")


def of(run: Mapping[str, Any], source: str) -> Run:
    """Return the run that pytest-benchmark read itself; `source` names it.

    Raises:
        InputError: it is no run of pytest-benchmark.
    """
    return parse.convert(run, Run, source, REMEDY)


def as_dictionaries(benchmarks: list[Benchmark]) -> list[dict[str, Any]]:
    """Return what is read of `benchmarks` as pytest-benchmark saves it."""
    return [{"extra_info": one.extra_info, "stats": msgspec.to_builtins(one.stats)} for one in benchmarks]


def _known(value: float | UnsetType) -> bool:
    return value is not UNSET


def _ascending(*values: float | UnsetType) -> bool:
    known = [value for value in values if isinstance(value, float)]
    return known == sorted(known)


def _agree(one: float | UnsetType, other: float | UnsetType, divisor: float = 1) -> bool:
    """Whether `one` is `other` over `divisor`, rounding aside, or one of them is not known."""
    if isinstance(one, UnsetType) or isinstance(other, UnsetType):
        return True
    return math.isclose(one, other / divisor, rel_tol=1e-6, abs_tol=1e-9)
