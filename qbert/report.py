"""Tables for people, from benchmarks as pytest-benchmark saves them; nothing here needs torch."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

CELL = ["model", "max_length", "variant"]
LATENCY = ["median_s", "p95_s", "speedup", "speedup_low", "speedup_high"]
ACCURACY = ["f1", "f1_drop", "flips", "documents"]


def cells(benchmarks: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row a cell, in order of appearance, from entries of a run's `benchmarks`; foreign ones are left out.

    Columns: CELL, `trained`, LATENCY, ACCURACY; missing where a run has no such benchmark.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for benchmark in benchmarks:
        info = benchmark.get("extra_info", {})
        if not all(name in info for name in CELL):
            continue
        row = rows.setdefault(tuple(info[name] for name in CELL), {name: info[name] for name in [*CELL, "trained"]})
        if info.get("measured") == "accuracy":
            row |= {name: info[name] for name in ACCURACY if name in info}
        else:
            row |= {"median_s": benchmark["stats"]["median"]} | {name: info[name] for name in LATENCY if name in info}
    return pd.DataFrame(rows.values(), columns=[*CELL, "trained", *LATENCY, *ACCURACY])


COLUMNS = ("variant", "median\nms", "p95\nms", "speedup\nmedian, 95 %", "F1\n", "F1\ndrop", "flips\n")


def summary(table: pd.DataFrame, *, title: str, caption: str) -> Group:
    """Return what a run ends with: under one heading for each model and length, a line for each variant.

    `table` is as `cells` gives it. It fits 80 columns.
    """
    parts: list[RenderableType] = [Text(title, style="bold")]
    variant_width = max(len("variant"), *table["variant"].str.len())
    for (model, max_length), group in table.groupby(["model", "max_length"], sort=False):
        untrained = "" if group["trained"].all() else "  untrained: latency only"
        parts.append(Text.assemble("\n", (f"{model}, {max_length} tokens", "bold"), (untrained, "yellow")))
        drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=len(parts) == 2)  # noqa: PLR2004  the first one
        for heading, width in zip(COLUMNS, (variant_width, 6, 6, 17, 6, 7, 5), strict=True):
            drawn.add_column(
                heading, justify="left" if heading == "variant" else "right", min_width=width, no_wrap=True
            )
        for row in group.to_dict("records"):
            drawn.add_row(
                escape(row["variant"]),
                milliseconds(row["median_s"]),
                milliseconds(row["p95_s"]),
                _speedup(row),
                _number(row["f1"], ".4f"),
                _number(row["f1_drop"], "+.4f"),
                _number(row["flips"], ".0f"),
            )
        parts.append(drawn)
    return Group(*parts, Text(f"\n{caption}", style="dim"))


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


def _speedup(row: Mapping[Any, Any]) -> str:
    if math.isnan(row["speedup"]):
        return ""
    if math.isnan(row["speedup_low"]):
        return f"{row['speedup']:.2f}"
    return f"{row['speedup']:.2f} {row['speedup_low']:.2f}–{row['speedup_high']:.2f}"


def _number(value: float, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)
