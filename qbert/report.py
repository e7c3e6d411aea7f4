"""Tables for people, from benchmarks as pytest-benchmark saves them; nothing here needs torch."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qbert import InputError, reason

Row = Mapping[Any, Any]
Format = Callable[[Row], str]


def summary(table: pd.DataFrame, *, title: str, caption: str) -> Group:
    """Return what a run ends with: under one heading for each model and length, a line for each variant.

    `table` is as history.cells gives it. It fits 80 columns.
    """
    parts: list[RenderableType] = [Text(title, style="bold")]
    table = _in_order(table)
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


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Return `table` with models as they first appear, and the lengths of each ascending."""
    return table.sort_values(
        ["model", "max_length"],
        key=lambda column: pd.Series(pd.factorize(column)[0]) if column.name == "model" else column,
        kind="stable",
    )


def _lines(group: pd.DataFrame, columns: Mapping[str, tuple[int, Format]], width: int, *, header: bool) -> Table:
    """Return a line for each row of `group`: the variant, then `columns` (heading: width, and the text of a row)."""
    if "speedup" in group:
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


VERDICTS = {
    "slower": "red",
    "faster": "green",
    "same": "",
    "inconclusive": "yellow",
    "new": "",
    "not comparable": "yellow",
}
"""Of latency, in the order in which they are told, with their colours."""


def answer(rows: Sequence[Row]) -> str:
    """Return in a sentence what the verdicts of `rows` (gate.Cell.as_dict, compare.runs) come to."""
    counts = [(sum(row["verdict"] == verdict for row in rows), verdict) for verdict in VERDICTS]
    counts += [
        (sum(row["f1"].get("verdict") == verdict for row in rows), f"in F1 {verdict}")
        for verdict in ("worse", "better")
    ]
    counts += [(sum(bool(row.get("over")) for row in rows), "over a limit")]
    return f"{len(rows)} cells: " + ", ".join(f"{count} {what}" for count, what in counts if count)


def verdicts(rows: Sequence[Row], *, title: str, caption: str) -> Group:
    """Return head against base: for each model and length a heading and a line for each variant. It fits 80 columns.

    `rows` are as gate.Cell.as_dict or compare.runs give them.
    """
    parts: list[RenderableType] = [Text(title, style="bold")]
    told = details(rows)
    table = _in_order(pd.DataFrame(rows))
    rows = table.to_dict("records")
    width = max(len("variant"), *table["variant"].str.len())
    for columns, shown in ((VERDICT_COLUMNS, table), (F1_COLUMNS, table[[_weighed(row) for row in rows]])):
        for number, ((model, max_length), group) in enumerate(shown.groupby(["model", "max_length"], sort=False)):
            parts.append(Text(f"\n{model}, {max_length} tokens", style="bold"))
            parts.append(_lines(group, columns, width, header=number == 0))
    parts += [Text(""), *map(Text, told)] if told else []
    return Group(*parts, Text(f"\n{caption}", style="dim"))


def details(rows: Sequence[Row]) -> list[str]:
    """Return what the table has no room for: why cells are not comparable, and which limits are exceeded."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["differs"]:
            reasons.setdefault("; ".join(row["differs"]), []).append(
                f"{row['model']}-{row['max_length']}-{row['variant']}"
            )
    said = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return said + [
        f"{row['model']}-{row['max_length']}-{row['variant']}: {sentence}"
        for row in rows
        for sentence in row.get("over", [])
    ]


def verdicts_markdown(rows: Sequence[Row], *, title: str, caption: str) -> str:
    """Return the same as `verdicts` for a pull request."""
    columns = {
        heading.replace("\n", " ").strip(): text for heading, (_, text) in (VERDICT_COLUMNS | F1_COLUMNS).items()
    }
    lines = [
        [f"{row['model']}-{row['max_length']}-{row['variant']}", *(text(row) for text in columns.values())]
        for row in rows
    ]
    said = [f"- {markdown_text(sentence)}" for sentence in details(rows)]
    return "\n".join([f"### {title}", "", markdown_table(["cell", *columns], lines), "", *said, "", caption]) + "\n"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table in which every text is shown letter by letter."""
    lines = [list(headings), ["---"] * len(headings), *([markdown_text(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(text: str) -> str:
    """Return `text` as Markdown shows it letter by letter."""
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, entity)
    return " ".join(re.sub(r"([\\|*_`\[\]~#])", r"\\\1", text).split())


def _weighed(row: Row) -> bool:
    return bool(row["f1"]) or _differ(row.get("base_disk_bytes"), row.get("head_disk_bytes"))


def _differ(base: float | None, head: float | None) -> bool:
    return bool(pd.notna(base) and pd.notna(head) and base != head)


def calibration(rows: Sequence[Row], found: Row) -> Group:
    """Return what gate.calibrated makes of a calibration's result `found`, and a sentence at the end."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("put in", "found slower", "false alarms", "unsure without"):
        drawn.add_column(heading, justify="right")
    for row in rows:
        drawn.add_row(
            f"{row['slowdown']:.0%}",
            f"{row['slower']} of {row['cells']}",
            f"{row['false_alarms']} of {row['cells']}",
            f"{row['unsure']} of {row['cells']}",
        )
    plain = [cell for cell in found["cells"] if cell["log_ratios"] and not cell["slowdown"]]
    pairs = max((len(cell["log_ratios"]) for cell in plain), default=0)
    minutes = (found["measure_s"] - sum(cell["timed_s"] for cell in found["cells"] if cell["slowdown"])) / 60
    able = [row for row in rows if row["slower"] == row["cells"] and not row["false_alarms"]]
    told = (
        f"This machine can gate on {able[0]['slowdown']:.0%} with --min-effect {able[0]['slowdown'] / 2:.1%}: "
        f"it found every one of {able[0]['cells']} cells that were made so much slower."
        if able
        else f"This machine cannot gate on {rows[-1]['slowdown']:.0%} with {pairs} pairs: more --max-pairs may help."
        if rows
        else "Nothing could be measured."
    )
    told += f" {pairs} pairs of {len(plain)} cells take {minutes:.1f} minutes."
    return Group(Text("qbert gate: this machine against itself\n", style="bold"), drawn, Text(f"\n{told}"))


def history(rows: Sequence[Row], *, runs: int, min_effect: float) -> Group:
    """Return each cell over its runs, from history.changes: machines apart, a line for each change."""
    parts: list[RenderableType] = []
    table = _in_order(pd.DataFrame(rows))
    width = max(table["variant"].str.len().max(), len("variant"))
    for machine, of_machine in table.groupby("machine", sort=False):
        parts.append(Text(str(machine), style="bold"))
        for number, ((model, max_length), group) in enumerate(of_machine.groupby(["model", "max_length"], sort=False)):
            parts.append(Text(f"\n{model}, {max_length} tokens", style="bold"))
            drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=number == 0)
            drawn.add_column("variant", min_width=width, no_wrap=True)
            for heading, least in (("runs", 4), ("first ms", 8), ("last ms", 8)):
                drawn.add_column(heading, justify="right", min_width=least)
            drawn.add_column("changes", min_width=28)
            for row in group.to_dict("records"):
                told = [f"{one['change']:+.1%} at {one['commit']}{_day(one['when'])}" for one in row["changes"]]
                drawn.add_row(
                    escape(row["variant"]),
                    str(row["runs"]),
                    milliseconds(row["first_s"]),
                    milliseconds(row["last_s"]),
                    escape("\n".join(told)),
                )
            parts.append(drawn)
        parts.append(Text(""))
    caption = f"{runs} runs. A change: two runs or more beyond the noise, and over {min_effect:.1%}, from those before."
    return Group(*parts, Text(caption, style="dim"))


def _day(when: pd.Timestamp) -> str:
    return "" if pd.isna(when) else f", {when:%Y-%m-%d}"


def plot_history(table: pd.DataFrame, rows: Sequence[Row], path: Path) -> None:
    """Draw the latency of each cell over the runs of `table` (history.stored) to `path`, its changes as vertical marks.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written in that format.
    """
    try:
        from matplotlib import figure
    except ImportError as error:
        raise InputError("--plot needs matplotlib: pip install 'qbert[report]'") from error
    timed = table.dropna(subset=["median_s"])
    panels = list(_in_order(timed).groupby(["machine", "model", "max_length"], sort=False))
    drawn = figure.Figure(figsize=(9, 2.8 * len(panels)), layout="constrained")
    for axes, ((machine, model, max_length), group) in zip(
        drawn.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True
    ):
        order = {file: number for number, file in enumerate(group["file"].unique())}
        for variant, cell in group.groupby("variant", sort=False):
            places = [order[file] for file in cell["file"]]
            (line,) = axes.plot(places, cell["median_s"] * 1e3, marker=".", label=str(variant))
            found = next(
                row
                for row in rows
                if (row["machine"], row["model"], row["max_length"], row["variant"])
                == (machine, model, max_length, variant)
            )
            for change in found["changes"]:
                place, level = places[change["run"]], cell["median_s"].iloc[change["run"]] * 1e3
                axes.axvline(place - 0.5, color=line.get_color(), linestyle=":")
                axes.annotate(
                    f"{change['change']:+.0%} {change['commit'][:7]}",
                    (place, level),
                    xytext=(0, 6),
                    textcoords="offset points",
                    fontsize=7,
                    color=line.get_color(),
                    parse_math=False,
                )
        axes.set_yscale("log")
        for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis("{x:g}")
        axes.tick_params(which="both", labelsize=7)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(f"{model}, {max_length} tokens: {machine}", fontsize=8, parse_math=False)
        axes.set_xlabel("run", fontsize=8)
        axes.set_ylabel("ms", fontsize=8)
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    try:
        drawn.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be drawn ({reason(error)}): name a file that ends in .svg, .png or .pdf"
        ) from error


def show(drawn: RenderableType) -> None:
    """Print to standard output; colours only on a terminal and without NO_COLOR."""
    Console(highlight=False).print(drawn)


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds with three significant digits or more."""
    value = seconds * 1e3
    return "" if math.isnan(value) else f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _megabytes(size: float | None, form: str = ".0f") -> str:
    return "" if pd.isna(size) else format(size / 1e6, form)


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


def _change(row: Row) -> str:
    if pd.isna(row.get("change")):
        return ""
    ends = [row.get("change_low"), row.get("change_high")]
    return f"{row['change']:+.1%} " + ("" if any(map(pd.isna, ends)) else f"{ends[0]:+.1%} {ends[1]:+.1%}")


VERDICT_COLUMNS: dict[str, tuple[int, Format]] = {
    "base\nms": (6, lambda row: milliseconds(row.get("base_s") or math.nan)),
    "head\nms": (6, lambda row: milliseconds(row.get("head_s") or math.nan)),
    "change of latency\nmedian, interval": (20, _change),
    "\nverdict": (14, lambda row: row["verdict"]),
}
F1_COLUMNS: dict[str, tuple[int, Format]] = {
    "F1\nbase": (6, lambda row: _number(row["f1"].get("f1_baseline", math.nan), ".4f")),
    "F1\nhead": (6, lambda row: _number(row["f1"].get("f1", math.nan), ".4f")),
    "flips\n": (5, lambda row: _number(row["f1"].get("flips", math.nan), ".0f")),
    "F1\nverdict": (8, lambda row: row["f1"].get("verdict", "")),
    "disk MB\nbase": (7, lambda row: _megabytes(row.get("base_disk_bytes"), ".4g")),
    "disk MB\nhead": (7, lambda row: _megabytes(row.get("head_disk_bytes"), ".4g")),
}
