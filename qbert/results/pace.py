"""Figures of a run's cells put at one pace of the machine, with the intervals of their speedups."""

from typing import Any

import pandas as pd

from qbert.results import intervals
from qbert.results.tables import Row
from qbert.system.terminal import counted
from qbert.variants import BASELINE

PACE = (
    "Latencies are at one pace of the machine: fp32's median among the cells of a model and length, over the speedup."
)
PACE_CHANGE = 0.10
"""A greater relative difference of fp32's medians of one model and length is reported; on an idle machine it is 3 to
8 % (Granite Rapids)."""
SHARES = ("share_of_limit", "share_of_best_limit")


def with_intervals(cells: pd.DataFrame) -> pd.DataFrame:
    """Return `cells`, from history.cells, with the intervals of all speedups that have figures of each process.

    Older runs lack such figures and keep the intervals that they have saved.
    """
    ends = pd.DataFrame(intervals.speedups(cells), columns=["low", "high"], index=cells.index, dtype=float)
    return cells.assign(
        speedup_low=ends["low"].fillna(cells["speedup_low"].astype(float)),
        speedup_high=ends["high"].fillna(cells["speedup_high"].astype(float)),
    )


def at_one_pace(cells: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return `cells` with figures that are consistent within a row and rank like its speedup.

    A speedup is measured in pairs of blocks of calls, each pair at one moment. A median is measured at its cell's
    moment, and the machine's pace may change between cells. So `latency_s` is fp32's latency over the speedup, where
    fp32's latency is the median of all its medians among the cells of the same model and length in `runs`. If some of
    these cells have a speedup but no such median, `latency_s` is `median_s`.

    `over_best` is the speedup over the greatest speedup of an fp32 variant, with the interval `over_best_low` to
    `over_best_high`. `share_of_limit` and `share_of_best_limit` refer to `latency_s`. `pace_change` is greatest over
    least median of fp32, less 1. The intervals of speedups come from with_intervals.
    """
    fp32_s = runs["baseline_p50_s"].where(runs["variant"] != BASELINE, runs["median_s"]).astype(float)
    keys = [runs["model"], runs["max_length"]]
    complete = (fp32_s.notna() | runs["speedup"].isna()).groupby(keys).all()
    medians = fp32_s.groupby(keys)
    of_cells = pd.MultiIndex.from_frame(cells[["model", "max_length"]])
    speedup = cells["speedup"].astype(float)
    fp32_of_cells = pd.Series(medians.median().where(complete).reindex(of_cells).to_numpy(), index=cells.index)
    latency_s = (fp32_of_cells / speedup).fillna(cells["median_s"]).astype(float)
    cells = with_intervals(cells)
    best = speedup.where(cells["precision"] == "fp32").groupby([cells["model"], cells["max_length"]]).transform("max")
    over_best = pd.DataFrame(intervals.ratios(cells, _best_fp32(cells)), columns=["low", "high"], index=cells.index)
    return cells.assign(
        over_best_low=over_best["low"].astype(float),
        over_best_high=over_best["high"].astype(float),
        latency_s=latency_s,
        over_best=speedup / best.clip(lower=1),  # fp32's own speedup is 1, also if it was not run
        **{name: cells[name].astype(float) * cells["median_s"].astype(float) / latency_s for name in SHARES},
        pace_change=(medians.max() / medians.min() - 1).reindex(of_cells).to_numpy(),
    )


def _best_fp32(cells: pd.DataFrame) -> list[Row]:
    """Return for each of `cells` the fastest fp32 cell of its model and length: the baseline if none was run."""
    best: dict[Any, Row] = {}
    rows = cells.to_dict("records")
    for row in rows:
        key = row["model"], row["max_length"]
        best.setdefault(key, {"speedup": 1.0, "process_speedups": None, "file": row.get("file")})
        if row["precision"] == "fp32" and row["speedup"] > best[key]["speedup"]:
            best[key] = row
    return [best[row["model"], row["max_length"]] for row in rows]


def pace_changes(cells: pd.DataFrame) -> list[str]:
    """Return a sentence for each model and length during which the machine's pace changed by more than PACE_CHANGE."""
    return [
        f"The machine's pace changed by {row['pace_change']:.0%} among the cells of {row['model']}, "
        f"{row['max_length']} tokens."
        for row in cells.drop_duplicates(["model", "max_length"]).to_dict("records")
        if row["pace_change"] > PACE_CHANGE
    ]


def one_limit(cells: pd.DataFrame) -> pd.DataFrame:
    """Return `cells` without the shares of earlier definitions of the limit, where some are of a later one."""
    former = cells["limit_definition"].astype(float) < cells["limit_definition"].astype(float).max()
    return cells.assign(**{name: cells[name].mask(former) for name in SHARES})


def left_out_limits(cells: pd.DataFrame) -> list[str]:
    """Return a sentence where one_limit has left out shares of `cells`."""
    count = int((cells["limit_definition"].notna() & cells["share_of_limit"].isna()).sum())
    shares = f"Left out: {counted(count, 'share')} of the limit as older versions defined it."
    return [f"{shares} A report of those runs alone shows them."] if count else []
