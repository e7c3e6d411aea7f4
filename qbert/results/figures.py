"""The drawings of the report."""

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qbert.results import verdicts
from qbert.results.columns import limit_of, loaded_over_alone, shares, speedup, standing
from qbert.results.tables import has_threads, is_too_noisy, three_digits
from qbert.system.terminal import counted, shown
from qbert.variants import BASELINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

INK, FAINT = "#010203", "#a1b2c3"  # placeholders in a drawing for the page's own colours, which are light or dark
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#c98a00", "#3f9bd1", "#8c6bb1", "#8a8a1f", "#aa4466", "#5b7f1e")
MARKERS = "osD^vP*X<>"
DIAMOND: Mapping[str, Any] = {"ls": "", "marker": "D", "color": INK, "markersize": 5, "markerfacecolor": "white"}
WIDTH_IN = 5.4  # as wide as a column of the page; on a phone it shrinks by a third and stays readable


def style() -> dict[Any, Any]:
    """Return matplotlib's settings for the drawings."""
    chosen: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
    }
    chosen |= {"axes.spines.right": False, "axes.edgecolor": FAINT, "text.color": INK, "axes.labelcolor": INK}
    chosen |= {"xtick.color": INK, "ytick.color": INK, "grid.color": FAINT, "axes.grid": True, "grid.linewidth": 0.5}
    return chosen


@dataclass(frozen=True)
class Figure:
    """A drawing, and its content in words."""

    svg: str
    alternative: str
    caption: str


def of_model(model: str, cells: pd.DataFrame, looks: Mapping[str, tuple[str, str]]) -> list[Figure]:
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
                draw(lambda axes: _latency(axes, timed, looks), 3.4),
                f"{model}, latency: {words}",
                "Latency of one text by its length, steady state: fp32's, over the speedup. Bars: the middle half of "
                "the rounds; of several runs, their range.",
            )
        )
    longest = timed[timed["max_length"] == timed["max_length"].max()]
    sped = longest[longest["speedup"].notna()]
    if not sped.empty:
        at = f"at {sped['max_length'].iloc[0]} tokens"
        words = "; ".join(f"{row['variant']} {speedup(row)}" for row in sped.to_dict("records"))
        drawn.append(
            Figure(
                draw(lambda axes: _speedups(axes, sped, looks), 0.9 + 0.42 * len(sped)),
                f"{model}, speedup over fp32 {at}: {words}",
                f"Speedup {at} over PyTorch's fp32 with its 95 % interval; diamonds: over the best fp32.",
            )
        )
    judged = timed[timed["f1"].notna()]
    judged = judged[judged["max_length"] == judged["max_length"].max()]
    if not judged.empty:
        at = f"at {judged['max_length'].iloc[0]} tokens"
        words = "; ".join(
            ", ".join(
                filter(
                    None, [f"{row['variant']} {row['latency_s'] * 1e3:.3g} ms", f"F1 {row['f1']:.4f}", standing(row)]
                )
            )
            for row in judged.to_dict("records")
        )
        by = "the bar's lower end" if judged["f1_guard"].iloc[0] == "interval" else "F1 itself"
        drawn.append(
            Figure(
                draw(lambda axes: _f1(axes, judged, looks), 3.4),
                f"{model}, F1 against latency {at}: {words}",
                f"Weighted F1 against latency {at}: further left and up is better. Ringed: no other variant is both as "
                f"fast and as good. Dashed: the guard's limit, of {by}. Bars: 95 % interval of the drop.",
            )
        )
    limited = longest[longest["share_of_limit"].notna()]
    if not limited.empty:
        at = f"at {limited['max_length'].iloc[0]} tokens"
        words = "; ".join(f"{row['variant']} {shares(row)} %" for row in limited.to_dict("records"))
        drawn.append(
            Figure(
                draw(lambda axes: _shares(axes, limited, looks), 0.9 + 0.32 * len(limited)),
                f"{model}, share of the core's limit {at}: {words}",
                f"Share of the core's limit {at}: {limit_of(longest, 'Diamonds')}",
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
            draw(lambda axes: _texts_per_s(axes, served, looks), 0.9 + 0.32 * len(served)),
            f"{model}, texts a second: " + "; ".join(f"{row['variant']} {row['texts_per_s']:.3g}" for row in rows),
            f"Texts a second of the whole machine {with_all}; diamonds: requests a second that may arrive at random "
            f"for 99 % of them to be answered within {limit_ms:g} ms.",
        ),
        Figure(
            draw(lambda axes: _p99(axes, served, looks), 3.4),
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
        words = "; ".join(f"{row['variant']} {loaded_over_alone(row)}" for row in beside.to_dict("records"))
        drawn.append(
            Figure(
                draw(lambda axes: _over_alone(axes, beside, looks), 0.9 + 0.32 * len(beside)),
                f"{model}, loaded over alone: {words}",
                f"The time of a text {with_all}, over that with the other workers idle, and its 95 % interval.",
            )
        )
    return drawn


def _texts_per_s(axes: "Axes", served: pd.DataFrame, looks: Mapping[str, tuple[str, str]]) -> None:
    rows = np.arange(len(served))[::-1]
    axes.barh(rows, served["texts_per_s"], color=[looks[name][0] for name in served["variant"]])
    axes.plot(served["rate_within_limit"], rows, **DIAMOND)
    for y, rate in zip(rows, served["texts_per_s"], strict=True):
        axes.annotate(three_digits(rate), (rate, y), xytext=(4, 0), textcoords="offset points", va="center")
    label_axes(axes, served, rows, "texts a second")
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
    label_axes(axes, beside, rows, "times as long as alone")


def draw(drawing: "Callable[[Axes], None]", height_in: float) -> str:
    """Return the SVG element that `drawing` draws, in the page's colours."""
    from matplotlib import figure

    canvas = figure.Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    drawing(canvas.subplots())
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
    label_axes(axes, cells, rows, "times fp32's speed")
    axes.set_xlim(0, 1.12 * float(np.nanmax(np.fmax(high, middle))))


def _shares(axes: "Axes", cells: pd.DataFrame, looks: Mapping[str, tuple[str, str]]) -> None:
    rows = np.arange(len(cells))[::-1]
    axes.barh(rows, cells["share_of_limit"] * 100, color=[looks[name][0] for name in cells["variant"]])
    for y, share in zip(rows, cells["share_of_limit"] * 100, strict=True):
        axes.annotate(f"{share:.0f}", (share, y), xytext=(4, 0), textcoords="offset points", va="center")
    axes.plot(cells["share_of_best_limit"] * 100, rows, **DIAMOND)
    label_axes(axes, cells, rows, "% of this core's limit")
    axes.set_xlim(0, max(105, 1.12 * float(cells["share_of_limit"].max()) * 100))


def label_axes(axes: "Axes", cells: pd.DataFrame, rows: "np.ndarray[Any, Any]", label: str) -> None:
    """Name the bars at `rows` by the variants of `cells`, and the other axis `label`."""
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
