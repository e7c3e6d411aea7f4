"""What is printed at the end of a run of the benchmarks: the table of its cells, how surely they were judged, notes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qbert.inputs import metrics
from qbert.results import history, run_tables
from qbert.variants import BASELINE

if TYPE_CHECKING:
    from rich.console import RenderableType

CAPTION = (
    "ms: one encoding of that many tokens to logits, steady state. Speedup, drop,\n"
    "flips: against fp32; over best fp32: over the fastest fp32, and half of its 95 %\n"
    "interval. Of limit: of what this core can do; then with attention at its best."
)


def table(results: Sequence[dict[str, Any]], dataset: str) -> "RenderableType":
    """Return the table of `results`, benchmarks in the format of pytest-benchmark on `dataset`."""
    title = f"qbert: {dataset}, batch 1, one thread"
    return run_tables.summary(history.cells(results), title=title, caption=CAPTION + _odds(results))


def group_table(results: Sequence[dict[str, Any]]) -> "RenderableType":
    """Return the table of the first `results` of a run, those of one model and length."""
    return run_tables.summary(history.cells(results))


TYPICAL_S = {"latency": 5.0, "accuracy": 3.0, "footprint": 12.0, "capacity": 8.0}
"""Seconds of a cell of each kind, until the run itself has some."""


def left(kinds: Sequence[str], seconds: Mapping[str, Sequence[float]]) -> str:
    """Return a line on the cells that are left, given what each measures, and about how long they will take.

    `seconds` has those of each cell so far.
    """
    done = sum(map(len, seconds.values()))
    spent = sum(map(sum, seconds.values()))
    means = TYPICAL_S | {kind: sum(each) / len(each) for kind, each in seconds.items()}
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in TYPICAL_S if kind in kinds)
    return (
        f"{done} of {done + len(kinds)} cells after {_clock(spent)}; left: {counts}, "
        f"about {_clock(sum(means[kind] for kind in kinds))}"
    )


def _clock(seconds: float) -> str:
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


def _odds(results: Sequence[dict[str, Any]]) -> str:
    """Return a line on how often the guard errs in the cell with the most flips; only of F1."""
    from qbert.measure import accuracy

    judged = [metrics.common_names(result["extra_info"]) for result in results]
    judged = [info for info in judged if info.get("guard") == "point" and "visible_drop" in info]
    judged = [info for info in judged if info["variant"] != BASELINE]
    judged = [info for info in judged if info["flips"] and 2 * info["max_drop"] < 1]  # else the guard cannot err
    if not judged:
        return ""
    most = max(judged, key=lambda info: info["flips"])
    return f"\n{accuracy.odds(most['documents'], most['flips'], most['max_drop'])} (the most flips of all cells)."


def notes(results: Sequence[dict[str, Any]], cannot: Mapping[str, str]) -> list[str]:
    """Return lines on variants of `results` that nobody named and that are over their limit, which is no failure.

    And on those that were left out: `cannot` has the reason by the cell's name.
    """
    infos = [result["extra_info"] for result in results]
    over = [run_tables.over_limit(info) for info in infos if info.get("over_limit") and not info["named"]]
    if over:
        over.append("--variants names none of these, so the run passes; with --strict-guard it fails.")
    cells = {why: ", ".join(name for name in cannot if cannot[name] == why) for why in cannot.values()}
    return over + [f"{names} left out: {why}" for why, names in cells.items()]
