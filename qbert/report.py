"""Tables for people, from benchmarks as pytest-benchmark saves them; nothing here needs torch."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

Row = Mapping[Any, Any]
Format = Callable[[Row], str]

CELL = ["model", "max_length", "variant"]
LATENCY = ["median_s", "p95_s", "speedup", "speedup_low", "speedup_high", "share_of_limit", "precision"]
ACCURACY = ["f1", "f1_baseline", "f1_drop", "flips", "documents"]
FOOTPRINT = ["disk_bytes", "load_s", "first_call_s", "peak_rss_bytes"]


def cells(benchmarks: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row a cell, in order of appearance, from entries of a run's `benchmarks`; foreign ones are left out.

    Columns: CELL, `trained`, LATENCY, ACCURACY, FOOTPRINT; missing where a run has no such benchmark.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for benchmark in benchmarks:
        info = benchmark.get("extra_info", {})
        if not all(name in info for name in CELL):
            continue
        row = rows.setdefault(tuple(info[name] for name in CELL), {name: info[name] for name in [*CELL, "trained"]})
        measured = {"accuracy": ACCURACY, "footprint": FOOTPRINT}.get(info.get("measured"), LATENCY)
        row |= {name: info[name] for name in measured if name in info}
        if measured is LATENCY:
            row["median_s"] = benchmark["stats"]["median"]
            row["precision"] = info.get("identity", {}).get("definition", {}).get("precision", "")
    return pd.DataFrame(rows.values(), columns=[*CELL, "trained", *LATENCY, *ACCURACY, *FOOTPRINT])


def summary(table: pd.DataFrame, *, title: str, caption: str) -> Group:
    """Return what a run ends with: under one heading for each model and length, a line for each variant.

    `table` is as `cells` gives it. It fits 80 columns.
    """
    parts: list[RenderableType] = [Text(title, style="bold")]
    table = table.sort_values(
        ["model", "max_length"],
        key=lambda column: pd.Series(pd.factorize(column)[0]) if column.name == "model" else column,
        kind="stable",
    )
    width = max(len("variant"), *table["variant"].str.len())
    timed = table[table[["median_s", "f1"]].notna().any(axis=1)]
    for number, ((model, max_length), group) in enumerate(timed.groupby(["model", "max_length"], sort=False)):
        untrained = "" if group["trained"].all() else "  untrained: latency only"
        f1 = group["f1_baseline"].max()
        judged = "" if math.isnan(f1) else f", fp32's F1 {f1:.4f}"
        parts.append(Text.assemble("\n", (f"{model}, {max_length} tokens{judged}", "bold"), (untrained, "yellow")))
        parts.append(_lines(group, COLUMNS, width, header=number == 0))
    weighed = table[table["disk_bytes"].notna()]
    for number, ((model, max_length), group) in enumerate(weighed.groupby(["model", "max_length"], sort=False)):
        parts.append(Text(f"\n{model}, {max_length} tokens, each in a process of its own", style="bold"))
        parts.append(_lines(group, FOOTPRINT_COLUMNS, width, header=number == 0))
    return Group(*parts, Text(f"\n{caption}", style="dim"))


def _lines(group: pd.DataFrame, columns: Mapping[str, tuple[int, Format]], width: int, *, header: bool) -> Table:
    """Return a line for each row of `group`: the variant, then `columns` (heading: width, and the text of a row)."""
    group = group.assign(best_fp32=group["speedup"].where(group["precision"] == "fp32").max())
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=header)
    drawn.add_column("variant", min_width=width, no_wrap=True)
    for heading, (column_width, _) in columns.items():
        drawn.add_column(heading, justify="right", min_width=column_width, no_wrap=True)
    for row in group.to_dict("records"):
        drawn.add_row(escape(row["variant"]), *(text(row) for _, text in columns.values()))
    return drawn


def accuracy(results: Iterable[Mapping[str, Any]], *, title: str) -> Group:
    """Return the table of an accuracy pass, from dictionaries with the names of evaluate.Comparison."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("variant", "p50\nms", "p95\nms", "F1\n", "F1\ndrop", "F1 drop\n95 %", "flips\n", "McNemar\np"):
        drawn.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=True)
    documents, visible = 0, 0.0
    for result in results:
        documents, visible = result["documents"], result["smallest_visible_drop"]
        drawn.add_row(
            escape(result["variant"]),
            *(milliseconds(result[name]) for name in ("p50_s", "p95_s")),
            f"{result['f1']:.4f}",
            *(
                ["", "", "", ""]
                if result["variant"] == result["baseline"]
                else [
                    f"{result['f1_drop']:+.4f}",
                    f"{result['f1_drop_low']:+.3f} {result['f1_drop_high']:+.3f}",
                    str(result["flips"]),
                    f"{result['mcnemar_p']:.3f}",
                ]
            ),
        )
    told = f"{documents} documents cannot tell an F1 drop below about {visible:.3f} from chance."
    return Group(
        Text(title, style="bold"),
        "",
        drawn,
        Text(f"\nms: text to logits, tokenizing included. {told}", style="dim"),
    )


def show(drawn: RenderableType) -> None:
    """Print to standard output; colours only on a terminal and without NO_COLOR."""
    Console(highlight=False).print(drawn)


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds with three significant digits or more."""
    value = seconds * 1e3
    return "" if math.isnan(value) else f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f}"


def _speedup(row: Row) -> str:
    if math.isnan(row["speedup"]):
        return ""
    if math.isnan(row["speedup_low"]):
        return f"{row['speedup']:.2f}"
    return f"{row['speedup']:.2f} {row['speedup_low']:.2f}–{row['speedup_high']:.2f}"


def _number(value: float, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)


COLUMNS: dict[str, tuple[int, Format]] = {
    "median\nms": (6, lambda row: milliseconds(row["median_s"])),
    "speedup\nmedian, 95 %": (17, _speedup),
    "over best\nfp32": (9, lambda row: _number(row["speedup"] / row["best_fp32"], ".2f")),
    "of\nlimit": (5, lambda row: _number(row["share_of_limit"], ".0%")),
    "F1\ndrop": (7, lambda row: _number(row["f1_drop"], "+.4f")),
    "flips\n": (5, lambda row: _number(row["flips"], ".0f")),
}
FOOTPRINT_COLUMNS: dict[str, tuple[int, Format]] = {
    "disk\nMB": (6, lambda row: _megabytes(row["disk_bytes"])),
    "load\ns": (6, lambda row: f"{row['load_s']:.2f}"),
    "first call\nms": (10, lambda row: milliseconds(row["first_call_s"])),
    "peak memory\nMB": (11, lambda row: _megabytes(row["peak_rss_bytes"])),
}
