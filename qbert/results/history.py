"""pytest-benchmark's saved runs as one table."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from msgspec.structs import asdict

from qbert.inputs import metrics
from qbert.measure import guard
from qbert.results import columns, saved_run
from qbert.results.compare import CELL, differences
from qbert.system import machine
from qbert.system.errors import InputError
from qbert.variants import BASELINE

RUN = ["file", "when", "host", "boot", "machine", "dataset", "commit", "failed"]
STORAGE = Path(".benchmarks")
FIRST_LIMIT = 1
"""The definition of the limit in runs that name none; roofline.DEFINITION is the present one."""


def cells(benchmarks: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per cell, in order of appearance, from a run's `benchmarks`; other projects' are left out.

    Columns: CELL, `trained`, `identity`, `stated` (whether only its own code says that it is int8), and columns.kept;
    values are missing if the run lacks that benchmark.
    """
    known = [*CELL, "trained", "identity"]
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for benchmark in benchmarks:
        info = metrics.common_names(benchmark.get("extra_info", {}))
        if not all(name in info for name in known):
            continue
        row = rows.setdefault(tuple(info[name] for name in CELL), {name: info[name] for name in known})
        row["stated"] = info.get("stated", False)
        measured = info["measured"] if info.get("measured") in columns.COLUMNS else "latency"
        row |= {name: info[name] for name in columns.kept(measured) if name in info}
        if "guard" in info:  # older runs did not record the guard's verdict
            at_most = info.get("drop_at_most", info["drop_high"])  # older runs were judged by the latter
            judged = guard.figure(info["drop"], at_most, info["guard"])
            row["over_limit"] = info["variant"] != BASELINE and judged > info["max_drop"]
        if measured == "latency":
            if "share_of_limit" in row:
                row.setdefault("limit_definition", FIRST_LIMIT)
            row |= {f"{name}_s": benchmark["stats"].get(name) for name in ("median", "q1", "q3")}
            row |= {name: info["identity"].get("definition", {}).get(name, "") for name in ("precision", "runtime")}
    return pd.DataFrame(rows.values(), columns=[*known, "stated", *columns.kept()])


def read(path: Path) -> pd.DataFrame:
    """Return the cells of one saved run: the columns of `cells`, and RUN.

    Raises:
        InputError: the file cannot be read, is no run of pytest-benchmark, is damaged, or holds no cell of this suite.
    """
    run = saved_run.read(path)
    table = cells({"extra_info": one.extra_info, "stats": asdict(one.stats)} for one in run.cells(str(path)))
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


def own_names(table: pd.DataFrame) -> pd.DataFrame:
    """Return `table` with the figures of each metric under its own names: of F1 `f1`, `f1_drop` and so on."""
    common = [name for name in metrics.NAMES if name in table]
    judged = {
        metrics.NAMES[name].format(key): table[name].where(table["metric"] == key)
        for key in dict.fromkeys([*table["metric"].dropna(), *([] if table["metric"].notna().any() else ["f1"])])
        for name in common
    }
    place = table.columns.get_loc("metric")
    rest = table.drop(columns=["metric", *common])
    return pd.concat([rest.iloc[:, :place], pd.DataFrame(judged, index=table.index), rest.iloc[:, place:]], axis=1)


def _concatenate(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate `tables` from `read`; machines with one name but different hardware get different names.

    The column `session` comes from `sessions`.
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
    return table.assign(session=sessions(table))


def _distinctive(machines: Sequence[Mapping[str, Any]], index: int) -> list[tuple[str, Any]]:
    """Return the properties of `machines[index]` in which any other of `machines` differs from it."""
    own = machines[index]
    return [(key, value) for key, value in own.items() if any(hardware.get(key) != value for hardware in machines)]


def sessions(table: pd.DataFrame) -> list[int]:
    """Return the number of each row's session: a series of runs that share the machine's state.

    The runs of a session have one boot (one host, if a run does not record its boot); each is less than GAP after the
    previous one and less than LONGEST after the first. They share whatever varies from day to day, so several of them
    are no surer than one.
    """
    series = [table[name] for name in ("when", "host", "boot")]
    numbers: dict[tuple[pd.Timestamp, str, str], int] = {}
    current: dict[int, tuple[pd.Timestamp, pd.Timestamp, str, str]] = {}  # first and last run, host, boot
    for number, run in enumerate(sorted(set(zip(*series, strict=True)))):
        when, host, boot = run
        current = {
            session: state for session, state in current.items() if when - state[1] < GAP and when - state[0] < LONGEST
        }
        same = (
            session
            for session, (*_, its_host, its_boot) in current.items()
            if (boot == its_boot if boot and its_boot else host == its_host)
        )
        numbers[run] = next(same, number)
        first, _, _, known_boot = current.get(numbers[run], (when, when, host, boot))
        current[numbers[run]] = (first, when, host, boot or known_boot)
    return [numbers[run] for run in zip(*series, strict=True)]


GAP = pd.Timedelta(hours=6)
LONGEST = pd.Timedelta(days=1)


def load(paths: Sequence[Path]) -> pd.DataFrame:
    """Return the cells of all runs in `paths`, run by run, with the column `session`.

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
