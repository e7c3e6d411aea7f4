"""What pytest-benchmark's `--benchmark-compare` does not check: missing cells, different subjects, score, size."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qbert.inputs import metrics
from qbert.results import columns, compare, records, run_tables, saved_run, tables
from qbert.system import parse
from qbert.system.errors import InputError
from qbert.system.terminal import counted, shown

GROWTH = 0.05  # allowed in bytes on disk, which do not vary, and in peak memory, which varies by 1 to 2 %
Benchmark = Mapping[str, Any]


FIGURES = {
    key: columns.record(
        "Figures",
        [
            columns.Column(name, kind, optional=True)
            for name, kind in (
                ("identity", records.Identity),
                ("score", records.Score),
                ("disk_bytes", records.Bytes),
                ("peak_rss_bytes", records.Bytes),
            )
        ],
        metric,
    )
    for key, metric in metrics.BY_KEY.items()
}
"""The part of a previous benchmark's `extra_info` that is read, by the key of its metric."""


@dataclass
class Findings:
    """The results of comparing this run with a previous one, except the timings."""

    missing: list[str] = field(default_factory=list)
    """Benchmarks of the previous run that were not run now."""
    different: dict[str, list[str]] = field(default_factory=dict)
    """For each difference (library, processor, dataset ...) the benchmarks that it makes incomparable."""
    worse: list[str] = field(default_factory=list)
    """A sentence for each score, size or memory that is worse."""
    incomparable: set[str] = field(default_factory=set)
    """Full names of the benchmarks in `different`."""

    def lines(self) -> list[str]:
        """Return the findings as sentences."""
        sentences = []
        if self.missing:
            were = "was" if len(self.missing) == 1 else "were"
            sentences.append(f"{len(self.missing)} of the previous run's cells {were} not run: {_some(self.missing)}")
        sentences += [f"not comparable, {difference}: {_some(names)}" for difference, names in self.different.items()]
        return [shown(sentence) for sentence in sentences + self.worse]


def unusable(runs: Sequence[Mapping[str, Any]], *, disabled: bool) -> str:
    """Return why the comparison with the previous `runs` cannot be made; empty if it can."""
    if disabled:
        return "--benchmark-compare needs benchmarks, and they are off: leave out --benchmark-disable, --benchmark-skip"
    if not runs:
        return (
            "--benchmark-compare finds no previous run: save one with --benchmark-autosave, or name its file or number"
        )
    for run in runs:
        source = f"the previous run of {run.get('datetime')}" if isinstance(run, dict) else "the previous run"
        try:
            typed = saved_run.from_pytest(run, source)
            saved_run.check_once(typed.benchmarks, source)
            for benchmark in typed.benchmarks:
                if benchmark.is_ours:
                    for figures in FIGURES.values():
                        parse.convert(benchmark.extra_info, figures, f"{source}: {benchmark.name}", saved_run.REMEDY)
        except InputError as error:
            return shown(str(error))
        if typed.qbert and typed.qbert.failed:
            return shown(f"{source} failed itself ({_some(typed.qbert.failed)}): compare with another one")
    return ""


def match_names(session: Any, runs: Sequence[Mapping[str, Any]], names: Iterable[str]) -> None:  # noqa: ANN401  pytest-benchmark has no types
    """Rename the cells of the previous `runs` to the full `names` of this `session`'s tests.

    The folder of the cases differs between a clone, an installed package and another environment.
    """
    full_names = {name.rpartition("/")[2]: name for name in names}
    for run, compared in zip(runs, session.compared_mapping.values(), strict=True):
        for benchmark in run["benchmarks"]:
            name = full_names.get(benchmark["fullname"].rpartition("/")[2])
            if name and "measured" in benchmark.get("extra_info", {}):
                compared[name] = compared.pop(benchmark["fullname"])
                benchmark["fullname"] = name


def finish(
    session: Any,  # noqa: ANN401  pytest-benchmark has no types
    runs: Sequence[Mapping[str, Any]],
    *,
    whole: bool,
    max_drop: float | None,
) -> tuple[list[str], list[str]]:
    """Compare pytest-benchmark's `session`, before it saves and compares, with the previous `runs`.

    Benchmarks that are not comparable are removed from its comparison. Missing cells are reported only for a `whole`
    run: an interrupted one is reported by pytest.

    Returns:
        The sentences to show, and those for which the run fails: missing cells always, the others with
        `--benchmark-compare-fail`.
    """
    now = [
        benchmark.as_dict(include_data=False)
        for benchmark in session.benchmarks
        if benchmark and not benchmark.has_error
    ]
    sentences: list[str] = []
    failures: list[str] = []
    for run, compared in zip(runs, session.compared_mapping.values(), strict=True):
        if run.get("qbert", {}).get("part"):
            cells = counted(len(run["benchmarks"]), "cell")
            sentences.append(f"the previous run was interrupted: only the {cells} that it has are compared")
        findings = compare_cells(now, run["benchmarks"] if whole else [], max_drop=max_drop)
        for name in findings.incomparable:
            compared.pop(name, None)
        sentences += findings.lines()
        failures += findings.lines() if session.compare_fail else findings.lines()[: bool(findings.missing)]
        slower = list(_slower(session, compared))
        sentences += slower
        failures += slower
    return sentences, failures


def _slower(session: Any, compared: Mapping[str, Any]) -> Iterator[str]:  # noqa: ANN401
    """Yield a sentence for each check of --benchmark-compare-fail that a benchmark of `session` fails."""
    for benchmark in session.benchmarks:
        if not benchmark or benchmark.has_error or benchmark.fullname not in compared:
            continue
        before = compared[benchmark.fullname]["stats"]
        for check in session.compare_fail or ():
            if check.fails(benchmark, before):
                times = [tables.milliseconds(timings[check.field]) for timings in (before, benchmark)]
                yield f"{benchmark.name}: {check.field} {' -> '.join(times)} ms, which --benchmark-compare-fail forbids"


def leave_unsaved(session: Any) -> list[str]:  # noqa: ANN401  pytest-benchmark has no types
    """Keep a failed run out of pytest-benchmark's storage: the next run would be compared with it."""
    if not (session.save or session.autosave):
        return []
    session.save = session.autosave = None
    return ["this run failed, so it was not saved"]


def compare_cells(
    now: Iterable[Benchmark], previous: Iterable[Benchmark], *, max_drop: float | None = None
) -> Findings:
    """Compare the benchmarks of this run, as pytest-benchmark saves them, with those of a previous run.

    A score may be lower by `max_drop`; without it, by the limit of the cell's own guard.
    """
    by_name = {benchmark["fullname"]: benchmark for benchmark in now}
    findings = Findings()
    for benchmark in previous:
        name = benchmark["fullname"]
        if name not in by_name:
            findings.missing.append(benchmark["name"])
            continue
        before, after = benchmark.get("extra_info", {}), by_name[name].get("extra_info", {})
        if not isinstance(after.get("identity"), dict):
            continue  # another project's benchmark: nothing is known of its subject
        known = before.get("identity")
        differences = compare.differences(known if isinstance(known, dict) else {}, after["identity"])
        differences += [
            f"{name.partition('_')[0]}: {str(before[name])[:12]}, {str(after[name])[:12]}"
            for name in ("workers", "traffic_sha256")
            if name in before and name in after and before[name] != after[name]
        ]
        for difference in differences:
            findings.different.setdefault(difference, []).append(benchmark["name"])
        if differences:
            findings.incomparable.add(name)
        else:
            judged = metrics.common_names(before), metrics.common_names(after)
            findings.worse += _worse(benchmark["name"], *judged, max_drop)
    return findings


def _worse(name: str, before: Mapping[str, Any], after: Mapping[str, Any], max_drop: float | None) -> list[str]:
    sentences = []
    if "score" in before and "score" in after:
        limit = after["max_drop"] if max_drop is None else max_drop
        if before["score"] - after["score"] > limit:
            scores = f"{before['score']:.4f} -> {after['score']:.4f}"
            sentences.append(f"{name}: {metrics.named(after['metric']).short} {scores}, more than {limit:g} lower")
        if after.get("over_limit") and not before.get("over_limit"):
            sentences.append(f"{run_tables.over_limit(after)}, and was not in the previous run")
    for figure, label in (("disk_bytes", "size on disk"), ("peak_rss_bytes", "peak memory")):
        if figure in before and figure in after and after[figure] > (1 + GROWTH) * before[figure]:
            sizes = f"{before[figure] / 1e6:.1f} -> {after[figure] / 1e6:.1f} MB"
            sentences.append(f"{name}: {label} {sizes}, more than {GROWTH:.0%} greater")
    return sentences


def _some(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
