"""pytest-benchmark's saved runs as one table, and the change points of a cell's history, without torch."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qbert.measure import guard
from qbert.measure.stats import MIN_EFFECT
from qbert.results import saved_run
from qbert.results.compare import CELL, MACHINE, SUBJECT, differences, samples
from qbert.system import machine
from qbert.system.errors import InputError
from qbert.variants import BASELINE

LATENCY = [
    *("median_s", "q1_s", "q3_s", "p95_s", "speedup", "speedup_low", "speedup_high", "baseline_p50_s"),
    *("share_of_limit", "share_of_best_limit", "limit_definition", "precision", "runtime", "process_speedups"),
]
ACCURACY = [
    *("f1", "f1_baseline", "f1_drop", "f1_drop_low", "f1_drop_high", "max_f1_drop", "f1_guard"),
    "over_limit",
    *("flips", "mcnemar_p", "documents", "visible_drop", "flipped", "answers"),
]
FOOTPRINT = ["disk_bytes", "load_s", "first_call_s", "after_pause_s", "peak_rss_bytes"]
CAPACITY = [
    *("workers", "worker_threads", "texts_per_s", "loaded_p50_s", "loaded_p95_s", "loaded_p99_s", "loaded_worst_s"),
    *(
        "worker_shares",
        "alone_p50_s",
        "half_load_slowdown",
        "loaded_over_alone",
        "loaded_over_alone_low",
        "loaded_over_alone_high",
    ),
    *("pss_bytes", "latency_limit_s", "rates", "rates_p99_s", "rate_within_limit", "price_per_hour"),
    *("cost_per_million", "scaling", "traffic", "traffic_sha256", "traffic_tokens", "capacity_notes"),
]
RUN = ["file", "when", "host", "boot", "machine", "dataset", "commit", "failed"]
FIGURES = {"accuracy": ACCURACY, "footprint": FOOTPRINT, "capacity": CAPACITY}
SERIES = ["machine", "dataset", *CELL]
"""The columns that identify one history; latency depends on the dataset's texts, so each dataset has its own."""
STORAGE = Path(".benchmarks")
FIRST_LIMIT = 1
"""The definition of the limit in runs that name none; roofline.DEFINITION is the present one."""


def cells(benchmarks: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per cell, in order of appearance, from a run's `benchmarks`; other projects' are left out.

    Columns: CELL, `trained`, `identity`, `stated` (whether only its own code says that it is int8), LATENCY, ACCURACY,
    FOOTPRINT, CAPACITY; values are missing if the run lacks that benchmark.
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
        measured = FIGURES.get(info.get("measured"), LATENCY)
        row |= {name: info[name] for name in measured if name in info}
        if "f1_guard" in info:  # older runs did not record the guard's verdict
            at_most = info.get("f1_drop_at_most", info["f1_drop_high"])  # older runs were judged by the latter
            judged = guard.figure(info["f1_drop"], at_most, info["f1_guard"])
            row["over_limit"] = info["variant"] != BASELINE and judged > info["max_f1_drop"]
        if measured is LATENCY:
            row["median_s"] = benchmark["stats"]["median"]
            if "share_of_limit" in row:
                row.setdefault("limit_definition", FIRST_LIMIT)
            row |= {f"{name}_s": benchmark["stats"].get(name) for name in ("q1", "q3")}
            row |= {name: info["identity"].get("definition", {}).get(name, "") for name in ("precision", "runtime")}
    return pd.DataFrame(
        rows.values(), columns=[*CELL, "trained", "identity", "stated", *LATENCY, *ACCURACY, *FOOTPRINT, *CAPACITY]
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
    table["host"] = str(run.machine_info.get("node", ""))
    table["boot"] = run.qbert.boot if run.qbert else ""
    cpu = run.machine_info.get("cpu")
    hardware = machine.of_cpuinfo(cpu) if isinstance(cpu, dict) else {}  # older runs have no `hardware` themselves
    table["identity"] = [{"hardware": hardware} | identity for identity in table["identity"]]
    table["machine"] = table["identity"].map(machine_name)
    table["dataset"] = [
        f"{identity.get('dataset', '')} ({identity['dataset_sha256'][:12]})" for identity in table["identity"]
    ]
    table["commit"] = run.commit_info.id[:12] + "+" * run.commit_info.dirty
    table["failed"] = bool(run.qbert and run.qbert.failed)
    table["median_s"] = table["median_s"].astype(float)
    return table


def machine_name(identity: Mapping[str, Any]) -> str:
    """Return a name for a machine that distinguishes it from most others; it begins with the name that it was given."""
    hardware = identity.get("hardware", {})
    parts = [
        *(identity[key] for key in ("machine_name",) if key in identity),
        hardware.get("instance type", ""),
        identity.get("processor", "unknown processor"),
        " ".join(f"{name} {hardware[name]}" for name in ("family", "model") if name in hardware),
        f"{hardware['logical cores']} cores" if "logical cores" in hardware else "",
    ]
    return f"{', '.join(filter(None, parts))} ({' '.join(identity.get('instruction_sets', []))})"


def _concatenate(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate `tables` from `read`; machines with one name but different hardware get different names.

    The column `sitting` comes from `sittings`.
    """
    table = pd.concat([run.dropna(axis="columns", how="all") for run in tables], ignore_index=True)
    table = table.reindex(columns=[*RUN, *tables[0].columns.drop(RUN)])
    machines: dict[str, list[dict[str, Any]]] = {}
    indices = []
    for name, identity in zip(table["machine"], table["identity"], strict=True):
        hardware, namesakes = identity["hardware"], machines.setdefault(name, [])
        same = (known for known in namesakes if not differences({"hardware": known}, {"hardware": hardware}))
        match = next(same, None)
        if match is None:
            namesakes.append(match := {})
        match |= hardware
        indices.append(namesakes.index(match))
    table["machine"] = [
        name + "".join(f", {key} {value}" for key, value in _distinctive(machines[name], index))
        for name, index in zip(table["machine"], indices, strict=True)
    ]
    return table.assign(sitting=sittings(table))


NOT_MACHINE = [name for name in SUBJECT if name not in MACHINE]
"""The keys of an identity that do not describe the machine."""


def _distinctive(machines: Sequence[Mapping[str, Any]], index: int) -> list[tuple[str, Any]]:
    """Return the properties of `machines[index]` in which any other of `machines` differs from it."""
    own = machines[index]
    return [(key, value) for key, value in own.items() if any(hardware.get(key) != value for hardware in machines)]


def sittings(table: pd.DataFrame) -> list[int]:
    """Return the number of each row's sitting: a series of runs that share the machine's state.

    The runs of a sitting have one boot (one host, if a run does not record its boot); each is less than GAP after the
    previous one and less than LONGEST after the first. They share whatever varies from day to day, so several of them
    are no surer than one.
    """
    columns = [table[name] for name in ("when", "host", "boot")]
    numbers: dict[tuple[pd.Timestamp, str, str], int] = {}
    current: dict[int, tuple[pd.Timestamp, pd.Timestamp, str, str]] = {}  # first and last run, host, boot
    for number, run in enumerate(sorted(set(zip(*columns, strict=True)))):
        when, host, boot = run
        current = {
            sitting: state for sitting, state in current.items() if when - state[1] < GAP and when - state[0] < LONGEST
        }
        same = (
            sitting
            for sitting, (*_, its_host, its_boot) in current.items()
            if (boot == its_boot if boot and its_boot else host == its_host)
        )
        numbers[run] = next(same, number)
        first, _, _, known_boot = current.get(numbers[run], (when, when, host, boot))
        current[numbers[run]] = (first, when, host, boot or known_boot)
    return [numbers[run] for run in zip(*columns, strict=True)]


GAP = pd.Timedelta(hours=6)
LONGEST = pd.Timedelta(days=1)


def load(paths: Sequence[Path]) -> pd.DataFrame:
    """Return the cells of all runs in `paths`, run by run, with the column `sitting`.

    Raises:
        InputError: as in `read`.
    """
    return _concatenate([read(path) for path in paths])


def stored(storage: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the cells of all runs in pytest-benchmark's `storage` as `load` does, oldest first, and what is left out.

    Left out, with a sentence for each, are runs that cannot be read or whose guards failed.

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
    return _concatenate(whole).sort_values(["when", "file"], kind="stable", ignore_index=True), left_out


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

    A sitting's runs are one value of the series. Each of `changes` has the index of the first changed `run`, `when` it
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
    """Return the index of the first run at the level `after`, given that the level changes at the sitting `point`.

    The run may lie in this sitting or in the previous one: it is the one with the least squared residuals. The levels
    are logarithms.
    """
    previous, this = np.unique(group["sitting"])[point - 1 : point + 1]
    sitting, logs = group["sitting"].to_numpy(), np.log(group["median_s"].to_numpy())
    candidates = range(int(np.argmax(sitting == previous)) + 1, int(np.flatnonzero(sitting == this)[-1]) + 1)
    return min(
        candidates,
        key=lambda run: float(((logs[:run] - before) ** 2).sum() + ((logs[run:] - after) ** 2).sum()),
    )


def _range(before: str, after: str) -> str:
    """Return the commits after `before` up to `after`; `+` marks uncommitted changes."""
    before, after = (commit[:7] + "+" * commit.endswith("+") for commit in (before, after))
    return after if before == after else f"{before}..{after}"


def spreads(table: pd.DataFrame, compared: pd.DataFrame) -> dict[tuple[Any, ...], tuple[float, int]]:
    """Return the standard deviation of log latency between sittings and its degrees of freedom, by cell.

    It is taken between change points of the runs in `table`, from `stored`, on the machine of the first run
    `compared`. The sittings of the runs compared are left out; a series with fewer than 4 other sittings is too short.
    """
    first = compared["identity"].iloc[0]
    table = table[[not differences(identity, first, may_differ=NOT_MACHINE) for identity in table["identity"]]]
    numbers = sittings(pd.concat([runs[["when", "host", "boot"]] for runs in (table, compared)]))
    others = table.assign(sitting=numbers[: len(table)])
    others = others[~others["sitting"].isin(numbers[len(table) :])]
    by_cell: dict[tuple[Any, ...], tuple[float, int]] = {}
    for key, group in others.dropna(subset=["median_s"]).groupby(CELL):
        series = [samples(of_dataset) for _, of_dataset in group.groupby("dataset")]
        long = [logs for logs in series if len(logs) >= 4]  # noqa: PLR2004  fewer hardly show the spread
        segments = [part for logs in long for part in np.split(logs, change_points(np.exp(logs)))]
        if freedom := sum(map(len, segments)) - len(segments):
            squares = sum(((part - part.mean()) ** 2).sum() for part in segments)
            by_cell[key] = (math.sqrt(squares / freedom), freedom)
    return by_cell
