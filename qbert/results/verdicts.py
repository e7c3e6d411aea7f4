"""Verdicts and histories for people: tables for the terminal and for a pull request, drawings of a history."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qbert.measure.stats import DECIDED
from qbert.results import answers, tables
from qbert.results.history import SERIES
from qbert.results.tables import Format, Row
from qbert.system.cache import write_file
from qbert.system.errors import InputError, pip_install, reason
from qbert.system.terminal import counted, shown

if TYPE_CHECKING:
    from matplotlib.axis import Axis

VERDICTS = {
    "slower": "red",
    "faster": "green",
    "same": "",
    "inconclusive": "yellow",
    "new": "",
    "not comparable": "yellow",
}
"""The verdicts on latency, in the order in which they are shown, with their colours."""


def answer(rows: Sequence[Row]) -> str:
    """Return a sentence that counts the verdicts of `rows` (gate.Cell.as_dict, compare.runs)."""
    counts = [(sum(row["verdict"] == verdict for row in rows), verdict) for verdict in VERDICTS]
    counts += [
        (sum(row["f1"].get("verdict") == verdict for row in rows), f"in F1 {verdict}")
        for verdict in ("worse", "better", "inconclusive")
    ]
    counts += [(sum(bool(row.get("over")) for row in rows), "over a limit")]
    return f"{counted(len(rows), 'cell')}: " + ", ".join(f"{count} {label}" for count, label in counts if count)


def gate_caption(result: Row) -> str:
    """Return what the gate's `result` shows, how sure that is, and what would make it surer."""
    cells = result["cells"]
    settings = result["settings"]
    pairs = max((len(cell["log_ratios"]) for cell in cells), default=0)
    caption = (
        f"{counted(pairs, 'pair')} of processes in {result['measure_s']:.0f} s, one thread, batch 1. The verdicts on\n"
        f"latency hold together with 95 %, and so do those on F1. Slower, faster: beyond\n"
        f"{settings['min_effect']:.1%}; worse, better: beyond {settings['min_f1_effect']:g} of F1; same: within."
    )
    unsure = [cell for cell in cells if cell["verdict"] == "inconclusive"]
    if result["too_short"]:
        caption += f"\nNothing was decided: {result['too_short']}."
    elif unsure:
        caption += "\nInconclusive: more --max-seconds, a quieter machine or a greater --min-effect decides."
    if any(cell["f1"].get("verdict") == "inconclusive" for cell in cells):
        caption += "\nInconclusive F1: more test documents or a greater --min-f1-effect decides."
    if result["exit_code"] == 0:
        f1_verdicts = [cell["f1"]["verdict"] for cell in cells if cell["f1"]]
        decided = sum(cell["verdict"] in DECIDED for cell in cells)
        decided_f1 = len(f1_verdicts) - f1_verdicts.count("inconclusive")
        caption += f"\nNothing was shown to be worse. Decided: latency in {decided} of {counted(len(cells), 'cell')}"
        caption += f", F1 in {decided_f1} of {len(f1_verdicts)}." if f1_verdicts else "."
    return caption


def verdicts(rows: Sequence[Row], *, title: str, caption: str) -> Group:
    """Compare head with base in at most 80 columns: a heading for each model and length, a line for each variant.

    `rows` come from gate.Cell.as_dict or compare.runs.
    """
    parts: list[RenderableType] = [Text(title, style="bold")]
    notes = details(rows)
    table = tables.in_order(pd.DataFrame(rows))
    rows = table.to_dict("records")
    width = max(len("variant"), *table["variant"].str.len())
    for columns, drawn in ((VERDICT_COLUMNS, table), (F1_COLUMNS, table[[_has_f1_or_size(row) for row in rows]])):
        for number, ((model, max_length), group) in enumerate(drawn.groupby(["model", "max_length"], sort=False)):
            parts.append(Text(f"\n{model}, {max_length} tokens", style="bold"))
            parts.append(tables.lines(group, columns, width, header=number == 0))
    parts += [Text(""), *map(Text, notes)] if notes else []
    return Group(*parts, Text(f"\n{caption}", style="dim"))


def details(rows: Sequence[Row]) -> list[str]:
    """Return sentences beside the table: why cells are not comparable, which limits and guards they exceed."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["differs"]:
            reasons.setdefault("; ".join(row["differs"]), []).append(
                f"{row['model']}-{row['max_length']}-{row['variant']}"
            )
    sentences = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return sentences + [
        f"{row['model']}-{row['max_length']}-{row['variant']}: {sentence}"
        for row in rows
        for sentence in [*row.get("over", []), *row.get("told", []), *_machine_flips(row)]
    ]


def _machine_flips(row: Row) -> list[str]:
    return [answers.sentence(row["machine_flips"])] if row.get("machine_flips") else []


def verdicts_markdown(rows: Sequence[Row], *, title: str, caption: str) -> str:
    """Return the content of `verdicts` as Markdown, for a pull request."""
    columns = {
        heading.replace("\n", " ").strip(): text for heading, (_, text) in (VERDICT_COLUMNS | F1_COLUMNS).items()
    }
    lines = [
        [f"{row['model']}-{row['max_length']}-{row['variant']}", *(text(row) for text in columns.values())]
        for row in rows
    ]
    notes = [f"- {tables.markdown_text(sentence)}" for sentence in details(rows)]
    table = tables.markdown_table(["cell", *columns], lines)
    return "\n".join([f"### {title}", "", table, "", *notes, "", caption]) + "\n"


def _has_f1_or_size(row: Row) -> bool:
    return bool(row["f1"]) or _differ(row.get("base_disk_bytes"), row.get("head_disk_bytes"))


def _differ(base: float | None, head: float | None) -> bool:
    return bool(pd.notna(base) and pd.notna(head) and base != head)


POWER = 0.8
"""A machine can gate on a slowdown that it finds with at least this chance."""


def calibration(rows: Sequence[Row], result: Row) -> Group:
    """Return the table of `rows`, from gate.calibrated of a calibration's `result`, and a conclusion."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("slowdown", "found", "at least", "false alarms"):
        drawn.add_column(heading, justify="right")
    for row in rows:
        drawn.add_row(
            *(f"{row[name]:.0%}" for name in ("slowdown", "found", "found_at_least")), f"{row['false_alarms']:.1%}"
        )
    cells = [cell for cell in result["cells"] if cell["log_ratios"]]
    pairs = max((len(cell["log_ratios"]) for cell in cells), default=0)
    detected = next((row for row in rows if row["found_at_least"] >= POWER), None)
    conclusion = "Nothing could be measured."
    if detected:
        conclusion = (
            f"This machine can gate on {detected['slowdown']:.0%} with --min-effect {detected['slowdown'] / 2:.1%}: "
            f"it finds so much in {detected['found_at_least']:.0%} of gates or more."
        )
    elif rows:
        conclusion = f"This machine cannot gate on {rows[-1]['slowdown']:.0%}: a quieter one may, or more --max-pairs."
    if rows:
        conclusion += (
            f"\nFound: by the cell whose pairs spread most, by {rows[0]['spread']:.2%}. At least: with the upper end "
            f"of the 95 % interval of that.\n{counted(pairs, 'pair')} of {counted(len(cells), 'cell')} took "
            f"{result['measure_s'] / 60:.1f} minutes."
        )
    return Group(Text("qbert gate: this machine against itself\n", style="bold"), drawn, Text(f"\n{conclusion}"))


def history(rows: Sequence[Row], *, runs: int, min_effect: float) -> Group:
    """Return the history of each cell, from history.changes, by machine and dataset, with a line for each change."""
    parts: list[RenderableType] = []
    table = tables.in_order(pd.DataFrame(rows))
    width = max(table["variant"].str.len().max(), len("variant"))
    for (machine, dataset), of_machine in table.groupby(["machine", "dataset"], sort=False):
        parts.append(Text(f"{machine}, {dataset}", style="bold"))
        for number, ((model, max_length), group) in enumerate(of_machine.groupby(["model", "max_length"], sort=False)):
            parts.append(Text(f"\n{model}, {max_length} tokens", style="bold"))
            drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=number == 0)
            drawn.add_column("variant", min_width=width, no_wrap=True)
            for heading, min_width in (("runs", 4), ("first ms", 8), ("last ms", 8)):
                drawn.add_column(heading, justify="right", min_width=min_width)
            drawn.add_column("changes", min_width=28)
            for row in group.to_dict("records"):
                changes = [
                    f"{change['change']:+.1%} {change['commits']}{_day(change['when'])}" for change in row["changes"]
                ]
                drawn.add_row(
                    escape(row["variant"]),
                    str(row["runs"]),
                    tables.milliseconds(row["first_s"]),
                    tables.milliseconds(row["last_s"]),
                    escape("\n".join(changes)),
                )
            parts.append(drawn)
        parts.append(Text(""))
    caption = (
        f"{runs} runs. A change: beyond the noise and over {min_effect:.1%}, by one of the commits named.\n"
        "Runs of one boot, less than 6 hours apart, count as one; 8 such sittings are the least."
    )
    return Group(*parts, Text(caption, style="dim"))


def _day(when: pd.Timestamp) -> str:
    return "" if pd.isna(when) else f" {when:%Y-%m-%d}"


def ticks(axis: "Axis") -> None:
    """Label a logarithmic `axis`, after its data is drawn, with as many numbers as are readable."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 6 * low else MaxNLocator(5))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def plot_history(table: pd.DataFrame, rows: Sequence[Row], path: Path) -> None:
    """Draw the latency of each cell over the runs of `table` (history.stored) to `path`, with its changes marked.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written in that format.
    """
    try:
        from matplotlib import figure
    except ImportError as error:
        raise InputError(f"--plot needs matplotlib: {pip_install('report')}") from error
    timed = table.dropna(subset=["median_s"])
    panels = list(tables.in_order(timed).groupby(["machine", "dataset", "model", "max_length"], sort=False))
    drawn = figure.Figure(figsize=(9, 2.8 * len(panels)), layout="constrained")
    for axes, ((machine, dataset, model, max_length), group) in zip(
        drawn.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True
    ):
        order = {file: number for number, file in enumerate(group["file"].unique())}
        for variant, cell in group.groupby("variant", sort=False):
            positions = [order[file] for file in cell["file"]]
            (line,) = axes.plot(positions, cell["median_s"] * 1e3, marker=".", label=shown(str(variant)))
            series = next(
                row
                for row in rows
                if tuple(row[name] for name in SERIES) == (machine, dataset, model, max_length, variant)
            )
            for change in series["changes"]:
                position, level = positions[change["run"]], cell["median_s"].iloc[change["run"]] * 1e3
                axes.axvline(position - 0.5, color=line.get_color(), linestyle=":")
                axes.annotate(
                    f"{change['change']:+.0%} {shown(change['commits'])}",
                    (position, level),
                    xytext=(0, 6),
                    textcoords="offset points",
                    fontsize=7,
                    color=line.get_color(),
                    parse_math=False,
                )
        axes.set_yscale("log")
        ticks(axes.yaxis)
        axes.tick_params(which="both", labelsize=7)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(shown(f"{model}, {max_length} tokens: {machine}, {dataset}"), fontsize=8, parse_math=False)
        axes.set_xlabel("run", fontsize=8)
        axes.set_ylabel("ms", fontsize=8)
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    try:
        write_file(path, drawn.savefig)
    except ValueError as error:
        raise InputError(
            f"{path} cannot be drawn ({reason(error)}): name a file that ends in .svg, .png or .pdf"
        ) from error


def _change(row: Row) -> str:
    if pd.isna(row.get("change")):
        return ""
    ends = [row.get("change_low"), row.get("change_high")]
    return f"{row['change']:+.1%} " + ("" if any(map(pd.isna, ends)) else f"{ends[0]:+.1%} {ends[1]:+.1%}")


VERDICT_COLUMNS: dict[str, tuple[int, Format]] = {
    "base\nms": (6, lambda row: tables.milliseconds(row.get("base_s") or math.nan)),
    "head\nms": (6, lambda row: tables.milliseconds(row.get("head_s") or math.nan)),
    "change of latency\nmedian, interval": (20, _change),
    "\nverdict": (14, lambda row: row["verdict"]),
}


F1_COLUMNS: dict[str, tuple[int, Format]] = {
    "F1\nbase": (6, lambda row: tables.number(row["f1"].get("f1_baseline", math.nan), ".4f")),
    "F1\nhead": (6, lambda row: tables.number(row["f1"].get("f1", math.nan), ".4f")),
    "flips\n": (5, lambda row: tables.number(row["f1"].get("flips", math.nan), ".0f")),
    "F1\nverdict": (12, lambda row: row["f1"].get("verdict", "")),
    "disk MB\nbase": (7, lambda row: tables.megabytes(row.get("base_disk_bytes"), ".4g")),
    "disk MB\nhead": (7, lambda row: tables.megabytes(row.get("head_disk_bytes"), ".4g")),
}
