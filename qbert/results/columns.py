"""The tables of the report, and the words for its figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from qbert.results.tables import in_limit, is_too_noisy, of_limit, three_digits, too_wide
from qbert.variants import BASELINE

COLUMNS = (
    *("tokens", "variant", "latency ms", "speedup over fp32, 95 %", "over best fp32, 95 %", "% of limit"),
    *("weighted F1", "F1 drop, 95 %", "flips", "choice"),
)
FOOTPRINT_COLUMNS = ("tokens", "variant", "disk MB", "load s", "first call ms", "after a pause ms", "memory MB")
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
CAPACITY_COLUMNS = (
    *("tokens", "variant", "texts/s", "texts/s in limit", "p50 ms", "p95 ms", "p99 ms", "worst ms"),
    *("over alone, 95 %", "least share of a worker", "all memory MB", "a million costs"),
)
Entry = tuple[str, float | str]
"""The text of a table's cell, and its sort key."""


def of_model(cells: pd.DataFrame) -> list[tuple[Sequence[str], list[list[Entry]]]]:
    """Return the tables of one model that are not empty, as headings and rows: latency and F1; footprint; capacity."""
    records = cells.to_dict("records")
    main = [_main_row(row) for row in records if pd.notna(row["latency_s"]) or pd.notna(row["f1"])]
    footprint = [_footprint_row(row) for row in records if pd.notna(row["disk_bytes"])]
    capacity = [_capacity_row(row) for row in records if pd.notna(row["texts_per_s"])]
    columns: tuple[str, ...] = CAPACITY_COLUMNS
    if capacity and cells["cost_per_million"].isna().all():  # nobody has named a price
        columns, capacity = columns[:-1], [row[:-1] for row in capacity]
    return [table for table in ((COLUMNS, main), (FOOTPRINT_COLUMNS, footprint), (columns, capacity)) if table[1]]


def entry(value: Any, text: str) -> Entry:  # noqa: ANN401
    """Return `text` with its sort key `value`; empty where that is not known."""
    return ("", "") if pd.isna(value) else (text, float(value))


def _between(low: float, high: float, form: str) -> str:
    return "" if pd.isna(low) else f" ({format(low, form)} to {format(high, form)})"


def speedup(row: Mapping[Any, Any]) -> str:
    """Return the speedup over fp32 with its interval."""
    interval = " (too noisy)" if is_too_noisy(row) else _between(row["speedup_low"], row["speedup_high"], ".2f")
    return f"{row['speedup']:.2f}{interval}"


def _over_best(row: Mapping[Any, Any]) -> str:
    low, high = row["over_best_low"], row["over_best_high"]
    return f"{row['over_best']:.2f}" + (" (too noisy)" if too_wide(low, high) else _between(low, high, ".2f"))


def shares(row: Mapping[Any, Any]) -> str:
    """Return the shares of the limit in percent."""
    share, *best = of_limit(row).split()
    return share + "".join(f" ({one})" for one in best)


def limit_of(table: pd.DataFrame, best: str = "In brackets") -> str:
    """Return what the shares of the limit in `table` are of; `best` is how those of the second kind are shown."""
    if table["limit_definition"].isna().all():
        return ""
    sentence = LIMITS[int(table["limit_definition"].max())]
    return f"{sentence} {best}: {BEST_LIMIT}." if table["share_of_best_limit"].notna().any() else sentence


def standing(row: Mapping[Any, Any]) -> str:
    """Return whether a variant is over its F1 limit, or undominated; empty where it is neither."""
    return "over the limit" if row["over_limit"] is True else "undominated" if row["undominated"] else ""


def _main_row(row: Mapping[Any, Any]) -> list[Entry]:
    compared = pd.notna(row["f1"]) and row["variant"] != BASELINE
    choice = ", ".join(filter(None, [standing(row), "int8 stated, not shown" if row["stated"] else ""]))
    drop = entry(row["f1_drop"], f"{row['f1_drop']:+.4f}" + _between(row["f1_drop_low"], row["f1_drop_high"], "+.4f"))
    return [
        (str(row["max_length"]), float(row["max_length"])),
        (row["variant"], row["variant"]),
        entry(row["latency_s"], f"{row['latency_s'] * 1e3:.4g}"),
        entry(row["speedup"], speedup(row)),
        entry(row["over_best"], _over_best(row)),
        ("", "") if pd.isna(row["share_of_limit"]) else (shares(row), float(row["share_of_limit"])),
        entry(row["f1"], f"{row['f1']:.4f}"),
        drop if compared else ("", ""),
        entry(row["flips"], f"{row['flips']:.0f}") if compared else ("", ""),
        (choice, choice),
    ]


def _footprint_row(row: Mapping[Any, Any]) -> list[Entry]:
    return [
        (str(row["max_length"]), float(row["max_length"])),
        (row["variant"], row["variant"]),
        entry(row["disk_bytes"], f"{row['disk_bytes'] / 1e6:.4g}"),
        entry(row["load_s"], f"{row['load_s']:.2f}"),
        entry(row["first_call_s"], f"{row['first_call_s'] * 1e3:.4g}"),
        entry(row["after_pause_s"], f"{row['after_pause_s'] * 1e3:.4g}"),
        entry(row["peak_rss_bytes"], f"{row['peak_rss_bytes'] / 1e6:.0f}"),
    ]


def loaded_over_alone(row: Mapping[Any, Any]) -> str:
    """Return a text's time under load over that alone, with its interval."""
    low, high = row["loaded_over_alone_low"], row["loaded_over_alone_high"]
    return f"{row['loaded_over_alone']:.2f}" + (" (too noisy)" if too_wide(low, high) else _between(low, high, ".2f"))


def _capacity_row(row: Mapping[Any, Any]) -> list[Entry]:
    milliseconds = [
        entry(row[f"loaded_{name}_s"], f"{row[f'loaded_{name}_s'] * 1e3:.4g}")
        for name in ("p50", "p95", "p99", "worst")
    ]
    return [
        (str(row["max_length"]), float(row["max_length"])),
        (row["variant"], row["variant"]),
        entry(row["texts_per_s"], three_digits(row["texts_per_s"])),
        entry(row["rate_within_limit"], in_limit(row)),
        *milliseconds,
        entry(row["loaded_over_alone"], loaded_over_alone(row)),
        entry(min(row["worker_shares"]), f"{min(row['worker_shares']):.0%}"),
        entry(row["pss_bytes"], f"{row['pss_bytes'] / 1e6:.0f}"),
        entry(
            row["cost_per_million"], "" if pd.isna(row["cost_per_million"]) else three_digits(row["cost_per_million"])
        ),
    ]
