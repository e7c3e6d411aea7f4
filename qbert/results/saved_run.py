"""One saved run of pytest-benchmark, as typed objects; a run with damaged benchmarks of this suite is refused."""

import json
import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from qbert.inputs import labels
from qbert.results.compare import CELL
from qbert.system import parse
from qbert.system.errors import InputError

Seconds = Annotated[float, Meta(gt=0, lt=1e6)]  # nobody waits eleven days for one call
Ratio = Annotated[float, Meta(gt=0, lt=1e6)]
Rate = Annotated[float, Meta(ge=0, lt=1e9)]
Cost = Annotated[float, Meta(gt=0, lt=1e12)]
Bytes = Annotated[float, Meta(ge=0, lt=2**60)]
Share = Annotated[float, Meta(ge=0, le=1)]
Drop = Annotated[float, Meta(ge=-1, le=1)]
Count = Annotated[int, Meta(ge=0)]
REMEDY = "the run is damaged, so name another one"


class Definition(Struct):
    """The part of a variant's definition that is read."""

    precision: str
    runtime: str | UnsetType = UNSET


class Identity(Struct):
    """What was measured, and on which machine: compare.SUBJECT."""

    processor: str
    instruction_sets: list[str]
    versions: dict[str, str]
    checkpoint_sha256: str
    dataset_sha256: str
    definition: Definition
    threads: int | None
    dataset: str
    hardware: dict[str, int | str] | UnsetType = UNSET
    machine_name: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET


class Cell(Struct):
    """The part of `extra_info` that every benchmark of this suite has."""

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
    limit_definition: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    best_floor_s: Seconds | UnsetType = UNSET
    share_of_best_limit: Annotated[float, Meta(gt=0, lt=100)] | UnsetType = UNSET


class Flip(Struct):
    """One of `flipped`: a document whose label differs from the baseline's; labels are given by name."""

    row: Count
    label: str
    baseline: str
    variant: str
    baseline_margin: float
    variant_margin: float
    text: str


Ids = Annotated[str, Meta(pattern=r"^(-|\d{1,4}(,\d{1,4})*)( (-|\d{1,4}(,\d{1,4})*))*$")]
"""The label ids of each document, as labels.packed writes them."""


class Answers(Struct):
    """The predicted labels of each test document, and newer runs' logits: labels.answers, labels.packed_logits."""

    labels: Ids
    predicted: Ids
    logits_sha256: str
    logits: str | UnsetType = UNSET
    logits_type: Literal["float32", "float16"] | UnsetType = UNSET
    rows: Annotated[str, Meta(pattern=r"^\d{1,9}( \d{1,9})*$")] | UnsetType = UNSET
    """The documents' places in the test split, from 0, where they are a sample of it."""
    label_names: list[str] | UnsetType = UNSET


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
    f1_drop_at_most: Drop | UnsetType = UNSET


class Footprint(Cell):
    """`extra_info` of a benchmark of footprint."""

    disk_bytes: Bytes
    load_s: Seconds
    first_call_s: Seconds
    peak_rss_bytes: Bytes
    after_pause_s: Seconds | UnsetType = UNSET


class Tokens(Struct):
    """How many tokens texts have: of 5, 50 and 95 % of them at most so many."""

    p5: Count
    p50: Count
    p95: Count


class Point(Struct):
    """What fewer or as many workers serve."""

    workers: Annotated[int, Meta(ge=1)]
    texts_per_s: Rate
    rate_within_limit: Rate
    loaded_p50_s: Seconds
    loaded_p95_s: Seconds | UnsetType = UNSET
    loaded_p99_s: Seconds | UnsetType = UNSET


class Capacity(Cell):
    """`extra_info` of a benchmark of capacity."""

    workers: Annotated[int, Meta(ge=1)]
    worker_threads: Annotated[int, Meta(ge=1)]
    texts_per_s: Rate
    worker_shares: list[Share]
    loaded_p50_s: Seconds
    loaded_worst_s: Seconds
    latency_limit_s: Seconds
    rates: Annotated[list[Rate], Meta(min_length=1)]
    rates_p99_s: list[Seconds]
    rate_within_limit: Rate
    traffic: str
    traffic_sha256: str
    traffic_tokens: Tokens
    capacity_notes: list[str]
    answers_compared: Count
    loaded_p95_s: Seconds | UnsetType = UNSET
    loaded_p99_s: Seconds | UnsetType = UNSET
    alone_p50_s: Seconds | UnsetType = UNSET
    half_load_slowdown: Ratio | UnsetType = UNSET
    loaded_over_alone: Ratio | UnsetType = UNSET
    loaded_over_alone_low: Ratio | UnsetType = UNSET
    loaded_over_alone_high: Ratio | UnsetType = UNSET
    pss_bytes: Bytes | UnsetType = UNSET
    price_per_hour: Cost | UnsetType = UNSET
    cost_per_million: Cost | UnsetType = UNSET
    scaling: list[Point] | UnsetType = UNSET


MEASURED: Mapping[str, type[Cell]] = {
    "latency": Latency,
    "accuracy": Accuracy,
    "footprint": Footprint,
    "capacity": Capacity,
}


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
        info = parse.convert(self.extra_info, MEASURED[measured], name, REMEDY)
        parse.convert(msgspec.to_builtins(self.stats), Quartiles, name, REMEDY)
        for contradiction in self._contradictions(info):
            raise InputError(f"{name} cannot be used ({contradiction}): {REMEDY}")

    def _contradictions(self, info: Cell) -> Iterator[str]:
        """Yield each contradiction among its figures; `info` is its typed `extra_info`."""
        if self._cell not in (None, [getattr(info, name) for name in CELL]):
            yield "`params` and `extra_info` name different cells"
        if not 0 < self.stats.q1 <= self.stats.median <= self.stats.q3:
            yield "`q1`, `median` and `q3` of `stats` are not above 0, or not ascending"
        if isinstance(info, Latency):
            yield from self._latency_contradictions(info)
        if isinstance(info, Accuracy):
            yield from _accuracy_contradictions(info)
        if isinstance(info, Capacity):
            yield from self._capacity_contradictions(info)

    def _capacity_contradictions(self, info: Capacity) -> Iterator[str]:
        if not _agree(self.stats.median, info.loaded_p50_s):
            yield "`loaded_p50_s` is not the median of `stats`"
        if len(info.worker_shares) != info.workers:
            yield "`worker_shares` are not of so many `workers`"
        if len(info.rates) != len(info.rates_p99_s) or info.rates != sorted(info.rates):
            yield "`rates` do not ascend, or have not one `rates_p99_s` each"
        if not _ascending(info.loaded_over_alone_low, info.loaded_over_alone, info.loaded_over_alone_high):
            yield "`loaded_over_alone` is outside its interval"
        if not _ascending(info.loaded_p50_s, info.loaded_p95_s, info.loaded_p99_s, info.loaded_worst_s):
            yield "the percentiles under load do not ascend"
        if not _ascending(info.rate_within_limit, info.rates[-1]):
            yield "`rate_within_limit` is above all `rates`"

    def _latency_contradictions(self, info: Latency) -> Iterator[str]:
        if not _agree(self.stats.median, info.p50_s):
            yield "`p50_s` is not the median of `stats`"
        if _known(info.speedup_low) != _known(info.speedup_high):
            yield "`speedup_low` or `speedup_high` is missing"
        if not _ascending(info.speedup_low, info.speedup, info.speedup_high):
            yield "`speedup` is outside its interval"
        for name, floor_s in (("share_of_limit", "floor_s"), ("share_of_best_limit", "best_floor_s")):
            share, seconds = getattr(info, name), getattr(info, floor_s)
            if _known(share) != _known(seconds):
                yield f"`{floor_s}` or `{name}` is missing"
            if not _agree(share, seconds, info.p50_s):
                yield f"`{name}` is not `{floor_s}` over `p50_s`"
        if isinstance(info.process_speedups, list):
            if not _agree(info.speedup, math.prod(info.process_speedups) ** (1 / len(info.process_speedups))):
                yield "`speedup` is not the geometric mean of `process_speedups`"
            if info.identity.definition.runtime is UNSET:
                yield "the `runtime` of its definition is missing"


def _accuracy_contradictions(info: Accuracy) -> Iterator[str]:
    if not _agree(info.f1_drop, info.f1_baseline - info.f1):
        yield "`f1_drop` is not `f1_baseline` less `f1`"
    if info.f1_drop_low > info.f1_drop_high:
        yield "`f1_drop_low` is above `f1_drop_high`"
    if isinstance(info.answers, Answers):
        counts = {len(ids.split(" ")) for ids in (info.answers.labels, info.answers.predicted)}
        if isinstance(info.answers.rows, str):
            counts.add(len(info.answers.rows.split(" ")))
        if counts != {info.documents}:
            yield "`answers` are not of so many `documents`"
        elif isinstance(info.answers.logits, str) and not _are_logits(info.answers, info.documents):
            yield "the `logits` of `answers` are not of so many `documents`"


def _are_logits(answers: Answers, documents: int) -> bool:
    try:
        return len(labels.unpacked_logits(msgspec.to_builtins(answers), documents)) == documents
    except ValueError:
        return False


class Commit(Struct):
    """The commit, as pytest-benchmark records it."""

    id: str
    dirty: bool = False


class Outcome(Struct):
    """What this suite adds to a saved run."""

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
            InputError: one of them is damaged, or measures what another one measures.
        """
        failed = self.qbert.failed if self.qbert else []
        ours = [entry for entry in self.benchmarks if entry.is_ours]
        # A test that failed before it had its figures has saved its cell's name only.
        ours = [entry for entry in ours if not (entry.fullname in failed and _lacks_figures(entry))]
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


def _lacks_figures(benchmark: Benchmark) -> bool:
    return benchmark.extra_info.get("measured") == "accuracy" and "f1" not in benchmark.extra_info


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


def of(run: Mapping[str, Any], source: str) -> Run:
    """Return as typed object the `run` that pytest-benchmark has read; `source` names it.

    Raises:
        InputError: it is no run of pytest-benchmark.
    """
    return parse.convert(run, Run, source, REMEDY)


def as_dictionaries(benchmarks: list[Benchmark]) -> list[dict[str, Any]]:
    """Return the part of `benchmarks` that is read, as pytest-benchmark saves it."""
    return [{"extra_info": entry.extra_info, "stats": msgspec.to_builtins(entry.stats)} for entry in benchmarks]


def _known(value: float | UnsetType) -> bool:
    return value is not UNSET


def _ascending(*values: float | UnsetType) -> bool:
    known = [value for value in values if isinstance(value, float)]
    return known == sorted(known)


def _agree(quotient: float | UnsetType, dividend: float | UnsetType, divisor: float = 1) -> bool:
    """Whether `quotient` is `dividend` over `divisor`, except for rounding; True if one of them is not known."""
    if isinstance(quotient, UnsetType) or isinstance(dividend, UnsetType):
        return True
    return math.isclose(quotient, dividend / divisor, rel_tol=1e-6, abs_tol=1e-9)
