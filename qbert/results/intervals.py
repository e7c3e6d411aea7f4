"""The interval of a speedup, and of the ratio of two: from how far a run's processes lie apart."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qbert.stats import CONFIDENCE

Logs = npt.NDArray[np.float64]
"""Logarithms of a cell's speedup, or of its ratio to another's, one of each process."""


def of_logs(cells: Sequence[Logs | None], pools: Sequence[Hashable]) -> list[tuple[float, float]]:
    """Return the interval of each cell's ratio, the exponential of the mean of its logarithms; nan where it has none.

    Source: Student's interval of a mean. Three processes say little of how far processes lie apart, so the variance
    is pooled over the cells of one of `pools`, and the degrees of freedom with it, as in an analysis of variance.
    """
    from scipy import special  # scipy.stats takes a second to import

    squares: dict[Hashable, float] = {}
    freedom: dict[Hashable, int] = {}
    for logs, pool in zip(cells, pools, strict=True):
        if logs is not None and logs.any():  # not of one that is held against itself
            squares[pool] = squares.get(pool, 0.0) + float(((logs - logs.mean()) ** 2).sum())
            freedom[pool] = freedom.get(pool, 0) + len(logs) - 1
    found = []
    for logs, pool in zip(cells, pools, strict=True):
        if logs is None or not logs.any() or not freedom.get(pool):
            found.append((float("nan"), float("nan")))
            continue
        error = (squares[pool] / freedom[pool] / len(logs)) ** 0.5
        reach = float(special.stdtrit(freedom[pool], (1 + CONFIDENCE) / 2)) * error
        found.append((float(np.exp(logs.mean() - reach)), float(np.exp(logs.mean() + reach))))
    return found


def speedups(cells: pd.DataFrame) -> list[tuple[float, float]]:
    """Return the interval of each speedup of `cells`, as history.cells gives them.

    Pooled over the cells of one runtime and run.
    """
    return of_logs([_logs(row) for row in cells.to_dict("records")], _pools(cells))


def ratios(cells: pd.DataFrame, others: Sequence[Mapping[Any, Any] | None]) -> list[tuple[float, float]]:
    """Return the interval of each of `cells`' speedup over that of the one of `others` (rows) in its place.

    Process by process, so that what the fp32 of a process does to the speedups of all its cells is not in it.
    """
    rows = cells.to_dict("records")
    return of_logs([_difference(row, other) for row, other in zip(rows, others, strict=True)], _pools(cells))


def apart(cells: pd.DataFrame, one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool | None:
    """Whether the speedups of the rows `one` and `other` of `cells` can be told apart; None where that is not known."""
    places = ["model", "max_length"]
    seconds = {
        tuple(row[name] for name in places): row
        for row in cells.to_dict("records")
        if row["variant"] == other["variant"]
    }
    others = [seconds.get(tuple(row[name] for name in places)) for row in cells.to_dict("records")]
    at = [all(row[name] == one[name] for name in [*places, "variant"]) for row in cells.to_dict("records")].index(True)
    low, high = ratios(cells, others)[at]
    return None if np.isnan(low) else not low <= 1 <= high


def _logs(row: Mapping[Any, Any]) -> Logs | None:
    figures = row["process_speedups"]
    return np.log(figures) if isinstance(figures, list) and figures else None


def _difference(row: Mapping[Any, Any], other: Mapping[Any, Any] | None) -> Logs | None:
    """Return the logarithms of `row` less those of `other`, where they are of the same processes."""
    if other is None or row.get("file") != other.get("file"):
        return None
    logs, others = _logs(row), _logs(other)
    if logs is None or (others is not None and len(others) != len(logs)):
        return None
    if others is None:  # fp32 itself
        return logs if other["speedup"] == 1 else None
    return logs - others


def _pools(cells: pd.DataFrame) -> list[Hashable]:
    files = cells["file"] if "file" in cells else [""] * len(cells)
    return list(zip(files, cells["runtime"], strict=True))
