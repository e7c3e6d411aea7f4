"""The tables that a run, an evaluation and a choice print, at most 80 columns wide."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from qbert.inputs import metrics
from qbert.results import columns
from qbert.results.compare import cell_name
from qbert.results.pace import PACE, at_one_pace, pace_changes
from qbert.results.tables import (
    Row,
    Shown,
    by_length,
    each,
    grid,
    headed,
    in_order,
    milliseconds,
    number,
    three_digits,
    times,
    variants,
    written,
)
from qbert.system.terminal import counted


def summary(table: pd.DataFrame, *, title: str = "", caption: str = "") -> Group:
    """Return the summary of a run, or of a part of it: a heading for each model and length, a line per variant.

    `table` is from history.cells.
    """
    table = in_order(at_one_pace(table, table))
    first = variants(max(len("variant"), *table.loc[~table["variant"].map(has_threads), "variant"].str.len(), 0))
    timed = table[table[["median_s", "score"]].notna().any(axis=1)]
    parts: list[RenderableType] = [Text(title, style="bold")] if title else []
    parts += by_length(timed, first | columns.shown("terminal", timed, "latency", "accuracy"), _heading)
    parts += by_length(
        table[table["disk_bytes"].notna()],
        first | columns.shown("terminal", table, "footprint"),
        lambda model, length, _: Text(f"\n{model}, {length} tokens, each in a process of its own", style="bold"),
    )
    parts += _capacity(table[table["texts_per_s"].notna()], first)
    notes = [PACE, *pace_changes(table)] if table["latency_s"].notna().any() else []
    lines = ["", caption, *notes] if caption else []
    return Group(*parts, *([Text("\n".join(lines), style="dim")] if lines else []))


def _heading(model: str, max_length: int, cells: pd.DataFrame) -> Text:
    score = number(cells["score_baseline"].max(), ".4f")
    judged = f", fp32's {columns.metric_of(cells).short} {score}" if score else ""
    untrained = "" if cells["trained"].all() else "  untrained: latency only"
    return Text.assemble("\n", (f"{model}, {max_length} tokens{judged}", "bold"), (untrained, "yellow"))


def _capacity(served: pd.DataFrame, first: dict[str, Shown]) -> list[RenderableType]:
    """Return what the machine serves with every core busy: a heading for each model, a line per variant."""
    if served.empty:
        return []
    parts: list[RenderableType] = []
    shown = first | columns.shown("terminal", served, "capacity")
    threaded = served["variant"].map(has_threads)
    for place, (model, group) in enumerate(served[~threaded].groupby("model", sort=False)):
        rows = group.to_dict("records")
        parts.append(Text(f"\n{model}, every core busy: {served_texts(rows[0])}", style="bold"))
        parts.append(grid(rows, shown, header=place == 0))
        scaled = [row for row in rows if isinstance(row["scaling"], list)]
        parts += _by_count(scaled, f"{model}, texts a second by workers", first)
    for model, group in served[threaded].groupby("model", sort=False):
        by_variant: dict[str, list[Row]] = {}
        for row in group.to_dict("records"):
            point = {"workers": row["worker_threads"], "texts_per_s": row["texts_per_s"]}
            by_variant.setdefault(re.sub(THREADS, "", row["variant"]), []).append(point)
        scaled = [{"variant": variant, "scaling": points} for variant, points in by_variant.items()]
        parts += _by_count(scaled, f"{model}, one process: texts a second by threads", first)
    return [*parts, Text("\n" + " ".join(capacity_notes(served)), style="dim")]


def _by_count(scaled: Sequence[Row], title: str, first: Mapping[str, Shown]) -> list[RenderableType]:
    """Return how each variant of `scaled` grows with the number of workers, or of threads, in `scaling`."""
    rows = [row | {point["workers"]: point["texts_per_s"] for point in row["scaling"]} for row in map(dict, scaled)]
    counts = sorted({point["workers"] for row in scaled for point in row["scaling"]})
    numbers = {count: Shown(str(count), each(three_digits), 7) for count in counts}
    return [Text(f"\n{title}", style="bold"), grid(rows, {**first, **numbers})] if rows else []


THREADS = r"-\d+-threads?$"
"""The end of the names of variants.with_threads."""


def has_threads(variant: str) -> bool:
    """Whether `variant` is one process with a number of threads, which --threads has added."""
    return re.search(THREADS, variant) is not None


def served_texts(row: Row) -> str:
    """Return which texts a row's workers have served, and how long they are in tokens."""
    tokens = row["traffic_tokens"]
    return f"{row['traffic']}, median {tokens['p50']} tokens (90 %: {tokens['p5']}–{tokens['p95']})"


def capacity_notes(served: pd.DataFrame) -> list[str]:
    """Return what the figures of capacity mean, and what is unusual about where the workers ran, as sentences."""
    first = served.iloc[0].to_dict()
    return [
        f"Texts/s: of {counted(int(first['workers']), 'worker')}, each a process of one thread, tokenizing included.",
        "Over alone: a text's time with all busy over that of one worker alone, and half of its 95 % interval.",
        "In limit: how many requests a second may arrive, at random, with 99 % of them answered in time,",
        f"within {first['latency_limit_s'] * 1e3:g} ms, waiting included; simulated (~: from fewer than 299 texts).",
        *(["Of a batch the rates are of texts, times and limit of calls."] if served["batch"].notna().any() else []),
        *dict.fromkeys(note for notes in served["capacity_notes"] for note in notes),
    ]


ACCURACY = {
    "p50_s": Shown("p50\nms", lambda row, name: "cannot" if "cannot" in row else each(milliseconds)(row, name)),
    "p95_s": Shown("p95\nms", each(milliseconds)),
    "score": Shown("{short}\n", times(1, ".4f")),
    "drop": Shown("{short}\ndrop", times(1, "+.4f")),
    "interval": Shown("{short} drop\n95 %", written),
    "flips": Shown("flips\n", written),
    "mcnemar_p": Shown("McNemar\np", times(1, ".3f")),
}


def accuracy(results: Iterable[Mapping[str, Any]], *, title: str) -> Group:
    """Return the table of an accuracy pass, from dictionaries with the figures of accuracy.Comparison.record.

    A variant without such figures gives the reason in `cannot`.
    """
    rows = [_judged(metrics.common_names(result)) for result in results]
    metric = metrics.named(next((row["metric"] for row in rows if "metric" in row), None))
    more = {name: Shown(heading, times(1, ".4f")) for name, heading in metric.narrow.items()}
    known = {name for row in rows for name in row}
    shown = {name: column for name, column in (ACCURACY | more).items() if name in known}
    documents = max((row["documents"] for row in rows if "documents" in row), default=0)
    visible = max((row.get("visible_drop", 0.0) for row in rows), default=0.0)
    without = [Text(f"\n{row['variant']}: {row['cannot']}") for row in rows if "cannot" in row]
    power = f" {counted(documents, 'document')} show a true drop of {visible:.3f} with a chance of 80 %."
    caption = f"\nms: text to logits, tokenizing included.{power if visible else ''}"
    drawn = grid(rows, headed(variants(0) | shown, metric))
    return Group(Text(title, style="bold"), "", drawn, *without, Text(caption, style="dim"))


def _judged(result: Row) -> Row:
    if "cannot" in result:
        return {name: result[name] for name in ("variant", "cannot")}
    if result["variant"] == result["baseline"]:
        return {name: value for name, value in result.items() if name not in ("drop", "flips", "mcnemar_p")}
    return {**result, "interval": f"{result['drop_low']:+.3f} {result['drop_high']:+.3f}"}


CHOICE = variants(0) | {
    "texts_per_s": Shown("texts/s\n", each(three_digits)),
    "latency_s": Shown("text\nms", each(milliseconds)),
    "p95_s": Shown("95 %\nms", each(milliseconds)),
    "disk_bytes": Shown("disk\nMB", times(1e-6, ".0f")),
    "documents": Shown("docu-\nments", lambda row, name: str(row[name] or "")),
    "flips": Shown("flips\n", lambda row, name: str(row.get(name, "")) if row["documents"] else ""),
    "drop": Shown("{short}\ndrop", lambda row, name: f"{row[name]:+.4f}" if row["documents"] else ""),
    "verdict": Shown("guard\n", written, left=True),
}


def choice(record: Mapping[str, Any]) -> Group:
    """Return the table of choosing.Choice.to_record: the variants, best first."""
    by_capacity = record["wanted"]["prefer"] == "capacity"
    shown = {name: column for name, column in CHOICE.items() if name != "texts_per_s" or by_capacity}
    rows = [{"texts_per_s": 0.0} | metrics.common_names(row, record["metric"]) for row in record["variants"]]
    shown = headed(shown, metrics.named(record["metric"]))
    without = [f"{row['variant']}: {row['why']}" for row in rows if row["why"]]
    return Group(grid(rows, shown, bold=record["chosen"]), *(Text(f"\n{line}") for line in without))


def over_limit(info: Row) -> str:
    """Return a sentence on how far a cell is over its limit; `info` is its accuracy benchmark's `extra_info`."""
    info = metrics.common_names(info)
    short = metrics.named(info["metric"]).short
    judged = f"interval of its {short} drop" if info["guard"] == "interval" else f"{short} drop"
    figures = f"{info['drop']:+.4f} (95 %: {info['drop_low']:+.4f} to {info['drop_high']:+.4f})"
    return f"{cell_name(info)}: the {judged}, {figures}, is over the limit {info['max_drop']:.4f}"
