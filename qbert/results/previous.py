"""What pytest-benchmark's `--benchmark-compare` lets pass in silence: cells that are gone, other subjects, F1, size."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from qbert import parse
from qbert.errors import InputError
from qbert.results import compare, saved_run, tables
from qbert.terminal import shown

GROWTH = 0.05  # of bytes on disk, which do not vary, and of peak memory, which varies by 1 to 2 %
Benchmark = Mapping[str, Any]


class Figures(Struct):
    """What is read of a previous benchmark's `extra_info`, where it is there: another project's has none of it."""

    identity: saved_run.Identity | UnsetType = UNSET
    f1: float | UnsetType = UNSET
    disk_bytes: float | UnsetType = UNSET
    peak_rss_bytes: float | UnsetType = UNSET


@dataclass
class Findings:
    """What a comparison of this run with a previous one has to say beside the timings."""

    gone: list[str] = field(default_factory=list)
    """Benchmarks of the previous run that were not run now."""
    different: dict[str, list[str]] = field(default_factory=dict)
    """What differs (library, processor, dataset ...), and the benchmarks that cannot be compared for it."""
    worse: list[str] = field(default_factory=list)
    """F1, size or memory, each in a sentence."""
    incomparable: set[str] = field(default_factory=set)
    """Full names of the benchmarks in `different`."""

    def lines(self) -> list[str]:
        """Return all that a person has to know."""
        said = []
        if self.gone:
            were = "was" if len(self.gone) == 1 else "were"
            said.append(f"{len(self.gone)} of the previous run's cells {were} not run: {_some(self.gone)}")
        said += [f"not comparable, {what}: {_some(names)}" for what, names in self.different.items()]
        return [shown(sentence) for sentence in said + self.worse]


def unusable(runs: Sequence[Mapping[str, Any]], *, disabled: bool) -> str:
    """Return why a comparison with the previous `runs` that was asked for cannot be made; empty where it can."""
    if disabled:
        return "--benchmark-compare needs benchmarks, and they are off: leave out --benchmark-disable, --benchmark-skip"
    if not runs:
        return (
            "--benchmark-compare finds no previous run: save one with --benchmark-autosave, or name its file or number"
        )
    for run in runs:
        source = f"the previous run of {run.get('datetime')}" if isinstance(run, dict) else "the previous run"
        try:
            found = saved_run.of(run, source)
            for one in found.benchmarks:
                parse.convert(one.extra_info, Figures, f"{source}: {one.name}", saved_run.REMEDY)
        except InputError as error:
            return shown(str(error))
        if found.qbert and found.qbert.failed:
            return shown(f"{source} failed itself ({_some(found.qbert.failed)}): compare with another one")
    return ""


def match_names(session: Any, runs: Sequence[Mapping[str, Any]], names: Iterable[str]) -> None:  # noqa: ANN401  pytest-benchmark has no types
    """Give the cells of the previous `runs` the full names that they have in this `session`, whose tests' are `names`.

    The folder of the cases is another in a clone, in an installed package, and in another environment.
    """
    here = {name.rpartition("/")[2]: name for name in names}
    for run, compared in zip(runs, session.compared_mapping.values(), strict=True):
        for benchmark in run["benchmarks"]:
            name = here.get(benchmark["fullname"].rpartition("/")[2])
            if name and "measured" in benchmark.get("extra_info", {}):
                compared[name] = compared.pop(benchmark["fullname"])
                benchmark["fullname"] = name


def finish(
    session: Any,  # noqa: ANN401  pytest-benchmark has no types
    runs: Sequence[Mapping[str, Any]],
    *,
    whole: bool,
    max_f1_drop: float | None,
) -> tuple[list[str], list[str]]:
    """Hold pytest-benchmark's `session`, before it saves and compares, against the previous `runs`.

    What cannot be compared is taken out of its comparison. Cells are gone only from a `whole` run: one that was
    interrupted says so itself.

    Returns:
        What to tell, and the part of it for which the run fails: gone cells always, the rest with
        `--benchmark-compare-fail`.
    """
    now = [
        benchmark.as_dict(include_data=False)
        for benchmark in session.benchmarks
        if benchmark and not benchmark.has_error
    ]
    told: list[str] = []
    failed: list[str] = []
    for run, compared in zip(runs, session.compared_mapping.values(), strict=True):
        findings = compare_cells(now, run["benchmarks"] if whole else [], max_f1_drop=max_f1_drop)
        for name in findings.incomparable:
            compared.pop(name, None)
        told += findings.lines()
        failed += findings.lines() if session.compare_fail else findings.lines()[: bool(findings.gone)]
        slower = list(_slower(session, compared))
        told += slower
        failed += slower
    return told, failed


def _slower(session: Any, compared: Mapping[str, Any]) -> Iterator[str]:  # noqa: ANN401
    """Yield a sentence for each check of --benchmark-compare-fail that a benchmark of `session` does not pass."""
    for benchmark in session.benchmarks:
        if not benchmark or benchmark.has_error or benchmark.fullname not in compared:
            continue
        before = compared[benchmark.fullname]["stats"]
        for check in session.compare_fail or ():
            if check.fails(benchmark, before):
                times = [tables.milliseconds(one[check.field]) for one in (before, benchmark)]
                yield f"{benchmark.name}: {check.field} {' -> '.join(times)} ms, which --benchmark-compare-fail forbids"


def leave_unsaved(session: Any) -> list[str]:  # noqa: ANN401  pytest-benchmark has no types
    """Keep a run that failed out of pytest-benchmark's storage, where the next one would be compared with it."""
    if not (session.save or session.autosave):
        return []
    session.save = session.autosave = None
    return ["this run failed, so it was not saved"]


def compare_cells(
    now: Iterable[Benchmark], previous: Iterable[Benchmark], *, max_f1_drop: float | None = None
) -> Findings:
    """Hold the benchmarks of this run, as pytest-benchmark saves them, against those of a previous run.

    F1 may be lower by `max_f1_drop`, unless told by the limit that the cell's own guard had.
    """
    here = {benchmark["fullname"]: benchmark for benchmark in now}
    findings = Findings()
    for there in previous:
        name = there["fullname"]
        if name not in here:
            findings.gone.append(there["name"])
            continue
        before, after = there.get("extra_info", {}), here[name].get("extra_info", {})
        differs = compare.differences(before.get("identity", {}), after.get("identity", {}))
        if "identity" not in after:  # another project's benchmark: nothing is known of its subject
            differs = []
        for what in differs:
            findings.different.setdefault(what, []).append(there["name"])
        if differs:
            findings.incomparable.add(name)
        else:
            findings.worse += _worse(there["name"], before, after, max_f1_drop)
    return findings


def _worse(name: str, before: Mapping[str, Any], after: Mapping[str, Any], max_f1_drop: float | None) -> list[str]:
    said = []
    if "f1" in before and "f1" in after:
        most = after["max_f1_drop"] if max_f1_drop is None else max_f1_drop
        if before["f1"] - after["f1"] > most:
            said.append(f"{name}: F1 {before['f1']:.4f} -> {after['f1']:.4f}, more than {most:g} lower")
        if after.get("over_limit") and not before.get("over_limit"):
            said.append(f"{tables.over_limit(after)}, and was not in the previous run")
    for figure, what in (("disk_bytes", "size on disk"), ("peak_rss_bytes", "peak memory")):
        if figure in before and figure in after and after[figure] > (1 + GROWTH) * before[figure]:
            sizes = f"{before[figure] / 1e6:.1f} -> {after[figure] / 1e6:.1f} MB"
            said.append(f"{name}: {what} {sizes}, more than {GROWTH:.0%} greater")
    return said


def _some(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
