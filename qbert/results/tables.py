"""Tables for people, from benchmarks as pytest-benchmark saves them, without torch."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qbert.results import intervals
from qbert.system.terminal import console, counted, shown
from qbert.variants import BASELINE

Row = Mapping[Any, Any]


Format = Callable[[Row], str]

TOO_NOISY = 1.25
"""A speedup is too noisy if the upper end of its interval is more than so many times the lower end. On a Granite Rapids
machine, variants adjacent in speed differed by a factor of 1.14 (median of 54; 39 of them less than 1.25), and 52 of 54
intervals were no wider than 1.16."""
PACE = (
    "Latencies are at one pace of the machine: fp32's median among the cells of a model and length, over the speedup."
)
PACE_CHANGE = 0.10
"""A greater relative difference of fp32's medians of one model and length is reported; on an idle machine it is 3 to
8 % (Granite Rapids)."""


def summary(table: pd.DataFrame, *, title: str, caption: str) -> Group:
    """Return the summary of a run, at most 80 columns wide: a heading for each model and length, a line per variant.

    `table` is from history.cells.
    """
    parts: list[RenderableType] = [Text(title, style="bold")]
    table = in_order(at_one_pace(table, table))
    width = max(len("variant"), *table.loc[~table["variant"].map(has_threads), "variant"].str.len(), 0)
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
    parts += capacity(table[table["texts_per_s"].notna()], width)
    notes = [PACE, *pace_changes(table)] if table["latency_s"].notna().any() else []
    return Group(*parts, Text("\n".join(["", caption, *notes]), style="dim"))


def capacity(served: pd.DataFrame, width: int) -> list[RenderableType]:
    """Return what the machine serves with every core busy: a heading for each model, a line per variant.

    `served` are rows of history.cells; `width` is that of the variants' names.
    """
    if served.empty:
        return []
    parts: list[RenderableType] = []
    columns = CAPACITY_COLUMNS if served["cost_per_million"].notna().any() else without_cost(CAPACITY_COLUMNS)
    threaded = served["variant"].map(has_threads)
    for number, (model, group) in enumerate(served[~threaded].groupby("model", sort=False)):
        parts.append(Text(f"\n{model}, every core busy: {served_texts(group.iloc[0].to_dict())}", style="bold"))
        parts.append(lines(group, columns, width, header=number == 0))
        parts += _by_count(group[group["scaling"].notna()], f"{model}, texts a second with so many workers", width)
    for model, group in served[threaded].groupby("model", sort=False):
        by_variant: dict[str, list[dict[str, Any]]] = {}
        for row in group.to_dict("records"):
            point = {"workers": row["worker_threads"], "texts_per_s": row["texts_per_s"]}
            by_variant.setdefault(re.sub(THREADS, "", row["variant"]), []).append(point)
        of_threads = pd.DataFrame({"variant": list(by_variant), "scaling": list(by_variant.values())})
        parts += _by_count(of_threads, f"{model}, one process: texts a second with so many threads", width)
    return [*parts, Text("\n" + " ".join(capacity_notes(served)), style="dim")]


def _by_count(scaled: pd.DataFrame, title: str, width: int) -> list[RenderableType]:
    """Return how each variant of `scaled` grows with the number of workers, or of threads, in `scaling`."""
    if scaled.empty:
        return []
    counts = sorted({point["workers"] for points in scaled["scaling"] for point in points})
    columns: dict[str, tuple[int, Format]] = {str(count): (7, partial(_of_count, count)) for count in counts}
    return [Text(f"\n{title}", style="bold"), lines(scaled, columns, width, header=True)]


def _of_count(count: int, row: Row) -> str:
    return next((three_digits(point["texts_per_s"]) for point in row["scaling"] if point["workers"] == count), "")


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
        "In limit: so many requests a second may arrive, at random, for 99 % of them to be answered in time,",
        f"within {first['latency_limit_s'] * 1e3:g} ms, waiting included; simulated (~: from fewer than 299 texts).",
        *dict.fromkeys(note for notes in served["capacity_notes"] for note in notes),
    ]


def without_cost(columns: dict[str, tuple[int, Format]]) -> dict[str, tuple[int, Format]]:
    """Return `columns` without the cost, where nobody has named a price."""
    return {heading: column for heading, column in columns.items() if heading != COST}


def over_alone(row: Row) -> str:
    """Return a text's time under load over that alone, and half the width of its interval, in nine characters."""
    low, high = row["loaded_over_alone_low"], row["loaded_over_alone_high"]
    if pd.isna(low):
        return ""
    if too_wide(low, high):
        return "too noisy"
    return f"{row['loaded_over_alone']:.2f} ±{math.ceil(100 * (math.sqrt(high / low) - 1))}%"


def in_limit(row: Row) -> str:
    """Return the requests a second within the limit; with ~ where few texts were timed, so that the tail is a guess."""
    if not row["rate_within_limit"]:
        return "none"
    return ("~" if math.isnan(row["loaded_p99_s"]) else "") + three_digits(row["rate_within_limit"])


def with_intervals(cells: pd.DataFrame) -> pd.DataFrame:
    """Return `cells`, from history.cells, with the intervals of all speedups that have figures of each process.

    Older runs lack such figures and keep the intervals that they have saved.
    """
    ends = pd.DataFrame(intervals.speedups(cells), columns=["low", "high"], index=cells.index, dtype=float)
    return cells.assign(
        speedup_low=ends["low"].fillna(cells["speedup_low"].astype(float)),
        speedup_high=ends["high"].fillna(cells["speedup_high"].astype(float)),
    )


def at_one_pace(cells: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return `cells` with figures that are consistent within a row and rank like its speedup.

    A speedup is measured in pairs of blocks of calls, each pair at one moment. A median is measured at its cell's
    moment, and the machine's pace may change between cells. So `latency_s` is fp32's latency over the speedup, where
    fp32's latency is the median of all its medians among the cells of the same model and length in `runs`. If some of
    these cells have a speedup but no such median, `latency_s` is `median_s`.

    `over_best` is the speedup over the greatest speedup of an fp32 variant, with the interval `over_best_low` to
    `over_best_high`. `share_of_limit` and `share_of_best_limit` refer to `latency_s`. `pace_change` is greatest over
    least median of fp32, less 1. The intervals of speedups come from with_intervals.
    """
    fp32_s = runs["baseline_p50_s"].where(runs["variant"] != BASELINE, runs["median_s"]).astype(float)
    keys = [runs["model"], runs["max_length"]]
    complete = (fp32_s.notna() | runs["speedup"].isna()).groupby(keys).all()
    medians = fp32_s.groupby(keys)
    of_cells = pd.MultiIndex.from_frame(cells[["model", "max_length"]])
    speedup = cells["speedup"].astype(float)
    fp32_of_cells = pd.Series(medians.median().where(complete).reindex(of_cells).to_numpy(), index=cells.index)
    latency_s = (fp32_of_cells / speedup).fillna(cells["median_s"]).astype(float)
    cells = with_intervals(cells)
    best = speedup.where(cells["precision"] == "fp32").groupby([cells["model"], cells["max_length"]]).transform("max")
    over_best = pd.DataFrame(intervals.ratios(cells, _best_fp32(cells)), columns=["low", "high"], index=cells.index)
    return cells.assign(
        over_best_low=over_best["low"].astype(float),
        over_best_high=over_best["high"].astype(float),
        latency_s=latency_s,
        over_best=speedup / best.clip(lower=1),  # fp32's own speedup is 1, also if it was not run
        **{name: cells[name].astype(float) * cells["median_s"].astype(float) / latency_s for name in SHARES},
        pace_change=(medians.max() / medians.min() - 1).reindex(of_cells).to_numpy(),
    )


SHARES = ("share_of_limit", "share_of_best_limit")


def one_limit(cells: pd.DataFrame) -> pd.DataFrame:
    """Return `cells` without the shares of earlier definitions of the limit, where some are of a later one."""
    former = cells["limit_definition"].astype(float) < cells["limit_definition"].astype(float).max()
    return cells.assign(**{name: cells[name].mask(former) for name in SHARES})


def left_out_limits(cells: pd.DataFrame) -> list[str]:
    """Return a sentence where one_limit has left out shares of `cells`."""
    count = int((cells["limit_definition"].notna() & cells["share_of_limit"].isna()).sum())
    if not count:
        return []
    shares = counted(count, "share")
    return [f"Left out: {shares} of the limit as older versions defined it. A report of those runs alone shows them."]


def _best_fp32(cells: pd.DataFrame) -> list[Row]:
    """Return for each of `cells` the fastest fp32 cell of its model and length: the baseline if none was run."""
    best: dict[Any, Row] = {}
    for row in cells.to_dict("records"):
        key = row["model"], row["max_length"]
        baseline = {"speedup": 1.0, "process_speedups": None, "file": row.get("file")}
        if row["precision"] == "fp32" and row["speedup"] > best.setdefault(key, baseline)["speedup"]:
            best[key] = row
        best.setdefault(key, baseline)
    return [best[model, max_length] for model, max_length in zip(cells["model"], cells["max_length"], strict=True)]


def pace_changes(cells: pd.DataFrame) -> list[str]:
    """Return a sentence for each model and length during which the machine's pace changed by more than PACE_CHANGE."""
    return [
        f"The machine's pace changed by {row['pace_change']:.0%} among the cells of {row['model']}, "
        f"{row['max_length']} tokens."
        for row in cells.drop_duplicates(["model", "max_length"]).to_dict("records")
        if row["pace_change"] > PACE_CHANGE
    ]


def is_too_noisy(row: Row) -> bool:
    """Whether the interval of a speedup is too wide for a decision."""
    return too_wide(row["speedup_low"], row["speedup_high"])


def too_wide(low: float, high: float) -> bool:
    """Whether an interval is too wide for a decision."""
    return bool(high > TOO_NOISY * low)


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Return `table` with the models in order of appearance and the lengths of each ascending."""
    return table.sort_values(
        ["model", "max_length"],
        key=lambda column: pd.Series(pd.factorize(column)[0]) if column.name == "model" else column,
        kind="stable",
    )


def lines(group: pd.DataFrame, columns: Mapping[str, tuple[int, Format]], width: int, *, header: bool) -> Table:
    """Return a line for each row of `group`: the variant, then `columns` (heading: width, function of the row)."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=header)
    drawn.add_column("variant", min_width=width, no_wrap=True)
    for heading, (column_width, _) in columns.items():
        drawn.add_column(heading, justify="right", min_width=column_width, no_wrap=True)
    for row in group.to_dict("records"):
        drawn.add_row(_marked(row, drawn), *(text(row) for _, text in columns.values()))
    return drawn


def _marked(row: Row, drawn: Table) -> str:
    """Return the variant of `row`, marked if its int8 is only stated; the caption of `drawn` explains the mark."""
    if row.get("stated") is not True:
        return escape(row["variant"])
    drawn.caption, drawn.caption_justify = "* int8 as its own code states it, not shown", "left"
    return escape(row["variant"] + "*")


def accuracy(results: Iterable[Mapping[str, Any]], *, title: str) -> Group:
    """Return the table of an accuracy pass, from dictionaries with the fields of accuracy.Comparison.

    A variant without such figures gives the reason in `cannot`.
    """
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("variant", "p50\nms", "p95\nms", "F1\n", "F1\ndrop", "F1 drop\n95 %", "flips\n", "McNemar\np"):
        drawn.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=True)
    documents, visible = 0, 0.0
    without: list[str] = []
    for result in results:
        if "cannot" in result:
            drawn.add_row(escape(result["variant"]), "cannot")
            without.append(f"\n{result['variant']}: {result['cannot']}")
            continue
        documents, visible = result["documents"], max(visible, result["visible_drop"])
        drawn.add_row(
            _marked(result, drawn),
            *(milliseconds(result.get(name, math.nan)) for name in ("p50_s", "p95_s")),
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
    power = f"{counted(documents, 'document')} show a true drop of {visible:.3f} with a chance of 80 %."
    return Group(
        Text(title, style="bold"),
        "",
        drawn,
        *map(Text, without),
        Text(f"\nms: text to logits, tokenizing included. {power}", style="dim"),
    )


def choice(record: Mapping[str, Any]) -> Group:
    """Return the table of choosing.Choice.to_record: the variants, best first."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    preferred = record["wanted"]["prefer"] == "capacity"
    headings = ["variant", "text\nms", "95 %\nms", "disk\nMB", "docu-\nments", "flips\n", "F1\ndrop", "guard\n"]
    if preferred:
        headings.insert(1, "texts/s\n")
    for heading in headings:
        drawn.add_column(heading, justify="left" if heading in {"variant", "guard\n"} else "right", no_wrap=True)
    without: list[str] = []
    for row in record["variants"]:
        if row["why"]:
            without.append(f"{row['variant']}: {row['why']}")
        drawn.add_row(
            Text(row["variant"], style="bold" if row["variant"] == record["chosen"] else ""),
            *([three_digits(row.get("texts_per_s", 0.0))] if preferred else []),
            *(milliseconds(row.get(name, math.nan)) for name in ("latency_s", "p95_s")),
            megabytes(row["disk_bytes"]),
            str(row["documents"] or ""),
            *([str(row["flips"]), f"{row['f1_drop']:+.4f}"] if row["documents"] else ["", ""]),
            row["verdict"],
        )
    return Group(drawn, *(Text(f"\n{line}") for line in without))


def over_limit(info: Row) -> str:
    """Return a sentence on how far a cell is over its F1 limit; `info` is its accuracy benchmark's `extra_info`."""
    judged = "interval of its F1 drop" if info["f1_guard"] == "interval" else "F1 drop"
    figures = f"{info['f1_drop']:+.4f} (95 %: {info['f1_drop_low']:+.4f} to {info['f1_drop_high']:+.4f})"
    name = f"{info['model']}-{info['max_length']}-{info['variant']}"
    return f"{name}: the {judged}, {figures}, is over the limit {info['max_f1_drop']:.4f}"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table in which every text is shown literally."""
    lines = [list(headings), ["---"] * len(headings), *([markdown_text(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(text: str) -> str:
    """Return `text` escaped so that Markdown shows it literally."""
    text = shown(text)
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, entity)
    return " ".join(re.sub(r"([\\|*_`\[\]~#])", r"\\\1", text).split())


def spreadsheet(table: pd.DataFrame) -> str:
    """Return `table` as CSV whose texts no spreadsheet takes for formulas and no terminal for control codes.

    Source: OWASP, "CSV Injection": an apostrophe before the characters with which a formula can begin.
    """

    def cell(value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, str):
            return value
        return "'" * value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) + shown(value)

    return table.map(cell).to_csv(index=False)


def show(drawn: RenderableType) -> None:
    """Print to standard output, in colours only on a terminal and without NO_COLOR."""
    console().print(drawn)


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds with at least three significant digits."""
    return "" if math.isnan(seconds) else three_digits(seconds * 1e3)


def three_digits(value: float) -> str:
    """Return `value` with at least three significant digits."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def megabytes(size: float | None, form: str = ".0f") -> str:
    """Return bytes as megabytes; empty if not known."""
    return "" if pd.isna(size) else format(size / 1e6, form)


def _speedup(row: Row) -> str:
    if math.isnan(row["speedup"]):
        return ""
    if math.isnan(row["speedup_low"]):
        return f"{row['speedup']:.2f}"
    if is_too_noisy(row):
        return f"{row['speedup']:.2f}   too noisy"
    return f"{row['speedup']:.2f} {row['speedup_low']:.2f}–{row['speedup_high']:.2f}"


def of_limit(row: Row) -> str:
    """Return both shares of the limit in percent; an older run has one."""
    shares = [100 * row[name] for name in SHARES if pd.notna(row[name])]
    return " ".join(f"{share:.0f}" if share >= 1 else "<1" for share in shares)


def _over_best(row: Row) -> str:
    """Return the speedup over the best fp32 and half the width of its interval, in at most nine characters."""
    if pd.isna(row["over_best"]) or pd.isna(row["over_best_low"]):
        return number(row["over_best"], ".2f")
    if too_wide(row["over_best_low"], row["over_best_high"]):
        return "too noisy"
    half = math.sqrt(row["over_best_high"] / row["over_best_low"]) - 1
    return f"{three_digits(row['over_best'])} ±{math.ceil(100 * half)}%"


def number(value: float, form: str) -> str:
    """Return `value` in the format `form`; empty if not known."""
    return "" if pd.isna(value) else format(value, form)


COLUMNS: dict[str, tuple[int, Format]] = {
    "latency\nms": (7, lambda row: milliseconds(row["latency_s"])),
    "speedup\nmedian, 95 %": (17, _speedup),
    "over best\nfp32": (9, _over_best),
    "% of\nlimit": (5, of_limit),
    "F1\ndrop": (7, lambda row: number(row["f1_drop"], "+.4f") + ("!" if row["over_limit"] is True else "")),
    "flips\n": (5, lambda row: number(row["flips"], ".0f")),
}


FOOTPRINT_COLUMNS: dict[str, tuple[int, Format]] = {
    "disk\nMB": (6, lambda row: megabytes(row["disk_bytes"])),
    "load\ns": (6, lambda row: f"{row['load_s']:.2f}"),
    "first call\nms": (10, lambda row: milliseconds(row["first_call_s"])),
    "after a\npause ms": (8, lambda row: milliseconds(row["after_pause_s"])),
    "peak memory\nMB": (11, lambda row: megabytes(row["peak_rss_bytes"])),
}


COST = "million\ncosts"
CAPACITY_COLUMNS: dict[str, tuple[int, Format]] = {
    "texts/s\n": (7, lambda row: three_digits(row["texts_per_s"])),
    "p50\nms": (6, lambda row: milliseconds(row["loaded_p50_s"])),
    "p99\nms": (6, lambda row: milliseconds(row["loaded_p99_s"])),
    "over\nalone": (9, over_alone),
    "texts/s\nin limit": (8, in_limit),
    "memory\nMB": (6, lambda row: megabytes(row["pss_bytes"])),
    COST: (7, lambda row: "" if pd.isna(row["cost_per_million"]) else three_digits(row["cost_per_million"])),
}
