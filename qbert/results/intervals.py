"""Intervals of speedups and of ratios of speedups, from the variance between a run's processes."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qbert.measure.stats import CONFIDENCE

Logs = npt.NDArray[np.float64]
"""Logarithms of a cell's speedup, or of its ratio to another cell's, one per process."""


def from_logs(cells: Sequence[Logs | None], pools: Sequence[Hashable]) -> list[tuple[float, float]]:
    """Return the interval of each cell's ratio, the exponential of the mean of its logarithms; nan without logarithms.

    Source: Student's interval of a mean. Three processes show little of the variance between processes, so variance
    and degrees of freedom are pooled over the cells with equal `pools`, as in an analysis of variance.
    """
    from scipy import special  # scipy.stats takes a second to import

    squares: dict[Hashable, float] = {}
    freedom: dict[Hashable, int] = {}
    for logs, pool in zip(cells, pools, strict=True):
        if logs is not None and logs.any():  # all are 0 if a cell is compared with itself
            squares[pool] = squares.get(pool, 0.0) + float(((logs - logs.mean()) ** 2).sum())
            freedom[pool] = freedom.get(pool, 0) + len(logs) - 1
    ends = []
    for logs, pool in zip(cells, pools, strict=True):
        if logs is None or not logs.any() or not freedom.get(pool):
            ends.append((float("nan"), float("nan")))
            continue
        error = (squares[pool] / freedom[pool] / len(logs)) ** 0.5
        margin = float(special.stdtrit(freedom[pool], (1 + CONFIDENCE) / 2)) * error
        ends.append((float(np.exp(logs.mean() - margin)), float(np.exp(logs.mean() + margin))))
    return ends


def speedups(cells: pd.DataFrame) -> list[tuple[float, float]]:
    """Return the interval of each speedup of `cells`, from history.cells, pooled over cells of one runtime and run."""
    return from_logs([_logs(row) for row in cells.to_dict("records")], _pools(cells))


def ratios(cells: pd.DataFrame, others: Sequence[Mapping[Any, Any] | None]) -> list[tuple[float, float]]:
    """Return the interval of the ratio of each cell's speedup to that of the row at the same position in `others`.

    The ratio is taken process by process: noise of fp32 in a process affects all speedups there, and cancels out.
    """
    rows = cells.to_dict("records")
    return from_logs([_difference(row, other) for row, other in zip(rows, others, strict=True)], _pools(cells))


def are_distinguishable(cells: pd.DataFrame, first: Mapping[Any, Any], second: Mapping[Any, Any]) -> bool | None:
    """Whether the speedups of the rows `first` and `second` of `cells` differ significantly; None if not known."""
    keys = ["model", "max_length"]
    rows = cells.to_dict("records")
    of_second = {tuple(row[name] for name in keys): row for row in rows if row["variant"] == second["variant"]}
    others = [of_second.get(tuple(row[name] for name in keys)) for row in rows]
    index = [all(row[name] == first[name] for name in [*keys, "variant"]) for row in rows].index(True)
    low, high = ratios(cells, others)[index]
    return None if np.isnan(low) else not low <= 1 <= high


def _logs(row: Mapping[Any, Any]) -> Logs | None:
    figures = row["process_speedups"]
    return np.log(figures) if isinstance(figures, list) and figures else None


def _difference(row: Mapping[Any, Any], other: Mapping[Any, Any] | None) -> Logs | None:
    """Return the logarithms of `row` less those of `other`; None if they are of different processes."""
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
