"""pytest-benchmark's saved runs as one table, and where a cell's history changes; nothing here needs torch."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qbert import machine
from qbert.errors import InputError
from qbert.results import saved_run
from qbert.results.compare import CELL, SUBJECT, differences, samples
from qbert.stats import MIN_EFFECT

LATENCY = [
    *("median_s", "q1_s", "q3_s", "p95_s", "speedup", "speedup_low", "speedup_high", "baseline_p50_s"),
    *("share_of_limit", "precision", "runtime", "process_speedups"),
]
ACCURACY = [
    *("f1", "f1_baseline", "f1_drop", "f1_drop_low", "f1_drop_high", "max_f1_drop", "f1_guard"),
    "over_limit",
    *("flips", "mcnemar_p", "documents", "visible_drop", "flipped", "answers"),
]
FOOTPRINT = ["disk_bytes", "load_s", "first_call_s", "after_pause_s", "peak_rss_bytes"]
RUN = ["file", "when", "host", "boot", "machine", "dataset", "commit", "failed"]
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
    table["host"] = str(run.machine_info.get("node", ""))
    table["boot"] = run.qbert.boot if run.qbert else ""
    cpu = run.machine_info.get("cpu")
    known = machine.of_cpuinfo(cpu) if isinstance(cpu, dict) else {}
    table["identity"] = [{"hardware": known} | one for one in table["identity"]]  # older runs have none of their own
    table["machine"] = table["identity"].map(machine_name)
    table["dataset"] = [f"{one.get('dataset', '')} ({one['dataset_sha256'][:12]})" for one in table["identity"]]
    table["commit"] = run.commit_info.id[:12] + "+" * run.commit_info.dirty
    table["failed"] = bool(run.qbert and run.qbert.failed)
    table["median_s"] = table["median_s"].astype(float)
    return table


def machine_name(identity: Mapping[str, Any]) -> str:
    """Return a machine's name: what keeps its latencies apart from those of most others, and is short."""
    hardware = identity.get("hardware", {})
    parts = [
        identity.get("processor", "unknown processor"),
        " ".join(f"{name} {hardware[name]}" for name in ("family", "model") if name in hardware),
        f"{hardware['logical cores']} cores" if "logical cores" in hardware else "",
    ]
    return f"{', '.join(filter(None, parts))} ({' '.join(identity.get('instruction_sets', []))})"


def _together(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return `tables`, as `read` gives them, as one, in which machines of one name but other hardware are told apart.

    Its column `sitting` is as `sittings` gives it.
    """
    table = pd.concat([one.dropna(axis="columns", how="all") for one in tables], ignore_index=True)
    table = table.reindex(columns=[*RUN, *tables[0].columns.drop(RUN)])
    kinds: dict[str, list[dict[str, Any]]] = {}
    places = []
    for name, identity in zip(table["machine"], table["identity"], strict=True):
        hardware, known = identity["hardware"], kinds.setdefault(name, [])
        same = (one for one in known if not differences({"hardware": one}, {"hardware": hardware}))
        kind = next(same, None)
        if kind is None:
            known.append(kind := {})
        kind |= hardware
        places.append(known.index(kind))
    table["machine"] = [
        name + "".join(f", {key} {value}" for key, value in _apart(kinds[name], place))
        for name, place in zip(table["machine"], places, strict=True)
    ]
    return table.assign(sitting=sittings(table))


OTHER = [name for name in SUBJECT if name not in {"processor", "instruction_sets", "hardware"}]
"""What of an identity does not tell which machine it is."""


def _apart(kinds: Sequence[Mapping[str, Any]], place: int) -> list[tuple[str, Any]]:
    """Return what of the hardware `kinds[place]` the others have otherwise."""
    return [(key, value) for key, value in kinds[place].items() if any(one.get(key) != value for one in kinds)]


def sittings(table: pd.DataFrame) -> list[int]:
    """Return for each row of `table` the number of its sitting: runs in which the machine's state is one.

    They are of one boot (of one host, where a run does not know its boot), each less than GAP after the one before it
    and less than LONGEST after the first. What differs from day to day is the same in all of them, so that several are
    no more sure than one.
    """
    columns = [table[name] for name in ("when", "host", "boot")]
    numbers: dict[tuple[pd.Timestamp, str, str], int] = {}
    going_on: dict[int, tuple[pd.Timestamp, pd.Timestamp, str, str]] = {}  # first and last run, host, boot
    for number, run in enumerate(sorted(set(zip(*columns, strict=True)))):
        when, host, boot = run
        going_on = {
            one: known for one, known in going_on.items() if when - known[1] < GAP and when - known[0] < LONGEST
        }
        same = (
            one
            for one, (*_, its_host, its_boot) in going_on.items()
            if (boot == its_boot if boot and its_boot else host == its_host)
        )
        numbers[run] = next(same, number)
        first, _, _, known_boot = going_on.get(numbers[run], (when, when, host, boot))
        going_on[numbers[run]] = (first, when, host, boot or known_boot)
    return [numbers[run] for run in zip(*columns, strict=True)]


GAP = pd.Timedelta(hours=6)
LONGEST = pd.Timedelta(days=1)


def load(paths: Sequence[Path]) -> pd.DataFrame:
    """Return the cells of every run in `paths`, one after the other, and the `sitting` of each.

    Raises:
        InputError: as `read`.
    """
    return _together([read(path) for path in paths])


def stored(storage: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the cells of all runs in pytest-benchmark's `storage`, oldest first, and a sentence for each not read.

    They are as `load` gives them. Runs whose guards failed are left out too.

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
    return _together(whole).sort_values(["when", "file"], kind="stable", ignore_index=True), left_out


def change_points(latencies_s: Sequence[float] | npt.NDArray[np.float64], min_effect: float = MIN_EFFECT) -> list[int]:
    """Return where a series of medians changes: each the index of the first value that is different.

    A change is kept where the levels before and after it, up to the next changes, differ by a t test, and their medians
    by more than `min_effect`.

    Source: Matteson and James 2014, "A Nonparametric Approach for Multiple Change Point Analysis of Multivariate Data",
    for where to split; a t test instead of permutations, and the weakest point taken out until all of them hold, as in
    Fleming et al. 2023, "Hunter: Using Change Point Detection to Hunt for Performance Regressions". Each of the values
    may be the first of a level, so a split's p-value has to be below ALPHA over their number.
    """
    logs = np.log(np.asarray(latencies_s, dtype=float))
    sure = ALPHA / max(1, len(logs))
    points: list[int] = []
    left = [(0, len(logs))]
    while left:
        start, end = left.pop()
        if not (found := _split(logs[start:end], last=end == len(logs))):
            continue
        point, until = start + found[0], start + found[1]
        if _p_value(logs[start:point], logs[point:until]) < sure:
            points.append(point)
            left += [(start, point), (point, end)]
    points.sort()
    while points:
        pairs = list(itertools.pairwise(np.split(logs, points)))
        p_values = [_p_value(before, after) for before, after in pairs]
        effects = [abs(np.median(after) - np.median(before)) for before, after in pairs]
        if max(p_values) >= sure:
            del points[int(np.argmax(p_values))]
        elif min(effects) <= math.log1p(min_effect):
            del points[int(np.argmin(effects))]
        else:
            break
    return points


LEVEL = 5  # values: of three bad runs in a row, or two times two, a level is made too soon
LAST_LEVEL = 3  # so that the newest change is found early; of two bad runs nothing is made
ALPHA = 0.07  # by simulation of 8 to 100 values (tests/test_statistics_history.py): up to 3 % of constant series
LEAST_NOISE = 0.003  # of logarithms: a few runs that happen to agree are no proof of none
NOISIER = 0.05


def _split(values: npt.NDArray[np.float64], *, last: bool) -> tuple[int, int] | None:
    """Return where the level after the first begins and ends, so that the two differ most; none of too few values.

    `last` tells that no value comes after these. Source: Matteson and James 2014, equations 5 to 7, with the exponent
    1: the scaled energy distance between values[:begin] and values[begin:end], greatest over both.
    """
    begin, end = np.triu_indices(len(values) + 1, LAST_LEVEL)
    long = (begin >= LEVEL) & ((end - begin >= LEVEL) | (last & (end == len(values))))
    if not long.any():
        return None
    begin, end = begin[long], end[long]
    # Sums of distances over squares of pairs: all sides of a split are differences of these.
    sums = np.pad(np.abs(values[:, None] - values).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    within, reached, whole = sums[begin, begin], sums[begin, end], sums[end, end]
    before, after = begin, end - begin
    energy = (
        2 * (reached - within) / (before * after)
        - within / (before * (before - 1))
        - (whole - 2 * reached + within) / (after * (after - 1))
    )
    most = int(np.argmax(before * after / (before + after) * energy))
    return int(begin[most]), int(end[most])


def _p_value(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> float:
    """Return how likely two levels that are the same would differ so much, by Student's t test with pooled variance.

    Where one side is noisier than the other (F test), its variance counts for both: a few bad runs are no level.
    """
    from scipy import special  # scipy.stats takes a second to import

    freedoms = [len(before) - 1, len(after) - 1]
    variances = [max(float(side.var(ddof=1)), LEAST_NOISE**2) for side in (before, after)]
    more = int(variances[1] > variances[0])
    variance = float(np.average(variances, weights=freedoms))
    if special.fdtrc(freedoms[more], freedoms[1 - more], variances[more] / variances[1 - more]) < NOISIER:
        variance = variances[more]
    error = math.sqrt(variance * (1 / len(before) + 1 / len(after)))
    return float(2 * special.stdtr(sum(freedoms), -abs(after.mean() - before.mean()) / error))


def changes(table: pd.DataFrame, min_effect: float = MIN_EFFECT) -> list[dict[str, Any]]:
    """Return a row for each SERIES of `table`, as `stored` gives it: its runs, first and last level, changes.

    A sitting's runs are one value of the series. Each of `changes` has the `run` (a number from 0), `when` it was, the
    `commits` one of which the change comes from, in git's notation, and the `change` of latency there.
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
    """Return the first run at the level `after`, where the levels (of logarithms) change at the sitting `point`.

    It may be within this sitting or the one before it: there the squares of what is left are least.
    """
    last, this = np.unique(group["sitting"])[point - 1 : point + 1]
    sitting, logs = group["sitting"].to_numpy(), np.log(group["median_s"].to_numpy())
    possible = range(int(np.argmax(sitting == last)) + 1, int(np.flatnonzero(sitting == this)[-1]) + 1)
    return min(
        possible,
        key=lambda run: float(((logs[:run] - before) ** 2).sum() + ((logs[run:] - after) ** 2).sum()),
    )


def _range(before: str, after: str) -> str:
    """Return the commits after `before` up to `after`; a `+` tells that there were changes without a commit."""
    before, after = (commit[:7] + "+" * commit.endswith("+") for commit in (before, after))
    return after if before == after else f"{before}..{after}"


def spreads(table: pd.DataFrame, compared: pd.DataFrame) -> dict[tuple[Any, ...], tuple[float, int]]:
    """Return the standard deviation of log latency from sitting to sitting and its degrees of freedom, by cell.

    Between change points, of the runs that `stored` gives, on the machine of the first run `compared`. The sittings in
    which those compared lie are left out; series of fewer than 4 others have none.
    """
    here = compared["identity"].iloc[0]
    table = table[[not differences(one, here, may_differ=OTHER) for one in table["identity"]]]
    numbers = sittings(pd.concat([one[["when", "host", "boot"]] for one in (table, compared)]))
    others = table.assign(sitting=numbers[: len(table)])
    others = others[~others["sitting"].isin(numbers[len(table) :])]
    found: dict[tuple[Any, ...], tuple[float, int]] = {}
    for key, group in others.dropna(subset=["median_s"]).groupby(CELL):
        series = [samples(one) for _, one in group.groupby("dataset")]
        long = [logs for logs in series if len(logs) >= 4]  # noqa: PLR2004  fewer say too little of a spread
        segments = [part for logs in long for part in np.split(logs, change_points(np.exp(logs)))]
        if freedom := sum(map(len, segments)) - len(segments):
            squares = sum(((part - part.mean()) ** 2).sum() for part in segments)
            found[key] = (math.sqrt(squares / freedom), freedom)
    return found
