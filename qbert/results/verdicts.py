"""Verdicts and histories for people: tables for the terminal and for a pull request."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from qbert.inputs import metrics
from qbert.inputs.metrics import Metric
from qbert.measure.stats import DECIDED
from qbert.results import answers, tables
from qbert.results.compare import cell_name, is_missing
from qbert.results.tables import Row, Shown, each, headed, in_order, milliseconds, times, written
from qbert.system.terminal import counted

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
    drops = [(metrics.named(row["judged"].get("metric")).short, row["judged"].get("drop_verdict")) for row in rows]
    counts += [
        (drops.count((short, verdict)), f"in {short} {verdict}")
        for short in dict.fromkeys(short for short, _ in drops)
        for verdict in ("worse", "better", "inconclusive")
    ]
    counts += [(sum(bool(row.get("over")) for row in rows), "over a limit")]
    return f"{counted(len(rows), 'cell')}: " + ", ".join(f"{count} {label}" for count, label in counts if count)


def metric_of(rows: Sequence[Row]) -> Metric:
    """Return what the answers of `rows` are judged by."""
    return metrics.named(next((row["judged"]["metric"] for row in rows if row["judged"]), None))


def gate_caption(result: Row) -> str:
    """Return what the gate's `result` shows, how sure that is, and what would make it surer."""
    cells = result["cells"]
    settings = result["settings"]
    short = metric_of(cells).short
    pairs = max((len(cell["log_ratios"]) for cell in cells), default=0)
    caption = (
        f"{counted(pairs, 'pair')} of processes in {result['measure_s']:.0f} s, one thread, batch 1. The verdicts on\n"
        f"latency hold together with 95 %, and so do those on {short}. Slower, faster: beyond\n"
        f"{settings['min_effect']:.1%}; worse, better: beyond {settings['min_drop']:g} of {short}; same: within."
    )
    unsure = [cell for cell in cells if cell["verdict"] == "inconclusive"]
    if result["too_short"]:
        caption += f"\nNothing was decided: {result['too_short']}."
    elif unsure:
        caption += "\nInconclusive: more --max-seconds, a quieter machine or a greater --min-effect decides."
    drops = [cell["judged"]["drop_verdict"] for cell in cells if cell["judged"]]
    if "inconclusive" in drops:
        caption += f"\nInconclusive {short}: more test documents or a greater --min-drop decides."
    if result["exit_code"] == 0:
        decided = sum(cell["verdict"] in DECIDED for cell in cells)
        decided_drops = len(drops) - drops.count("inconclusive")
        caption += f"\nNothing was shown to be worse. Decided: latency in {decided} of {counted(len(cells), 'cell')}"
        caption += f", {short} in {decided_drops} of {len(drops)}." if drops else "."
    return caption


def _change(row: Row, _: str) -> str:
    if is_missing(row.get("change")):
        return ""
    ends = [row.get("change_low"), row.get("change_high")]
    return f"{row['change']:+.1%} " + ("" if any(map(is_missing, ends)) else f"{ends[0]:+.1%} {ends[1]:+.1%}")


LATENCY = {
    "base_s": Shown("base\nms", each(milliseconds), 6),
    "head_s": Shown("head\nms", each(milliseconds), 6),
    "change": Shown("change of latency\nmedian, interval", _change, 20),
    "verdict": Shown("\nverdict", written, 14),
}
JUDGED = {
    "score_baseline": Shown("{short}\nbase", times(1, ".4f"), 6),
    "score": Shown("{short}\nhead", times(1, ".4f"), 6),
    "flips": Shown("flips\n", times(1, ".0f"), 5),
    "drop_verdict": Shown("{short}\nverdict", written, 12),
    "base_disk_bytes": Shown("disk MB\nbase", times(1e-6, ".4g"), 7),
    "head_disk_bytes": Shown("disk MB\nhead", times(1e-6, ".4g"), 7),
}


def flat(row: Row) -> dict[str, Any]:
    """Return a row of gate.Cell.as_dict or compare.runs with what it says of the answers beside the rest."""
    return {name: value for name, value in row.items() if name != "judged"} | dict(row["judged"])


def for_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return `rows` of gate.Cell.as_dict or compare.runs as JSON has them: what is judged is under its metric's key."""
    found = []
    for row in rows:
        key = row["judged"].get("metric", metric_of(rows).key)
        judged = {"verdict" if name == "drop_verdict" else name: it for name, it in row["judged"].items()}
        rest = {"judged" if name == "has_answers" else name: it for name, it in row.items() if name != "judged"}
        found.append(rest | {key: metrics.own_names(judged)})
    return found


def verdicts(rows: Sequence[Row], *, title: str, caption: str) -> Group:
    """Compare head with base in at most 80 columns: a heading for each model and length, a line for each variant.

    `rows` come from gate.Cell.as_dict or compare.runs.
    """
    notes = details(rows)
    table = in_order(pd.DataFrame(map(flat, rows)))
    shown = [bool(row["judged"]) or _sizes_differ(row) for row in in_order(pd.DataFrame(rows)).to_dict("records")]
    first = tables.variants(max(len("variant"), *table["variant"].str.len()))
    parts: list[RenderableType] = [Text(title, style="bold")]
    for columns, drawn in ((LATENCY, table), (headed(JUDGED, metric_of(rows)), table[shown])):
        parts += tables.by_length(
            drawn, first | columns, lambda model, length, _: Text(f"\n{model}, {length} tokens", style="bold")
        )
    parts += [Text(""), *map(Text, notes)] if notes else []
    return Group(*parts, Text(f"\n{caption}", style="dim"))


def _sizes_differ(row: Row) -> bool:
    base, head = row.get("base_disk_bytes"), row.get("head_disk_bytes")
    return not is_missing(base) and not is_missing(head) and base != head


def verdicts_markdown(rows: Sequence[Row], *, title: str, caption: str) -> str:
    """Return the content of `verdicts` as Markdown, for a pull request."""
    columns = {"cell": Shown("cell", lambda row, _: cell_name(row), left=True)} | LATENCY
    columns |= headed(JUDGED, metric_of(rows))
    notes = [f"- {tables.markdown_text(sentence)}" for sentence in details(rows)]
    table = tables.markdown(tables.Table("", columns, list(map(flat, rows))))
    return "\n".join([f"### {title}", "", table, "", *notes, "", caption]) + "\n"


def details(rows: Sequence[Row]) -> list[str]:
    """Return sentences beside the table: why cells are not comparable, which limits and guards they exceed."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["differs"]:
            reasons.setdefault("; ".join(row["differs"]), []).append(cell_name(row))
    sentences = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
    for row in rows:
        flips = [answers.sentence(row["machine_flips"])] if row.get("machine_flips") else []
        beside = [*row.get("over", []), *row.get("told", []), *flips]
        sentences += [f"{cell_name(row)}: {sentence}" for sentence in beside]
    return sentences


POWER = 0.8
"""A machine can gate on a slowdown that it finds with at least this chance."""


CALIBRATION = {
    "slowdown": Shown("slowdown", times(1, ".0%")),
    "found": Shown("found", times(1, ".0%")),
    "found_at_least": Shown("at least", times(1, ".0%")),
    "false_alarms": Shown("false alarms", times(1, ".1%")),
}


def calibration(rows: Sequence[Row], result: Row) -> Group:
    """Return the table of `rows`, from gate.calibrated of a calibration's `result`, and a conclusion."""
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
    drawn = tables.grid(rows, CALIBRATION, padding=2)
    return Group(Text("qbert gate: this machine against itself\n", style="bold"), drawn, Text(f"\n{conclusion}"))


def history(rows: Sequence[Row], *, runs: int, min_effect: float) -> Group:
    """Return the history of each cell, from changes.changes, by machine and dataset, with a line for each change."""
    parts: list[RenderableType] = []
    table = in_order(pd.DataFrame(rows))
    columns = tables.variants(max(table["variant"].str.len().max(), len("variant"))) | HISTORY
    for (machine, dataset), of_machine in table.groupby(["machine", "dataset"], sort=False):
        parts.append(Text(f"{machine}, {dataset}", style="bold"))
        parts += tables.by_length(
            of_machine, columns, lambda model, length, _: Text(f"\n{model}, {length} tokens", style="bold")
        )
        parts.append(Text(""))
    caption = (
        f"{runs} runs. A change: beyond the noise and over {min_effect:.1%}, by one of the commits named.\n"
        "Runs of one boot, less than 6 hours apart, count as one; 8 such sessions are the least."
    )
    return Group(*parts, Text(caption, style="dim"))


def _changes(row: Row, _: str) -> str:
    days = ["" if pd.isna(change["when"]) else f" {change['when']:%Y-%m-%d}" for change in row["changes"]]
    changes = zip(row["changes"], days, strict=True)
    return "\n".join(f"{change['change']:+.1%} {change['commits']}{day}" for change, day in changes)


HISTORY = {
    "runs": Shown("runs", written, 4),
    "first_s": Shown("first ms", each(milliseconds), 8),
    "last_s": Shown("last ms", each(milliseconds), 8),
    "changes": Shown("changes", _changes, 28, left=True, wrap=True),
}
