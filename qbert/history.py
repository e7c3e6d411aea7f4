"""pytest-benchmark's saved runs as one table, and where a cell's history changes; nothing here needs torch."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qbert import InputError, saved_run
from qbert.cache import cache_dir, write_file
from qbert.compare import CELL, MIN_EFFECT

LATENCY = [
    *("median_s", "q1_s", "q3_s", "p95_s", "speedup", "speedup_low", "speedup_high", "baseline_p50_s"),
    *("share_of_limit", "precision", "runtime", "process_speedups"),
]
ACCURACY = [
    *("f1", "f1_baseline", "f1_drop", "f1_drop_low", "f1_drop_high", "max_f1_drop", "f1_guard"),
    "over_limit",
    *("flips", "mcnemar_p", "documents", "smallest_visible_drop", "flipped"),
]
FOOTPRINT = ["disk_bytes", "load_s", "first_call_s", "after_pause_s", "peak_rss_bytes"]
RUN = ["file", "when", "machine", "dataset", "commit", "failed"]
SERIES = ["machine", "dataset", *CELL]
"""What one history is of: latency is of the dataset's texts, so other texts are another history."""
STORAGE = Path(".benchmarks")


def cells(benchmarks: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row a cell, in order of appearance, from entries of a run's `benchmarks`; foreign ones are left out.

    Columns: CELL, `trained`, `identity`, `stated` (whether its int8 is only what its own code says), LATENCY, ACCURACY,
    FOOTPRINT; missing where a run has no such benchmark.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for benchmark in benchmarks:
        info = benchmark.get("extra_info", {})
        if not all(name in info for name in [*CELL, "trained", "identity"]):
            continue
        row = rows.setdefault(
            tuple(info[name] for name in CELL), {name: info[name] for name in [*CELL, "trained", "identity"]}
        )
        row["stated"] = info.get("stated", False)
        measured = {"accuracy": ACCURACY, "footprint": FOOTPRINT}.get(info.get("measured"), LATENCY)
        row |= {name: info[name] for name in measured if name in info}
        if measured is LATENCY:
            row["median_s"] = benchmark["stats"]["median"]
            row |= {f"{name}_s": benchmark["stats"].get(name) for name in ("q1", "q3")}
            row |= {name: info["identity"].get("definition", {}).get(name, "") for name in ("precision", "runtime")}
    return pd.DataFrame(
        rows.values(), columns=[*CELL, "trained", "identity", "stated", *LATENCY, *ACCURACY, *FOOTPRINT]
    )


def read(path: Path) -> pd.DataFrame:
    """Return the cells of one saved run: the columns of `cells`, and RUN.

    Raises:
        InputError: the file cannot be read, is no run of pytest-benchmark, is damaged, or holds no cell of this suite.
    """
    run = saved_run.read(path)
    table = cells(saved_run.as_dictionaries(run.cells(str(path))))
    if table.empty:
        raise InputError(f"{path} holds no cell of this suite: it is another project's run, or an older version's")
    table["file"] = str(path)
    table["when"] = pd.to_datetime(run.datetime, utc=True)
    table["machine"] = table["identity"].map(machine_name)
    table["dataset"] = [f"{one.get('dataset', '')} ({one['dataset_sha256'][:12]})" for one in table["identity"]]
    table["commit"] = run.commit_info.id[:12] + "+" * run.commit_info.dirty
    table["failed"] = bool(run.qbert and run.qbert.failed)
    table["median_s"] = table["median_s"].astype(float)
    return table


def machine_name(identity: Mapping[str, Any]) -> str:
    """Return what keeps the latencies of one machine apart from those of another: processor and instruction sets."""
    return f"{identity.get('processor', 'unknown processor')} ({' '.join(identity.get('instruction_sets', []))})"


def load(paths: Sequence[Path]) -> pd.DataFrame:
    """Return the cells of every run in `paths`, one after the other.

    Raises:
        InputError: as `read`.
    """
    tables = [read(path) for path in paths]
    return pd.concat([table.dropna(axis="columns", how="all") for table in tables], ignore_index=True).reindex(
        columns=[*RUN, *tables[0].columns.drop(RUN)]
    )


def stored(storage: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the cells of all runs in pytest-benchmark's `storage`, oldest first, and a sentence for each not read.

    Runs whose guards failed are left out too.

    Raises:
        InputError: there is no such folder, or no run of this suite in it.
    """
    storage = Path(str(storage).removeprefix("file://"))
    if not storage.is_dir():
        raise InputError(f"{storage} is no folder: name the one that --benchmark-autosave saves to (.benchmarks)")
    tables, left_out = [], []
    for path in sorted(storage.rglob("*.json")):
        try:
            tables.append(read(path))
        except InputError as error:
            left_out.append(str(error))
    whole = [table for table in tables if not table["failed"].any()]
    left_out += [f"{table['file'].iloc[0]}: its guards failed" for table in tables if table["failed"].any()]
    if not whole:
        raise InputError(
            f"{storage} holds no run of this suite: save some with pytest bench/ --benchmark-autosave"
            + (f" ({left_out[0]})" if left_out else "")
        )
    table = pd.concat([table.dropna(axis="columns", how="all") for table in whole], ignore_index=True)
    table = table.reindex(columns=[*RUN, *whole[0].columns.drop(RUN)])
    return table.sort_values(["when", "file"], kind="stable", ignore_index=True), left_out


def change_points(latencies_s: Sequence[float] | npt.NDArray[np.float64], min_effect: float = MIN_EFFECT) -> list[int]:
    """Return where a series of medians changes: each the index of the first run that is different.

    A change is kept where the segments' medians differ by more than `min_effect`.

    Source: PELT: Killick, Fearnhead and Eckley 2012, with the absolute error of logarithms as cost, which a single
    outlier does not move. The noise is taken from successive differences, in which a change shows once; PENALTY times
    it times the logarithm of the number of runs finds a change in less than one of 20 constant series.
    """
    import ruptures

    logs = np.log(np.asarray(latencies_s, dtype=float))
    if len(logs) < 2 * SEGMENT:
        return []
    found = (
        ruptures.Pelt(model="l1", min_size=SEGMENT, jump=1)
        .fit(logs)
        .predict(pen=PENALTY * _noise(logs) * math.log(len(logs)))
    )
    kept: list[int] = []
    for point, end in itertools.pairwise(found):
        before, after = logs[kept[-1] if kept else 0 : point], logs[point:end]
        if abs(np.median(after) - np.median(before)) > math.log1p(min_effect):
            kept.append(point)
    return kept


SEGMENT = 2  # runs: one alone may be an accident
PENALTY = 2.5  # by simulation of 5 to 100 runs: at 2.0 up to 6 % of constant series have a change, at 2.5 up to 3.5 %
LEAST_NOISE = 0.003  # of logarithms: a few runs that happen to agree are no proof of none


def _noise(logs: npt.NDArray[np.float64]) -> float:
    """Return the standard deviation of `logs` around a level that changes now and then."""
    return max(float(1.4826 * np.median(np.abs(np.diff(logs))) / math.sqrt(2)), LEAST_NOISE)


def changes(table: pd.DataFrame, min_effect: float = MIN_EFFECT) -> list[dict[str, Any]]:
    """Return a row for each SERIES of `table`, as `stored` gives it: its runs, first and last level, changes.

    Each of `changes` has the `run` (a number from 0), its `commit` and `when`, and the `change` of latency there.
    """
    rows = []
    for key, group in table.dropna(subset=["median_s"]).groupby(SERIES, sort=False):
        latencies = group["median_s"].to_numpy()
        points = change_points(latencies, min_effect)
        levels = [float(np.median(part)) for part in np.split(latencies, points)]
        rows.append(
            dict(zip(SERIES, key, strict=True))
            | {"runs": len(group), "first_s": levels[0], "last_s": levels[-1]}
            | {
                "changes": [
                    {
                        "run": point,
                        "commit": group["commit"].iloc[point],
                        "when": group["when"].iloc[point],
                        "change": after / before - 1,
                    }
                    for point, before, after in zip(points, levels[:-1], levels[1:], strict=True)
                ]
            }
        )
    return rows


def spreads(table: pd.DataFrame) -> dict[tuple[Any, ...], tuple[float, int]]:
    """Return the standard deviation of log latency from run to run and its degrees of freedom, by machine and cell.

    Between change points, of the runs that `stored` gives; series of fewer than 4 runs have none.
    """
    found: dict[tuple[Any, ...], tuple[float, int]] = {}
    for key, group in table.dropna(subset=["median_s"]).groupby(["machine", *CELL]):
        series = [np.log(one["median_s"].to_numpy()) for _, one in group.groupby("dataset")]
        long = [logs for logs in series if len(logs) >= 4]  # noqa: PLR2004  fewer say too little of a spread
        segments = [part for logs in long for part in np.split(logs, change_points(np.exp(logs)))]
        if freedom := sum(map(len, segments)) - len(segments):
            squares = sum(((part - part.mean()) ** 2).sum() for part in segments)
            found[key] = (math.sqrt(squares / freedom), freedom)
    return found


def _calibration(machine: str) -> Path:
    return cache_dir() / "calibrations" / f"{hashlib.sha256(machine.encode()).hexdigest()[:16]}.json"


def keep_spreads(machine: str, spreads: Mapping[tuple[Any, ...], tuple[float, int]]) -> None:
    """Keep what a calibration of the gate found on `machine`: for each cell the spread and its degrees of freedom."""
    path = _calibration(machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = kept_spreads(machine) | {(machine, *key): value for key, value in spreads.items()}
    text = json.dumps([[*key[1:], *value] for key, value in kept.items()])
    write_file(path, lambda place: place.write_text(text, encoding="utf-8"))


def kept_spreads(machine: str) -> dict[tuple[Any, ...], tuple[float, int]]:
    """Return the spreads that calibrations left for `machine`, as `spreads` does; none where there was none."""
    try:
        rows = json.loads(_calibration(machine).read_text(encoding="utf-8"))
        return {(machine, *row[:3]): (float(row[3]), int(row[4])) for row in rows}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
