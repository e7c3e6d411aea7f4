"""Tables for people, from benchmarks as pytest-benchmark saves them; nothing here needs torch."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qbert.terminal import console

Row = Mapping[Any, Any]


Format = Callable[[Row], str]


def summary(table: pd.DataFrame, *, title: str, caption: str) -> Group:
    """Return what a run ends with: under one heading for each model and length, a line for each variant.

    `table` is as history.cells gives it. It fits 80 columns.
    """
    parts: list[RenderableType] = [Text(title, style="bold")]
    table = in_order(table)
    width = max(len("variant"), *table["variant"].str.len())
    timed = table[table[["median_s", "f1"]].notna().any(axis=1)]
    for number, ((model, max_length), group) in enumerate(timed.groupby(["model", "max_length"], sort=False)):
        untrained = "" if group["trained"].all() else "  untrained: latency only"
        f1 = group["f1_baseline"].max()
        judged = "" if math.isnan(f1) else f", fp32's F1 {f1:.4f}"
        parts.append(Text.assemble("\n", (f"{model}, {max_length} tokens{judged}", "bold"), (untrained, "yellow")))
        parts.append(lines(group, COLUMNS, width, header=number == 0))
    weighed = table[table["disk_bytes"].notna()]
    for number, ((model, max_length), group) in enumerate(weighed.groupby(["model", "max_length"], sort=False)):
        parts.append(Text(f"\n{model}, {max_length} tokens, each in a process of its own", style="bold"))
        parts.append(lines(group, FOOTPRINT_COLUMNS, width, header=number == 0))
    return Group(*parts, Text(f"\n{caption}", style="dim"))


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Return `table` with models as they first appear, and the lengths of each ascending."""
    return table.sort_values(
        ["model", "max_length"],
        key=lambda column: pd.Series(pd.factorize(column)[0]) if column.name == "model" else column,
        kind="stable",
    )


def lines(group: pd.DataFrame, columns: Mapping[str, tuple[int, Format]], width: int, *, header: bool) -> Table:
    """Return a line for each row of `group`: the variant, then `columns` (heading: width, and the text of a row)."""
    if "speedup" in group:
        group = group.assign(best_fp32=group["speedup"].where(group["precision"] == "fp32").max())
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=header)
    drawn.add_column("variant", min_width=width, no_wrap=True)
    for heading, (column_width, _) in columns.items():
        drawn.add_column(heading, justify="right", min_width=column_width, no_wrap=True)
    for row in group.to_dict("records"):
        drawn.add_row(_marked(row, drawn), *(text(row) for _, text in columns.values()))
    return drawn


def _marked(row: Row, drawn: Table) -> str:
    """Return the variant of `row`, marked where its int8 is only stated; `drawn` says below what the mark means."""
    if row.get("stated") is not True:
        return escape(row["variant"])
    drawn.caption, drawn.caption_justify = "* int8 as its own code states it, not shown", "left"
    return escape(row["variant"] + "*")


def accuracy(results: Iterable[Mapping[str, Any]], *, title: str) -> Group:
    """Return the table of an accuracy pass, from dictionaries with the names of evaluate.Comparison."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("variant", "p50\nms", "p95\nms", "F1\n", "F1\ndrop", "F1 drop\n95 %", "flips\n", "McNemar\np"):
        drawn.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=True)
    documents, visible = 0, 0.0
    for result in results:
        documents, visible = result["documents"], result["smallest_visible_drop"]
        drawn.add_row(
            _marked(result, drawn),
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


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table in which every text is shown letter by letter."""
    lines = [list(headings), ["---"] * len(headings), *([markdown_text(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(text: str) -> str:
    """Return `text` as Markdown shows it letter by letter."""
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, entity)
    return " ".join(re.sub(r"([\\|*_`\[\]~#])", r"\\\1", text).split())


def show(drawn: RenderableType) -> None:
    """Print to standard output; colours only on a terminal and without NO_COLOR."""
    console().print(drawn)


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds with three significant digits or more."""
    value = seconds * 1e3
    return "" if math.isnan(value) else f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def megabytes(size: float | None, form: str = ".0f") -> str:
    """Return bytes as megabytes; nothing where they are not known."""
    return "" if pd.isna(size) else format(size / 1e6, form)


def _speedup(row: Row) -> str:
    if math.isnan(row["speedup"]):
        return ""
    if math.isnan(row["speedup_low"]):
        return f"{row['speedup']:.2f}"
    return f"{row['speedup']:.2f} {row['speedup_low']:.2f}–{row['speedup_high']:.2f}"


def number(value: float, form: str) -> str:
    """Return `value` as the format `form` has it; nothing where it is not known."""
    return "" if pd.isna(value) else format(value, form)


COLUMNS: dict[str, tuple[int, Format]] = {
    "median\nms": (6, lambda row: milliseconds(row["median_s"])),
    "speedup\nmedian, 95 %": (17, _speedup),
    "over best\nfp32": (9, lambda row: number(row["speedup"] / row["best_fp32"], ".2f")),
    "of\nlimit": (5, lambda row: number(row["share_of_limit"], ".0%")),
    "F1\ndrop": (7, lambda row: number(row["f1_drop"], "+.4f")),
    "flips\n": (5, lambda row: number(row["flips"], ".0f")),
}


FOOTPRINT_COLUMNS: dict[str, tuple[int, Format]] = {
    "disk\nMB": (6, lambda row: megabytes(row["disk_bytes"])),
    "load\ns": (6, lambda row: f"{row['load_s']:.2f}"),
    "first call\nms": (10, lambda row: milliseconds(row["first_call_s"])),
    "peak memory\nMB": (11, lambda row: megabytes(row["peak_rss_bytes"])),
}
