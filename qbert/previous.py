"""What pytest-benchmark's `--benchmark-compare` lets pass in silence: cells that are gone, other subjects, F1, size."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qbert import compare

GROWTH = 0.05  # of bytes on disk, which do not vary, and of peak memory, which varies by 1 to 2 %
FAILED = "failed"
Benchmark = Mapping[str, Any]


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
            said.append(f"{len(self.gone)} of the previous run's cells were not run: {_some(self.gone)}")
        said += [f"not comparable, {what}: {_some(names)}" for what, names in self.different.items()]
        return said + self.worse


def hold(now: Iterable[Benchmark], previous: Iterable[Benchmark], *, max_f1_drop: float | None = None) -> Findings:
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
    for figure, what in (("disk_bytes", "size on disk"), ("peak_rss_bytes", "peak memory")):
        if figure in before and figure in after and after[figure] > (1 + GROWTH) * before[figure]:
            sizes = f"{before[figure] / 1e6:.1f} -> {after[figure] / 1e6:.1f} MB"
            said.append(f"{name}: {what} {sizes}, more than {GROWTH:.0%} greater")
    return said


def _some(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
