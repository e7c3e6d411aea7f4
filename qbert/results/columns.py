"""The one table of columns: what a saved run may hold of each figure, and how it is written where it is shown."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import pandas as pd
from msgspec import UNSET, Meta, Struct, UnsetType

from qbert.inputs import metrics
from qbert.inputs.metrics import Metric
from qbert.results.pace import SHARES
from qbert.results.records import (
    Bytes,
    Correlation,
    Cost,
    Count,
    Drop,
    Flip,
    LimitShare,
    Measured,
    Point,
    Positive,
    Rate,
    Ratio,
    Recorded,
    Score,
    Seconds,
    Share,
    Tokens,
)
from qbert.results.tables import (
    Row,
    Shown,
    Write,
    bracketed,
    each,
    headed,
    milliseconds,
    number,
    three_digits,
    times,
    written,
)
from qbert.variants import BASELINE

TOO_NOISY = 1.25
"""A ratio is too noisy if the upper end of its interval is more than this times the lower end. On a Granite Rapids
machine, variants adjacent in speed differed by a factor of 1.14 (median of 54; 39 of them less than 1.25), and 52 of 54
intervals were no wider than 1.16."""


def is_too_noisy(row: Row, name: str = "speedup") -> bool:
    """Whether the interval of a ratio is too wide for a decision."""
    return bool(row[f"{name}_high"] > TOO_NOISY * row[f"{name}_low"])


def with_interval(form: str) -> Write:
    """Return what writes a figure with its interval in brackets, or that this is too wide."""

    def write(row: Row, name: str) -> str:
        if pd.isna(row[name]):
            return ""
        if "+" not in form and is_too_noisy(row, name):
            return f"{row[name]:{form}} (too noisy)"
        return f"{row[name]:{form}}" + bracketed(row[f"{name}_low"], row[f"{name}_high"], lambda end: format(end, form))

    return write


def with_margin(write_ratio: Callable[[float], str]) -> Write:
    """Return what writes a ratio and half the width of its interval, in at most nine characters."""

    def write(row: Row, name: str) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        if pd.isna(row[name]) or pd.isna(low):
            return number(row[name], ".2f")
        if is_too_noisy(row, name):
            return "too noisy"
        return f"{write_ratio(row[name])} ±{math.ceil(100 * (math.sqrt(high / low) - 1))}%"

    return write


def _speedup(row: Row, _: str) -> str:
    if math.isnan(row["speedup_low"]):
        return number(row["speedup"], ".2f")
    if is_too_noisy(row):
        return f"{row['speedup']:.2f}   too noisy"
    return f"{row['speedup']:.2f} {row['speedup_low']:.2f}–{row['speedup_high']:.2f}"


def both_shares(row: Row, _: str = "") -> str:
    """Return both shares of the limit in percent; an older run has one."""
    shares = [100 * row[name] for name in SHARES if pd.notna(row[name])]
    return " ".join(f"{share:.0f}" if share >= 1 else "<1" for share in shares)


def in_brackets(row: Row, _: str = "") -> str:
    """Return the shares of the limit in percent, the second in brackets."""
    share, *best = both_shares(row).split() or [""]
    return share + "".join(f" ({one})" for one in best)


def in_limit(row: Row, _: str = "") -> str:
    """Return the requests a second within the limit; with ~ where few texts were timed, so that the tail is a guess."""
    if pd.isna(row["rate_within_limit"]):
        return ""
    if not row["rate_within_limit"]:
        return "none"
    return ("~" if math.isnan(row["loaded_p99_s"]) else "") + three_digits(row["rate_within_limit"])


LIMITS = {
    1: (
        "the time that all matrix products would take at the best rate of BERT-base's products on this core, over the "
        "latency (as older versions defined it)."
    ),
    2: (
        "the least time that this core needs for the products, at the best rate of any kernel, or for reading their "
        "weights, over the latency."
    ),
}
"""What a share of the limit is, by the number of its definition."""
BEST_LIMIT = "with attention at the best rate of any precision"


def limit_of(table: pd.DataFrame, best: str = "In brackets") -> str:
    """Return what the shares of the limit in `table` are of; `best` is how those of the second kind are shown."""
    if table["limit_definition"].isna().all():
        return ""
    sentence = LIMITS[int(table["limit_definition"].max())]
    return f"{sentence} {best}: {BEST_LIMIT}." if table["share_of_best_limit"].notna().any() else sentence


def standing(row: Row) -> str:
    """Return whether a variant is over its limit, or undominated; empty where it is neither."""
    return "over the limit" if row["over_limit"] is True else "undominated" if row["undominated"] else ""


def _choice(row: Row, _: str) -> str:
    return ", ".join(filter(None, [standing(row), "int8 stated, not shown" if row["stated"] else ""]))


def of_variants(write: Write) -> Write:
    """Return what writes a figure of judged variants alone: the baseline's is against itself."""
    return lambda row, name: "" if row["variant"] == BASELINE or pd.isna(row["score"]) else write(row, name)


def _drop(row: Row, name: str) -> str:
    return number(row[name], "+.4f") + ("!" if row["over_limit"] is True else "")


@dataclass(frozen=True)
class Column:
    """A figure of a cell."""

    name: str
    """In `extra_info`, in the tables of `history` and in CSV; it ends with the unit.

    There figures in metrics.NAMES have the names of their metric.
    """
    type: Any = None
    """What a saved run may hold in `extra_info`; None: the figure comes from elsewhere, or is computed."""
    terminal: Shown | None = None
    """How the table of a run shows it."""
    report: Shown | None = None
    """How the report of one machine shows it."""
    machines: Shown | None = None
    """How the report shows it where machines are side by side; the heading is the table's title."""
    optional: bool = False
    """Whether some runs lack it, as those of older versions do."""
    kept: bool = True
    """Whether a row has it as soon as a run is read; otherwise it is checked alone, or computed later."""
    only_where_known: bool = False
    """Whether tables leave it out where no row has it."""


_FOUR, _SIX = times(1, ".4f"), times(1, ".6f")
_DIGITS, _MS, _MS_4 = each(three_digits), each(milliseconds), times(1e3, ".4g")
_MB, _MB_4, _COUNT, _S = times(1e-6, ".0f"), times(1e-6, ".4g"), times(1, ".0f"), times(1, ".2f")
# fmt: off
COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "latency": (
        Column("latency_s", None, Shown("latency\nms", _MS, 7), Shown("latency ms", _MS_4),
               Shown("Latency of one text, ms", _MS), kept=False),
        Column("median_s"),
        Column("q1_s"),
        Column("q3_s"),
        Column("p50_s", Seconds, kept=False),
        Column("p95_s", Seconds, optional=True),
        Column("p99_s", Seconds, optional=True, kept=False),
        Column("speedup", Ratio, Shown("speedup\nmedian, 95 %", _speedup, 17),
               Shown("speedup over fp32, 95 %", with_interval(".2f"))),
        Column("speedup_low", Ratio, optional=True),
        Column("speedup_high", Ratio, optional=True),
        Column("over_best", None, Shown("over best\nfp32", with_margin(three_digits), 9),
               Shown("over best fp32, 95 %", with_interval(".2f")), kept=False),
        Column("baseline_p50_s", Seconds, optional=True),
        Column("share_of_limit", LimitShare, Shown("% of\nlimit", both_shares, 5), Shown("% of limit", in_brackets),
               Shown("Share of the machine's own limit, %", in_brackets), optional=True),
        Column("share_of_best_limit", LimitShare, optional=True),
        Column("limit_definition", Positive, optional=True),
        Column("floor_s", Seconds, optional=True, kept=False),
        Column("best_floor_s", Seconds, optional=True, kept=False),
        Column("precision"),
        Column("runtime"),
        Column("process_speedups", Annotated[list[Ratio], Meta(min_length=1)], optional=True),
        Column("process_p50_s", list[Seconds], optional=True, kept=False),
    ),
    "accuracy": (
        Column("metric"),
        Column("score", Score, None, Shown("{title}", times(1, ".4f"))),
        Column("score_baseline", Score),
        Column("drop", Drop, Shown("{short}\ndrop", _drop, 7),
               Shown("{short} drop, 95 %", of_variants(with_interval("+.4f")))),
        Column("drop_low", Drop),
        Column("drop_high", Drop),
        Column("drop_at_most", Drop, optional=True, kept=False),
        Column("max_drop", float),
        Column("guard", str),
        Column("over_limit", bool, optional=True),
        Column("flips", Count, Shown("flips\n", _COUNT, 5), Shown("flips", of_variants(_COUNT)), optional=True,
               only_where_known=True),
        Column("mrr", Share, None, Shown("MRR@10", _FOUR), optional=True, only_where_known=True),
        Column("spearman", Correlation, None, Shown("Spearman", _FOUR), optional=True, only_where_known=True),
        Column("pearson_with_fp32", Correlation, None, Shown("Pearson with fp32", _SIX), optional=True,
               only_where_known=True),
        Column("spearman_with_fp32", Correlation, None, Shown("Spearman with fp32", _SIX), optional=True,
               only_where_known=True),
        Column("mcnemar_p", Share, optional=True),
        Column("documents", Positive),
        Column("queries", Positive, optional=True),
        Column("visible_drop", Share, optional=True),
        Column("flipped", list[Flip]),
        Column("answers", Recorded, optional=True),
        Column("undominated", None, None, Shown("choice", _choice, left=True, key=str), kept=False),
    ),
    "footprint": (
        Column("disk_bytes", Bytes, Shown("disk\nMB", _MB, 6), Shown("disk MB", _MB_4),
               Shown("On disk, MB", _MB_4, rank=3, only_where_different=True)),
        Column("load_s", Seconds, Shown("load\ns", _S, 6), Shown("load s", _S), Shown("Loading, s", _S, rank=2)),
        Column("first_call_s", Seconds, Shown("first call\nms", _MS, 10), Shown("first call ms", _MS_4)),
        Column("after_pause_s", Seconds, Shown("after a\npause ms", _MS, 8), Shown("after a pause ms", _MS_4),
               optional=True),
        Column("peak_rss_bytes", Bytes, Shown("peak memory\nMB", _MB, 11), Shown("memory MB", _MB),
               Shown("Peak memory of a process, MB", _MB, rank=1)),
    ),
    "capacity": (
        Column("workers", Positive),
        Column("worker_threads", Positive),
        Column("batch", Positive, optional=True),
        Column("texts_per_s", Rate, Shown("texts/s\n", _DIGITS, 7), Shown("texts/s", _DIGITS),
               Shown("Texts a second, every core busy", _DIGITS)),
        Column("loaded_p50_s", Seconds, Shown("p50\nms", _MS, 6), Shown("p50 ms", _MS_4, rank=1)),
        Column("loaded_p95_s", Seconds, None, Shown("p95 ms", _MS_4, rank=1), optional=True),
        Column("loaded_p99_s", Seconds, Shown("p99\nms", _MS, 6), Shown("p99 ms", _MS_4, rank=1), optional=True),
        Column("loaded_worst_s", Seconds, None, Shown("worst ms", _MS_4, rank=1)),
        Column("worker_shares", list[Share], None,
               Shown("least share of a worker", each(lambda shares: f"{min(shares):.0%}"), key=min, rank=2)),
        Column("alone_p50_s", Seconds, optional=True),
        Column("half_load_slowdown", Ratio, optional=True),
        Column("loaded_over_alone", Ratio, Shown("over\nalone", with_margin("{:.2f}".format), 9),
               Shown("over alone, 95 %", with_interval(".2f"), rank=1), optional=True),
        Column("loaded_over_alone_low", Ratio, optional=True),
        Column("loaded_over_alone_high", Ratio, optional=True),
        Column("pss_bytes", Bytes, Shown("memory\nMB", _MB, 6, rank=2), Shown("all memory MB", _MB, rank=2),
               optional=True),
        Column("latency_limit_s", Seconds),
        Column("rates", Annotated[list[Rate], Meta(min_length=1)]),
        Column("rates_p99_s", list[Seconds]),
        Column("rate_within_limit", Rate, Shown("texts/s\nin limit", in_limit, 8, rank=1),
               Shown("texts/s in limit", in_limit), Shown("Requests a second within the latency limit", in_limit)),
        Column("price_per_hour", Cost, optional=True),
        Column("cost_per_million", Cost, Shown("million\ncosts", _DIGITS, 7, rank=2),
               Shown("a million costs", _DIGITS, rank=2), Shown("A million texts cost", _DIGITS), optional=True,
               only_where_known=True),
        Column("scaling", list[Point], optional=True),
        Column("traffic", str),
        Column("traffic_sha256", str),
        Column("traffic_tokens", Tokens),
        Column("capacity_notes", list[str]),
        Column("answers_compared", Count, kept=False),
    ),
}
# fmt: on
"""The columns of each benchmark, in the order in which they are shown."""


def record(name: str, columns: Iterable[Column], metric: Metric, base: type[Struct] = Struct) -> type[Struct]:
    """Return a type with a field for each of `columns` that may be saved, whose names outside are those of `metric`."""
    span = 1 - metric.least
    types = {
        Score: Annotated[float, Meta(ge=metric.least, le=1)],
        Drop: Annotated[float, Meta(ge=-span, le=span)],
    }
    fields: Any = []
    for column in columns:
        kind: Any = types.get(column.type, column.type)
        if kind:
            fields.append((column.name, kind | UnsetType, UNSET) if column.optional else (column.name, kind))
    renamed = {column: own.format(metric.key) for column, own in metrics.NAMES.items()}
    return msgspec.defstruct(name, fields, bases=(base,), kw_only=True, rename=renamed)


RECORDS = {
    (measured, metric.key): record(measured, columns, metric, Measured)
    for measured, columns in COLUMNS.items()
    for metric in metrics.BY_KEY.values()
}
"""The type of the `extra_info` of each benchmark that is judged by a metric, by its name and the metric's key."""


def kept(*measured: str) -> list[str]:
    """Return the names of the columns that a row has of the benchmarks `measured`, of all without any."""
    return [column.name for one in measured or COLUMNS for column in COLUMNS[one] if column.kept]


def metric_of(cells: pd.DataFrame) -> Metric:
    """Return what `cells`, all of one dataset, are judged by."""
    return metrics.named(next(iter(cells["metric"].dropna()), None))


def shown(where: str, cells: pd.DataFrame, *measured: str) -> dict[str, Shown]:
    """Return the columns of `measured` shown `where`: on the `terminal`, in the `report`, or of several `machines`.

    `cells` are what is shown.
    """
    columns = [column for one in measured or COLUMNS for column in COLUMNS[one] if getattr(column, where)]
    columns = [column for column in columns if not (column.only_where_known and cells[column.name].isna().all())]
    columns.sort(key=lambda column: getattr(column, where).rank)
    return headed({column.name: getattr(column, where) for column in columns}, metric_of(cells))


CELL_COLUMNS = {"max_length": Shown("tokens", written), "variant": Shown("variant", written, left=True)}
"""What the tables of a report begin with."""
