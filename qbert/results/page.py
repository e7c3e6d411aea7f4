"""The report: the figures of saved runs on one HTML page that needs no network."""

import base64
import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qbert import __version__
from qbert.errors import InputError, pip_install
from qbert.results import intervals, verdicts
from qbert.results.compare import CELL, SUBJECT, differences
from qbert.results.history import ACCURACY, CAPACITY, FOOTPRINT, LATENCY
from qbert.results.tables import (
    PACE,
    TOO_NOISY,
    at_one_pace,
    capacity_notes,
    has_threads,
    in_limit,
    is_too_noisy,
    left_out_limits,
    markdown_table,
    markdown_text,
    of_limit,
    one_limit,
    pace_changes,
    served_texts,
    spreadsheet,
    three_digits,
    too_wide,
)
from qbert.terminal import counted, shown
from qbert.variants import BASELINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

INK, FAINT = "#010203", "#a1b2c3"  # placeholders in a drawing for the page's own colours, which are light or dark
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#c98a00", "#3f9bd1", "#8c6bb1", "#8a8a1f", "#aa4466", "#5b7f1e")
MARKERS = "osD^vP*X<>"
DIAMOND: Mapping[str, Any] = {"ls": "", "marker": "D", "color": INK, "markersize": 5, "markerfacecolor": "white"}
FLIPS_SHOWN = 200
WIDTH_IN = 5.4  # as wide as a column of the page; on a phone it shrinks by a third and stays readable


@dataclass(frozen=True)
class Figure:
    """A drawing, and its content in words."""

    svg: str
    alternative: str
    caption: str


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell of `runs`, from history.load, with each benchmark's figures from its newest run.

    `low_s` and `high_s` are the least and greatest median of several runs, or the quartiles of a single run's rounds.
    `latency_s`, `over_best`, the shares of the limit, `pace_change` and the intervals come from tables.at_one_pace.
    `undominated`: no other variant of this model and length is at least as fast with at least its F1.

    Raises:
        InputError: the runs are of different machines or subjects.
    """
    machines = list(dict.fromkeys(runs["machine"]))
    if len(machines) > 1:
        raise InputError(f"the runs are of different machines, {' and '.join(machines)}: make a report of each")
    _refuse_mixed(runs)
    runs = runs.sort_values(["when", "file"], kind="stable")
    medians = runs.groupby(CELL, sort=False)["median_s"]
    table = _newest(runs)
    table["runs"] = medians.count()
    for name, quartile, extreme in (("low_s", "q1_s", medians.min()), ("high_s", "q3_s", medians.max())):
        table[name] = extreme.where(table["runs"] > 1, table[quartile].astype(float))
    table = table.reset_index()
    table = one_limit(at_one_pace(table, table))
    table["undominated"] = [_undominated(row, table) for row in table.to_dict("records")]
    order = {model: number for number, model in enumerate(dict.fromkeys(runs["model"]))}
    return table.sort_values(
        ["model", "max_length"],
        key=lambda column: column.map(order) if column.name == "model" else column,
        kind="stable",
    ).reset_index(drop=True)


def _newest(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each cell of `runs`, sorted from oldest to newest: each benchmark from the newest that has it.

    All figures of one benchmark come from one run.
    """
    rows = runs.groupby(CELL, sort=False).tail(1).set_index(CELL)
    for key, figures in (
        ("median_s", [*LATENCY, "file"]),
        ("f1", ACCURACY),
        ("disk_bytes", FOOTPRINT),
        ("texts_per_s", CAPACITY),
    ):
        newest = runs[runs[key].notna()].groupby(CELL, sort=False).tail(1).set_index(CELL)
        for name in figures:
            rows[name] = newest[name].reindex(rows.index)
    return rows


def _refuse_mixed(runs: pd.DataFrame) -> None:
    """Check that the figures of `runs` fit in one table: one dataset and its documents, one subject for each cell.

    Raises:
        InputError: they do not.
    """
    seen: dict[tuple[str, str], tuple[Any, str]] = {}
    for row in runs.to_dict("records"):
        cell, identity = "-".join(str(row[name]) for name in CELL), row["identity"]
        of_all = {"dataset_sha256": identity["dataset_sha256"], "documents": row["documents"]}
        of_cell = {name: identity.get(name) for name in SUBJECT}
        of_cell |= {"latency limit": row["latency_limit_s"], "traffic": row["traffic_sha256"]}
        of_cell |= {"F1 limit": row["max_f1_drop"], "F1 guard": row["f1_guard"]}
        for scope, facts in (("", of_all), (cell, of_cell)):
            for fact, value in facts.items():
                if isinstance(value, float) and math.isnan(value):  # not judged in this run
                    continue
                known, file = seen.setdefault((scope, fact), (value, row["file"]))
                if known != value:
                    differs = differences({fact: known}, {fact: value}) or [
                        f"{fact}: {known:g}, {value:g}" if isinstance(value, float) else f"{fact}: {known}, {value}"
                    ]
                    raise InputError(
                        f"what a report shows has to be measured alike, and {cell} is not in "
                        f"{' and '.join(dict.fromkeys([file, row['file']]))} ({'; '.join(differs)}): "
                        "make a report of each"
                    )


def _undominated(row: Mapping[Any, Any], table: pd.DataFrame) -> bool:
    if math.isnan(row["latency_s"]) or pd.isna(row["f1"]):
        return False
    others = table[(table["model"] == row["model"]) & (table["max_length"] == row["max_length"])]
    as_good = (others["latency_s"] <= row["latency_s"]) & (others["f1"] >= row["f1"])
    better = (others["latency_s"] < row["latency_s"]) | (others["f1"] > row["f1"])
    return not (as_good & better).any()


def answers(table: pd.DataFrame) -> list[str]:
    """Return sentences for each model: which variant within its F1 limit serves most, and which is the fastest."""
    served = table[table["texts_per_s"].notna()]
    most = [serves_most(cells) for _, cells in served.groupby("model", sort=False)]
    return [*filter(None, most), *_fastest(table[table["median_s"].notna()])]


def _fastest(table: pd.DataFrame) -> list[str]:
    """Return a sentence for each model: the fastest variant within its F1 limit, at the model's greatest length."""
    sentences = []
    for model, cells in table.groupby("model", sort=False):
        max_length = cells["max_length"].max()
        timed = cells[(cells["max_length"] == max_length) & (cells["variant"] != BASELINE) & cells["speedup"].notna()]
        within = timed[timed["f1_drop"].isna() | ~(timed["f1_drop"] > timed["max_f1_drop"])]
        subject = f"{model}, {max_length} tokens"
        if timed.empty:
            sentences.append(f"{subject}: nothing was measured beside {BASELINE}.")
            continue
        if within.empty or within["speedup"].max() <= 1:
            sentences.append(f"{subject}: no variant is faster than {BASELINE} and within its F1 limit.")
            continue
        best = within.loc[within["speedup"].idxmax()]
        low, high = (within[name].fillna(within["speedup"]) for name in ("speedup_low", "speedup_high"))
        rivals = within[high >= low[best.name]].sort_values("speedup", ascending=False)
        noisy = [row["variant"] for row in rivals.to_dict("records") if is_too_noisy(row)]
        if noisy and len(rivals) > 1:
            sentences.append(
                f"{subject}: which of {' and '.join(rivals['variant'])} is the fastest cannot be told, "
                f"too noisy: {' and '.join(noisy)}."
            )
            continue
        sentence = f"{subject}: {best['variant']} is {three_digits(best['speedup'])} times faster than {BASELINE}"
        if noisy:
            sentence += " (too noisy)"
        else:
            sentence += _range(best["speedup_low"], best["speedup_high"])
        if pd.notna(best["over_best"]):
            sentence += f", {three_digits(best['over_best'])} times faster than the best fp32"
            sentence += _range(best["over_best_low"], best["over_best_high"])
        if pd.notna(best["f1"]):
            sentence += (
                f"; weighted F1 {best['f1']:.4f}, {_drop(best['f1_drop'])}"
                f" (95 %: {_drop(best['f1_drop_low'])} to {_drop(best['f1_drop_high'])}),"
                f" {best['flips']:.0f} of {best['documents']:.0f} labels changed."
            )
        else:
            sentence += (
                "; its F1 was not measured." if best["trained"] else "; the model is untrained, so F1 means nothing."
            )
        second = within.drop(index=best.name).nlargest(1, "speedup")
        if len(second) and intervals.are_distinguishable(table, best.to_dict(), second.iloc[0].to_dict()) is False:
            sentence += f" It and {second['variant'].iloc[0]} cannot be told apart in speed."
        sentences.append(sentence)
    return sentences


def serves_most(cells: pd.DataFrame) -> str:
    """Return a sentence on which of one model's `cells` within its F1 limit serves most, and at what cost; or none."""
    rows = cells.to_dict("records")
    within = [row for row in rows if pd.isna(row["f1_drop"]) or row["f1_drop"] <= row["max_f1_drop"]]
    if not within:
        return ""
    best = max(within, key=lambda row: (row["rate_within_limit"], row["texts_per_s"]))
    workers = counted(int(best["workers"]), "worker")
    limit = f"within {best['latency_limit_s'] * 1e3:g} ms at p99"
    guarded = "" if pd.isna(best["f1_drop"]) else ", within its F1 limit"
    if not best["rate_within_limit"]:
        return (
            f"{best['model']}: no variant answers {limit} here under any load; {best['variant']}{guarded}, serves "
            f"most: {three_digits(best['texts_per_s'])} texts a second with {workers}."
        )
    sentence = f"{best['model']}: {limit} this machine takes {in_limit(best)} requests a second with {best['variant']}"
    fp32 = next((row for row in rows if row["variant"] == BASELINE and row is not best), None)
    sentence += guarded + (f", {in_limit(fp32)} with {BASELINE}" if fp32 else "") + f" ({workers})"
    if pd.notna(best["cost_per_million"]):
        sentence += f"; a million texts cost {three_digits(best['cost_per_million'])}"
        if fp32 and pd.notna(fp32["cost_per_million"]):
            sentence += f" instead of {three_digits(fp32['cost_per_million'])}"
    return sentence + "."


def _range(low: float, high: float) -> str:
    return "" if pd.isna(low) else f" ({three_digits(low)} to {three_digits(high)})"


def _drop(drop: float) -> str:
    return "unchanged" if drop == 0 else f"{abs(drop):.4f} {'lower' if drop > 0 else 'higher'}"


def render(runs: pd.DataFrame) -> str:
    """Return the page of `runs`, from history.load.

    Raises:
        InputError: the runs are of different machines, or the extra `report` is not installed.
    """
    try:
        import jinja2
        import matplotlib as mpl
    except ImportError as error:
        raise InputError(f"a report needs matplotlib and Jinja: {pip_install('report')}") from error
    table = summarize(runs)
    variants = list(dict.fromkeys(table["variant"]))
    looks = {name: (COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]) for n, name in enumerate(variants)}
    template = resources.files("qbert.results").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
    }
    style |= {"axes.spines.right": False, "axes.edgecolor": FAINT, "text.color": INK, "axes.labelcolor": INK}
    style |= {"xtick.color": INK, "ytick.color": INK, "grid.color": FAINT, "axes.grid": True, "grid.linewidth": 0.5}
    models = []
    with mpl.rc_context(style):
        for model, cells in table.groupby("model", sort=False):
            models.append(
                {
                    "name": model,
                    "trained": bool(cells["trained"].all()),
                    "figures": _figures(str(model), cells, looks),
                    "tables": _tables(cells),
                    "notes": [*pace_changes(cells), *left_out_limits(cells), *capacity_sentences(cells)],
                    "flips": list(_flips(cells)),
                }
            )
    script = resources.files("qbert.results").joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(template).render(
        answers=answers(table),
        models=models,
        looks=looks,
        provenance=_provenance(runs, table),
        script=script,
        script_hash=digest,
        flips_shown=FLIPS_SHOWN,
        version=__version__,
        pace=PACE,
        limit=_limit(table),
        too_noisy=TOO_NOISY,
    )


def _figures(model: str, cells: pd.DataFrame, looks: Mapping[str, tuple[str, str]]) -> list[Figure]:
    """Return the drawings of one model for which there are figures."""
    timed = cells[cells["median_s"].notna()]
    drawn = []
    if not timed.empty:
        words = "; ".join(
            f"{row['variant']} at {row['max_length']} tokens {row['latency_s'] * 1e3:.3g} ms"
            for row in timed.to_dict("records")
        )
        drawn.append(
            Figure(
                _draw(lambda axes: _latency(axes, timed, looks), 3.4),
                f"{model}, latency: {words}",
                "Latency of one text by its length, steady state: fp32's, over the speedup. Bars: the middle half of "
                "the rounds; of several runs, their range.",
            )
        )
    longest = timed[timed["max_length"] == timed["max_length"].max()]
    sped = longest[longest["speedup"].notna()]
    if not sped.empty:
        at = f"at {sped['max_length'].iloc[0]} tokens"
        words = "; ".join(f"{row['variant']} {_speedup(row)}" for row in sped.to_dict("records"))
        drawn.append(
            Figure(
                _draw(lambda axes: _speedups(axes, sped, looks), 0.9 + 0.42 * len(sped)),
                f"{model}, speedup over fp32 {at}: {words}",
                f"Speedup {at} over PyTorch's fp32 with its 95 % interval; diamonds: over the best fp32.",
            )
        )
    judged = timed[timed["f1"].notna()]
    judged = judged[judged["max_length"] == judged["max_length"].max()]
    if not judged.empty:
        at = f"at {judged['max_length'].iloc[0]} tokens"
        words = "; ".join(
            f"{row['variant']} {row['latency_s'] * 1e3:.3g} ms, F1 {row['f1']:.4f}"
            + (", undominated" if row["undominated"] else "")
            for row in judged.to_dict("records")
        )
        drawn.append(
            Figure(
                _draw(lambda axes: _f1(axes, judged, looks), 3.4),
                f"{model}, F1 against latency {at}: {words}",
                f"Weighted F1 against latency {at}: further left and up is better. Ringed: no other variant is both as "
                "fast and as good. Dashed: the guard's limit. Bars: 95 % interval of the drop.",
            )
        )
    limited = longest[longest["share_of_limit"].notna()]
    if not limited.empty:
        at = f"at {limited['max_length'].iloc[0]} tokens"
        words = "; ".join(f"{row['variant']} {_of_limit(row)} %" for row in limited.to_dict("records"))
        drawn.append(
            Figure(
                _draw(lambda axes: _shares(axes, limited, looks), 0.9 + 0.32 * len(limited)),
                f"{model}, share of the core's limit {at}: {words}",
                f"Share of the core's limit {at}: {_limit(longest, 'Diamonds')}",
            )
        )
    return drawn + _capacity_figures(model, cells[cells["texts_per_s"].notna()], looks)


def _capacity_figures(model: str, served: pd.DataFrame, looks: Mapping[str, tuple[str, str]]) -> list[Figure]:
    """Return the drawings of what one model serves with every core busy."""
    served = served[~served["variant"].map(has_threads)]
    if served.empty:
        return []
    first = served.iloc[0]
    limit_ms = first["latency_limit_s"] * 1e3
    with_all = f"with {counted(int(first['workers']), 'worker')}, every core busy"
    rows = served.to_dict("records")
    drawn = [
        Figure(
            _draw(lambda axes: _texts_per_s(axes, served, looks), 0.9 + 0.32 * len(served)),
            f"{model}, texts a second: " + "; ".join(f"{row['variant']} {row['texts_per_s']:.3g}" for row in rows),
            f"Texts a second of the whole machine {with_all}; diamonds: requests a second that may arrive at random "
            f"for 99 % of them to be answered within {limit_ms:g} ms.",
        ),
        Figure(
            _draw(lambda axes: _p99(axes, served, looks), 3.4),
            f"{model}, p99 against rate: "
            + "; ".join(
                f"{row['variant']} {row['rates_p99_s'][0] * 1e3:.3g} ms at {row['rates'][0]:.3g} a second, "
                f"{row['rates_p99_s'][-1] * 1e3:.3g} ms at {row['rates'][-1]:.3g}"
                for row in rows
            ),
            f"99 % of requests that arrive at random are answered within so long, waiting included; simulated from the "
            f"times of texts {with_all}. Dashed: the limit of {limit_ms:g} ms.",
        ),
    ]
    beside = served[served["loaded_over_alone"].notna()]
    if len(beside):
        words = "; ".join(f"{row['variant']} {_loaded_over_alone(row)}" for row in beside.to_dict("records"))
        drawn.append(
            Figure(
                _draw(lambda axes: _over_alone(axes, beside, looks), 0.9 + 0.32 * len(beside)),
                f"{model}, loaded over alone: {words}",
                f"The time of a text {with_all}, over that with the other workers idle, and its 95 % interval.",
            )
        )
    return drawn


def _texts_per_s(axes: "Axes", served: pd.DataFrame, looks: Mapping[str, tuple[str, str]]) -> None:
    rows = np.arange(len(served))[::-1]
    axes.barh(rows, served["texts_per_s"], color=[looks[name][0] for name in served["variant"]])
    axes.plot(served["rate_within_limit"], rows, linestyle="", marker="D", color=INK, markerfacecolor="white")
    for y, rate in zip(rows, served["texts_per_s"], strict=True):
        axes.annotate(three_digits(rate), (rate, y), xytext=(4, 0), textcoords="offset points", va="center")
    _label_axes(axes, served, rows, "texts a second")
    axes.set_xlim(0, 1.15 * float(served["texts_per_s"].max()))


def _p99(axes: "Axes", served: pd.DataFrame, looks: Mapping[str, tuple[str, str]]) -> None:
    for row in served.to_dict("records"):
        colour, marker = looks[row["variant"]]
        axes.plot(row["rates"], np.array(row["rates_p99_s"]) * 1e3, color=colour, marker=marker, markersize=4)
    axes.axhline(served["latency_limit_s"].iloc[0] * 1e3, color=INK, linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    verdicts.ticks(axes.xaxis)
    verdicts.ticks(axes.yaxis)
    axes.set_xlabel("requests a second")
    axes.set_ylabel("p99, ms")


def _over_alone(axes: "Axes", beside: pd.DataFrame, looks: Mapping[str, tuple[str, str]]) -> None:
    rows = np.arange(len(beside))[::-1]
    names = ("loaded_over_alone", "loaded_over_alone_low", "loaded_over_alone_high")
    middle, low, high = (beside[name].to_numpy(dtype=float) for name in names)
    for y, x, error, name in zip(
        rows, middle, np.stack([middle - low, high - middle], 1), beside["variant"], strict=True
    ):
        colour, marker = looks[name]
        axes.errorbar(x, y, xerr=error[:, None], color=colour, marker=marker, capsize=2)
    axes.axvline(1, color=INK, linestyle="--", linewidth=1)
    _label_axes(axes, beside, rows, "times as long as alone")


def _draw(draw: "Callable[[Axes], None]", height_in: float) -> str:
    """Return the SVG element that `draw` draws, in the page's colours."""
    from matplotlib import figure

    canvas = figure.Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    draw(canvas.subplots())
    file = io.StringIO()
    canvas.savefig(
        file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    svg = shown(file.getvalue())
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(FAINT, "var(--line)")
    svg = re.sub(r'<g id="[a-zA-Z_]+\d*_?\d*"', "<g", svg)  # ids that all drawings share
    unique = hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{unique}", svg)
    return re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"( (?:width|height)="[^"]*")?', r"\1", svg, count=1)


def _latency(axes: "Axes", cells: pd.DataFrame, looks: Mapping[str, tuple[str, str]]) -> None:
    for variant, group in cells.groupby("variant", sort=False):
        colour, marker = looks[str(variant)]
        middle, median, low, high = (
            group[name].to_numpy(dtype=float) * 1e3 for name in ("latency_s", "median_s", "low_s", "high_s")
        )
        low, high = (end * middle / median for end in (low, high))
        error = np.clip(np.nan_to_num([middle - low, high - middle]), 0, None)
        axes.errorbar(group["max_length"], middle, yerr=error, color=colour, marker=marker, markersize=5, capsize=2)
    axes.set_yscale("log")
    verdicts.ticks(axes.yaxis)
    axes.set_xticks(sorted(cells["max_length"].unique()))
    axes.set_xlabel("tokens")
    axes.set_ylabel("ms")


def _speedups(axes: "Axes", cells: pd.DataFrame, looks: Mapping[str, tuple[str, str]]) -> None:
    rows = np.arange(len(cells))[::-1]
    middle, low, high = (cells[name].to_numpy(dtype=float) for name in ("speedup", "speedup_low", "speedup_high"))
    error = np.clip(np.nan_to_num([middle - low, high - middle]), 0, None)
    axes.barh(rows, middle, xerr=error, color=[looks[name][0] for name in cells["variant"]], ecolor=INK, capsize=2)
    axes.plot(cells["over_best"], rows, **DIAMOND)
    for cell, y, x in zip(cells.to_dict("records"), rows, np.fmax(high, middle), strict=True):
        axes.annotate(
            f"{cell['speedup']:.2f}" + (" too noisy" if is_too_noisy(cell) else ""),
            (x, y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    _label_axes(axes, cells, rows, "times fp32's speed")
    axes.set_xlim(0, 1.12 * float(np.nanmax(np.fmax(high, middle))))


def _shares(axes: "Axes", cells: pd.DataFrame, looks: Mapping[str, tuple[str, str]]) -> None:
    rows = np.arange(len(cells))[::-1]
    axes.barh(rows, cells["share_of_limit"] * 100, color=[looks[name][0] for name in cells["variant"]])
    for y, share in zip(rows, cells["share_of_limit"] * 100, strict=True):
        axes.annotate(f"{share:.0f}", (share, y), xytext=(4, 0), textcoords="offset points", va="center")
    axes.plot(cells["share_of_best_limit"] * 100, rows, **DIAMOND)
    _label_axes(axes, cells, rows, "% of this core's limit")
    axes.set_xlim(0, max(105, 1.12 * float(cells["share_of_limit"].max()) * 100))


def _label_axes(axes: "Axes", cells: pd.DataFrame, rows: "np.ndarray[Any, Any]", label: str) -> None:
    axes.set_yticks(rows, [_shortened(name) for name in cells["variant"]], parse_math=False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(label)


def _f1(axes: "Axes", cells: pd.DataFrame, looks: Mapping[str, tuple[str, str]]) -> None:
    for row in cells.to_dict("records"):
        colour, marker = looks[row["variant"]]
        latency = row["latency_s"] * 1e3
        ends = np.array([[row["f1_drop_high"] - row["f1_drop"]], [row["f1_drop"] - row["f1_drop_low"]]], dtype=float)
        if row["variant"] != BASELINE:
            axes.errorbar(
                latency, row["f1"], yerr=np.clip(np.nan_to_num(ends), 0, None), color=colour, alpha=0.5, capsize=2
            )
        axes.plot(latency, row["f1"], marker=marker, color=colour, linestyle="")
        if row["undominated"]:
            axes.plot(latency, row["f1"], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=INK)
            axes.annotate(
                _shortened(row["variant"]), (latency, row["f1"]), xytext=(0, 10), textcoords="offset points",
                ha="center", fontsize=8, parse_math=False,
            )  # fmt: skip
    first = cells.iloc[0]
    axes.axhline(first["f1_baseline"] - cells["max_f1_drop"].min(), color=INK, linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.15)
    verdicts.ticks(axes.xaxis)
    axes.set_xlabel("ms")
    axes.set_ylabel("weighted F1")


def _shortened(name: str, max_length: int = 24) -> str:
    return name if len(name) <= max_length else name[: max_length - 1] + "…"


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


def markdown(runs: pd.DataFrame) -> str:
    """Return the answers and tables of `runs`, from history.load, as Markdown for a README."""
    table = summarize(runs)
    parts = [f"- {markdown_text(answer)}" for answer in answers(table)]
    for model, cells in table.groupby("model", sort=False):
        parts += ["", f"### {markdown_text(str(model))}"]
        for headings, rows in _tables(cells):
            parts += ["", markdown_table(headings, [[text for text, _ in row] for row in rows])]
        notes = [*pace_changes(cells), *left_out_limits(cells), *capacity_sentences(cells)]
        parts += [line for sentence in notes for line in ("", markdown_text(sentence))]
    parts += ["", PACE, *(["", f"Of limit: {limit}"] if (limit := _limit(table)) else [])]
    return "\n".join(parts) + "\n"


def csv(runs: pd.DataFrame) -> str:
    """Return the figures of `runs`, from history.load, as CSV with a row per cell, in seconds and bytes."""
    table = summarize(runs)
    table["worker_shares"] = [
        " ".join(f"{share:.3f}" for share in shares) if isinstance(shares, list) else ""
        for shares in table["worker_shares"]
    ]
    table["tokens_p50"] = [tokens["p50"] if isinstance(tokens, dict) else None for tokens in table["traffic_tokens"]]
    left_out = ["identity", "flipped", "process_speedups", "rates", "rates_p99_s", "scaling", "traffic_tokens"]
    return spreadsheet(table.drop(columns=[*left_out, "capacity_notes"]))


def _tables(cells: pd.DataFrame) -> list[tuple[Sequence[str], list[list[Entry]]]]:
    """Return the tables of one model that are not empty, as headings and rows: latency and F1; footprint; capacity."""
    records = cells.to_dict("records")
    main = [_main_row(row) for row in records if pd.notna(row["latency_s"]) or pd.notna(row["f1"])]
    footprint = [_footprint_row(row) for row in records if pd.notna(row["disk_bytes"])]
    capacity = [_capacity_row(row) for row in records if pd.notna(row["texts_per_s"])]
    columns: tuple[str, ...] = CAPACITY_COLUMNS
    if capacity and cells["cost_per_million"].isna().all():  # nobody has named a price
        columns, capacity = columns[:-1], [row[:-1] for row in capacity]
    return [table for table in ((COLUMNS, main), (FOOTPRINT_COLUMNS, footprint), (columns, capacity)) if table[1]]


def _entry(value: Any, text: str) -> Entry:  # noqa: ANN401
    return ("", "") if pd.isna(value) else (text, float(value))


def _between(low: float, high: float, form: str) -> str:
    return "" if pd.isna(low) else f" ({format(low, form)} to {format(high, form)})"


def _speedup(row: Mapping[Any, Any]) -> str:
    interval = " (too noisy)" if is_too_noisy(row) else _between(row["speedup_low"], row["speedup_high"], ".2f")
    return f"{row['speedup']:.2f}{interval}"


def _over_best(row: Mapping[Any, Any]) -> str:
    low, high = row["over_best_low"], row["over_best_high"]
    return f"{row['over_best']:.2f}" + (" (too noisy)" if too_wide(low, high) else _between(low, high, ".2f"))


def _of_limit(row: Mapping[Any, Any]) -> str:
    """Return the shares of the limit in percent."""
    share, *best = of_limit(row).split()
    return share + "".join(f" ({one})" for one in best)


def _limit(table: pd.DataFrame, best: str = "In brackets") -> str:
    """Return what the shares of the limit in `table` are of; `best` is how those of the second kind are shown."""
    if table["limit_definition"].isna().all():
        return ""
    sentence = LIMITS[int(table["limit_definition"].max())]
    return f"{sentence} {best}: {BEST_LIMIT}." if table["share_of_best_limit"].notna().any() else sentence


def _main_row(row: Mapping[Any, Any]) -> list[Entry]:
    compared = pd.notna(row["f1"]) and row["variant"] != BASELINE
    over = compared and row["f1_drop"] > row["max_f1_drop"]
    choice = "over the limit" if over else "undominated" if row["undominated"] else ""
    choice = ", ".join(filter(None, [choice, "int8 stated, not shown" if row["stated"] else ""]))
    drop = _entry(row["f1_drop"], f"{row['f1_drop']:+.4f}" + _between(row["f1_drop_low"], row["f1_drop_high"], "+.4f"))
    return [
        (str(row["max_length"]), float(row["max_length"])),
        (row["variant"], row["variant"]),
        _entry(row["latency_s"], f"{row['latency_s'] * 1e3:.4g}"),
        _entry(row["speedup"], _speedup(row)),
        _entry(row["over_best"], _over_best(row)),
        ("", "") if pd.isna(row["share_of_limit"]) else (_of_limit(row), float(row["share_of_limit"])),
        _entry(row["f1"], f"{row['f1']:.4f}"),
        drop if compared else ("", ""),
        _entry(row["flips"], f"{row['flips']:.0f}") if compared else ("", ""),
        (choice, choice),
    ]


def _footprint_row(row: Mapping[Any, Any]) -> list[Entry]:
    return [
        (str(row["max_length"]), float(row["max_length"])),
        (row["variant"], row["variant"]),
        _entry(row["disk_bytes"], f"{row['disk_bytes'] / 1e6:.4g}"),
        _entry(row["load_s"], f"{row['load_s']:.2f}"),
        _entry(row["first_call_s"], f"{row['first_call_s'] * 1e3:.4g}"),
        _entry(row["after_pause_s"], f"{row['after_pause_s'] * 1e3:.4g}"),
        _entry(row["peak_rss_bytes"], f"{row['peak_rss_bytes'] / 1e6:.0f}"),
    ]


def _loaded_over_alone(row: Mapping[Any, Any]) -> str:
    low, high = row["loaded_over_alone_low"], row["loaded_over_alone_high"]
    return f"{row['loaded_over_alone']:.2f}" + (" (too noisy)" if too_wide(low, high) else _between(low, high, ".2f"))


def _capacity_row(row: Mapping[Any, Any]) -> list[Entry]:
    milliseconds = [
        _entry(row[f"loaded_{name}_s"], f"{row[f'loaded_{name}_s'] * 1e3:.4g}")
        for name in ("p50", "p95", "p99", "worst")
    ]
    return [
        (str(row["max_length"]), float(row["max_length"])),
        (row["variant"], row["variant"]),
        _entry(row["texts_per_s"], three_digits(row["texts_per_s"])),
        _entry(row["rate_within_limit"], in_limit(row)),
        *milliseconds,
        _entry(row["loaded_over_alone"], _loaded_over_alone(row)),
        _entry(min(row["worker_shares"]), f"{min(row['worker_shares']):.0%}"),
        _entry(row["pss_bytes"], f"{row['pss_bytes'] / 1e6:.0f}"),
        _entry(
            row["cost_per_million"], "" if pd.isna(row["cost_per_million"]) else three_digits(row["cost_per_million"])
        ),
    ]


def capacity_sentences(cells: pd.DataFrame) -> list[str]:
    """Return what one model's figures of capacity are of, as one paragraph; none without such figures."""
    served = cells[cells["texts_per_s"].notna()]
    if served.empty:
        return []
    return [" ".join([f"Every core busy: {served_texts(served.iloc[0].to_dict())}.", *capacity_notes(served)])]


def _flips(cells: pd.DataFrame) -> "Sequence[Mapping[str, Any]]":
    """Return each document that a variant labels differently from fp32, with the length and the variant."""
    return [
        {"max_length": row["max_length"], "by": row["variant"]} | flip
        for row in cells.to_dict("records")
        for flip in (row["flipped"] if isinstance(row["flipped"], list) else [])
    ]


def _provenance(runs: pd.DataFrame, table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return what was measured, and on which machine, as pairs of name and text."""
    newest = runs.sort_values(["when", "file"], kind="stable").iloc[-1]
    identity = newest["identity"]
    files = list(dict.fromkeys(runs["file"]))
    days = sorted({f"{when:%Y-%m-%d %H:%M}" for when in runs["when"].dropna()})
    checkpoints = {
        f"{row['model']}, {row['max_length']} tokens": str(row["identity"].get("checkpoint_sha256"))[:12]
        for row in table.to_dict("records")
    }
    versions: dict[str, str] = {}
    for measured in runs["identity"]:
        versions |= measured.get("versions", {})
    documents = table["documents"].max()
    visible = table["visible_drop"].max()
    judged = f", {documents:.0f} test documents, one at a time"
    judged += "" if math.isnan(visible) else f"; a true drop of {visible:.3f} shows with a chance of 80 %"
    return [
        ("runs", f"{len(files)}, {days[0] if days else 'no date'}" + (f" to {days[-1]}" if len(days) > 1 else "")),
        ("commit", ", ".join(dict.fromkeys(runs["commit"]))[:200]),
        ("processor", str(identity.get("processor"))),
        ("instruction sets", " ".join(identity.get("instruction_sets", []))),
        ("threads, batch size", f"{identity.get('threads')}, 1"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in versions.items())),
        (
            "dataset",
            f"{identity.get('dataset')} ({str(identity.get('dataset_sha256'))[:12]})"
            + ("" if pd.isna(documents) else judged),
        ),
        ("checkpoints", "; ".join(f"{name}: {digest}" for name, digest in checkpoints.items())),
    ]
