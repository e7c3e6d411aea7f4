"""The change points of a cell's history, and the noise between them."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qbert.measure.stats import MIN_EFFECT
from qbert.results.compare import CELL, MACHINE, SUBJECT, differences, samples
from qbert.results.history import sessions

SERIES = ["machine", "dataset", *CELL]
"""The columns that identify one history; latency depends on the dataset's texts, so each dataset has its own."""
NOT_MACHINE = [name for name in SUBJECT if name not in MACHINE]
"""The keys of an identity that do not describe the machine."""


def change_points(latencies_s: Sequence[float] | npt.NDArray[np.float64], min_effect: float = MIN_EFFECT) -> list[int]:
    """Return the change points of a series of medians: the index of the first value of each new level.

    A change point is kept if the levels on both sides, up to the next change points, differ in a t test, and their
    medians by more than `min_effect`.

    Source: Matteson and James 2014, "A Nonparametric Approach for Multiple Change Point Analysis of Multivariate Data",
    for where to split; a t test instead of permutations, and removal of the weakest point until all are significant, as
    in Fleming et al. 2023, "Hunter: Using Change Point Detection to Hunt for Performance Regressions". Any value may be
    the first of a level, so a split's p-value must be below ALPHA over the number of values.
    """
    logs = np.log(np.asarray(latencies_s, dtype=float))
    max_p = ALPHA / max(1, len(logs))
    points: list[int] = []
    segments = [(0, len(logs))]
    while segments:
        start, end = segments.pop()
        if not (split := _split(logs[start:end], last=end == len(logs))):
            continue
        point, level_end = start + split[0], start + split[1]
        if _p_value(logs[start:point], logs[point:level_end]) < max_p:
            points.append(point)
            segments += [(start, point), (point, end)]
    points.sort()
    while points:
        pairs = list(itertools.pairwise(np.split(logs, points)))
        p_values = [_p_value(before, after) for before, after in pairs]
        effects = [abs(np.median(after) - np.median(before)) for before, after in pairs]
        if max(p_values) >= max_p:
            del points[int(np.argmax(p_values))]
        elif min(effects) <= math.log1p(min_effect):
            del points[int(np.argmin(effects))]
        else:
            break
    return points


LEVEL = 5  # values at least: three bad runs in a row, or two pairs of them, are not a level
LAST_LEVEL = 3  # finds the newest change early; two bad runs are not a level
ALPHA = 0.07  # up to 3 % of constant series of 8 to 100 values change (tests/results/test_history_error_rates.py)
LEAST_NOISE = 0.003  # standard deviation of logarithms: a few equal runs do not prove that there is no noise
NOISIER = 0.05  # level of the F test


def _split(values: npt.NDArray[np.float64], *, last: bool) -> tuple[int, int] | None:
    """Return begin and end of the second level for which the first two levels differ most; None if values are too few.

    `last`: no value follows these. Source: Matteson and James 2014, equations 5 to 7, with exponent 1: the scaled
    energy distance between values[:begin] and values[begin:end], maximized over begin and end.
    """
    begin, end = np.triu_indices(len(values) + 1, LAST_LEVEL)
    long = (begin >= LEVEL) & ((end - begin >= LEVEL) | (last & (end == len(values))))
    if not long.any():
        return None
    begin, end = begin[long], end[long]
    # Cumulative sums of the pairwise distances: every sum that a split needs is a difference of these.
    sums = np.pad(np.abs(values[:, None] - values).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    first, first_to_both, both = sums[begin, begin], sums[begin, end], sums[end, end]
    before, after = begin, end - begin
    energy = (
        2 * (first_to_both - first) / (before * after)
        - first / (before * (before - 1))
        - (both - 2 * first_to_both + first) / (after * (after - 1))
    )
    best = int(np.argmax(before * after / (before + after) * energy))
    return int(begin[best]), int(end[best])


def _p_value(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> float:
    """Return the p-value of the difference between two levels, by Student's t test with pooled variance.

    If one side is noisier than the other (F test), its variance is used for both: a few bad runs are not a level.
    """
    from scipy import special  # scipy.stats takes a second to import

    freedoms = [len(before) - 1, len(after) - 1]
    variances = [max(float(side.var(ddof=1)), LEAST_NOISE**2) for side in (before, after)]
    noisier = int(variances[1] > variances[0])
    variance = float(np.average(variances, weights=freedoms))
    if special.fdtrc(freedoms[noisier], freedoms[1 - noisier], variances[noisier] / variances[1 - noisier]) < NOISIER:
        variance = variances[noisier]
    error = math.sqrt(variance * (1 / len(before) + 1 / len(after)))
    return float(2 * special.stdtr(sum(freedoms), -abs(after.mean() - before.mean()) / error))


def changes(table: pd.DataFrame, min_effect: float = MIN_EFFECT) -> list[dict[str, Any]]:
    """Return a row for each SERIES of a `table` from `stored`: number of runs, first and last level, changes.

    A session's runs are one value of the series. Each of `changes` has the index of the first changed `run`, `when` it
    was, the `commits`, in git's notation, one of which caused it, and the relative `change` of latency.
    """
    rows = []
    for key, group in table.dropna(subset=["median_s"]).groupby(SERIES, sort=False):
        means = samples(group)
        points = change_points(np.exp(means), min_effect)
        levels = [float(np.median(part)) for part in np.split(means, points)]
        rows.append(
            dict(zip(SERIES, key, strict=True))
            | {"runs": len(group), "first_s": math.exp(levels[0]), "last_s": math.exp(levels[-1])}
            | {
                "changes": [
                    {
                        "run": run,
                        "commits": _range(group["commit"].iloc[run - 1], group["commit"].iloc[run]),
                        "when": group["when"].iloc[run],
                        "change": math.expm1(after - before),
                    }
                    for point, (before, after) in zip(points, itertools.pairwise(levels), strict=True)
                    for run in [_first_run(group, point, before, after)]
                ]
            }
        )
    return rows


def _first_run(group: pd.DataFrame, point: int, before: float, after: float) -> int:
    """Return the index of the first run at the level `after`, given that the level changes at the session `point`.

    The run may lie in this session or in the previous one: it is the one with the least squared residuals. The levels
    are logarithms.
    """
    previous, this = np.unique(group["session"])[point - 1 : point + 1]
    session, logs = group["session"].to_numpy(), np.log(group["median_s"].to_numpy())
    candidates = range(int(np.argmax(session == previous)) + 1, int(np.flatnonzero(session == this)[-1]) + 1)
    return min(
        candidates,
        key=lambda run: float(((logs[:run] - before) ** 2).sum() + ((logs[run:] - after) ** 2).sum()),
    )


def _range(before: str, after: str) -> str:
    """Return the commits after `before` up to `after`; `+` marks uncommitted changes."""
    before, after = (commit[:7] + "+" * commit.endswith("+") for commit in (before, after))
    return after if before == after else f"{before}..{after}"


def spreads(table: pd.DataFrame, compared: pd.DataFrame) -> dict[tuple[Any, ...], tuple[float, int]]:
    """Return the standard deviation of log latency between sessions and its degrees of freedom, by cell.

    It is taken between change points of the runs in `table`, from `stored`, on the machine of the first run
    `compared`. The sessions of the runs compared are left out; a series with fewer than 4 other sessions is too short.
    """
    first = compared["identity"].iloc[0]
    table = table[[not differences(identity, first, may_differ=NOT_MACHINE) for identity in table["identity"]]]
    numbers = sessions(pd.concat([runs[["when", "host", "boot"]] for runs in (table, compared)]))
    others = table.assign(session=numbers[: len(table)])
    others = others[~others["session"].isin(numbers[len(table) :])]
    by_cell: dict[tuple[Any, ...], tuple[float, int]] = {}
    for key, group in others.dropna(subset=["median_s"]).groupby(CELL):
        series = [samples(of_dataset) for _, of_dataset in group.groupby("dataset")]
        long = [logs for logs in series if len(logs) >= 4]  # noqa: PLR2004  fewer hardly show the spread
        segments = [part for logs in long for part in np.split(logs, change_points(np.exp(logs)))]
        if freedom := sum(map(len, segments)) - len(segments):
            squares = sum(((part - part.mean()) ** 2).sum() for part in segments)
            by_cell[key] = (math.sqrt(squares / freedom), freedom)
    return by_cell
