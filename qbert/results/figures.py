"""The drawings of the report and of a history."""

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qbert.results.changes import SERIES
from qbert.results.columns import in_brackets, is_too_noisy, limit_of, metric_of, standing, with_interval
from qbert.results.run_tables import has_threads
from qbert.results.tables import Row, in_order, three_digits
from qbert.system.cache import write_file
from qbert.system.errors import InputError, pip_install, reason
from qbert.system.terminal import counted, shown
from qbert.variants import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

INK, FAINT = "#010203", "#a1b2c3"  # placeholders in a drawing for the page's own colours, which are light or dark
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#c98a00", "#3f9bd1", "#8c6bb1", "#8a8a1f", "#aa4466", "#5b7f1e")
MARKERS = "osD^vP*X<>"
DIAMOND: Mapping[str, Any] = {"ls": "", "marker": "D", "color": INK, "markersize": 5, "markerfacecolor": "white"}
WIDTH_IN = 5.4  # as wide as a column of the page; on a phone it shrinks by a third and stays readable
Looks = Mapping[str, tuple[str, str]]
"""The colour and the marker of each variant."""
Drawing = Callable[["Axes", pd.DataFrame, Looks], None]
Words = Callable[[Row], str]
Floats = npt.NDArray[np.float64]


def style() -> dict[Any, Any]:
    """Return matplotlib's settings for the drawings."""
    lines = {"axes.edgecolor": FAINT, "grid.color": FAINT, "axes.grid": True, "grid.linewidth": 0.5}
    inked = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    text = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    return {"axes.spines.top": False, "axes.spines.right": False} | lines | inked | text


@dataclass(frozen=True)
class Figure:
    """A drawing, and its content in words."""

    svg: str
    alternative: str
    caption: str


def of_one_machine(model: str, cells: pd.DataFrame, looks: Looks) -> list[Figure]:
    """Return the drawings of one model for which there are figures."""
    drawn: list[Figure] = []

    def add(drawing: Drawing, own: pd.DataFrame, inches: float, title: str, words: Words, caption: str) -> None:
        alternative = "; ".join(f"{row['variant']} {words(row)}" for row in own.to_dict("records"))
        svg = draw(lambda axes: drawing(axes, own, looks), inches)
        drawn.append(Figure(svg, f"{model}, {title}: {alternative}", caption))

    timed = cells[cells["median_s"].notna()]
    if not timed.empty:
        add(
            *(_latency, timed, 3.4, "latency"),
            lambda row: f"at {row['max_length']} tokens {row['latency_s'] * 1e3:.3g} ms",
            "Latency of one text by its length, steady state: fp32's, over the speedup. Bars: the middle half of "
            "the rounds; of several runs, their range.",
        )
    longest = _longest(timed)
    at = f"at {timed['max_length'].max()} tokens"
    if len(sped := longest[longest["speedup"].notna()]):
        add(
            *(_speedups, sped, 0.9 + 0.42 * len(sped), f"speedup over fp32 {at}"),
            lambda row: with_interval(".2f")(row, "speedup"),
            f"Speedup {at} over PyTorch's fp32 with its 95 % interval; diamonds: over the best fp32.",
        )
    if len(judged := _longest(timed[timed["score"].notna()])):
        metric = metric_of(judged)
        judged_at = f"at {judged['max_length'].iloc[0]} tokens"
        surely = judged["guard"].iloc[0] == "interval"
        against = f"a one-sided bound of {metric.short} that no bar shows" if surely else f"{metric.short} itself"
        add(
            *(_scores, judged, 3.4, f"{metric.short} against latency {judged_at}"),
            lambda row: ", ".join(
                filter(
                    None,
                    (f"{row['latency_s'] * 1e3:.3g} ms", f"{metric.short} {row['score']:.4f}", standing(row)),
                )
            ),
            f"{metric.title[0].upper()}{metric.title[1:]} against latency {judged_at}: further left and up is better. "
            "Ringed: no other variant is both "
            f"as fast and as good. Dashed: the guard's limit, held against {against}. Bars: 95 % interval of the drop.",
        )
    if len(limited := longest[longest["share_of_limit"].notna()]):
        add(
            *(_shares, limited, 0.9 + 0.32 * len(limited), f"share of the core's limit {at}"),
            lambda row: f"{in_brackets(row)} %",
            f"Share of the core's limit {at}: {limit_of(longest, 'Diamonds')}",
        )
    served = cells[cells["texts_per_s"].notna()]
    served = served[~served["variant"].map(has_threads).astype(bool)]
    if served.empty:
        return drawn
    limit_ms = served["latency_limit_s"].iloc[0] * 1e3
    with_all = f"with {counted(int(served['workers'].iloc[0]), 'worker')}, every core busy"
    add(
        *(_texts_per_s, served, 0.9 + 0.32 * len(served), "texts a second"),
        lambda row: f"{row['texts_per_s']:.3g}",
        f"Texts a second of the whole machine {with_all}; diamonds: requests a second that may arrive at random for "
        f"99 % of them to be answered within {limit_ms:g} ms.",
    )
    add(
        *(_p99, served, 3.4, "p99 against rate"),
        lambda row: (
            f"{row['rates_p99_s'][0] * 1e3:.3g} ms at {row['rates'][0]:.3g} a second, "
            f"{row['rates_p99_s'][-1] * 1e3:.3g} ms at {row['rates'][-1]:.3g}"
        ),
        f"99 % of requests that arrive at random are answered within so long, waiting included; simulated from the "
        f"times of texts {with_all}. Dashed: the limit of {limit_ms:g} ms.",
    )
    if len(beside := served[served["loaded_over_alone"].notna()]):
        add(
            *(_over_alone, beside, 0.9 + 0.32 * len(beside), "loaded over alone"),
            lambda row: with_interval(".2f")(row, "loaded_over_alone"),
            f"The time of a text {with_all}, over that with the other workers idle, and its 95 % interval.",
        )
    return drawn


def _longest(cells: pd.DataFrame) -> pd.DataFrame:
    longest: pd.DataFrame = cells[cells["max_length"] == cells["max_length"].max()]
    return longest


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


def ticks(axis: "Axis") -> None:
    """Label a logarithmic `axis`, after its data is drawn, with as many numbers as are readable."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 6 * low else MaxNLocator(5))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _numbers(cells: pd.DataFrame, *names: str) -> list[Floats]:
    return [cells[name].to_numpy(dtype=float) for name in names]


def _error(middle: Floats, low: Floats, high: Floats) -> Floats:
    error: Floats = np.clip(np.nan_to_num([middle - low, high - middle]), 0, None)
    return error


def _note(axes: "Axes", text: str, x: float, y: float, **more: Any) -> None:  # noqa: ANN401  matplotlib's
    axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", **more)


def _name_bars(axes: "Axes", names: Sequence[str], rows: "Floats | npt.NDArray[np.int64]", label: str) -> None:
    """Name the bars at `rows`, and the other axis `label`."""
    axes.set_yticks(rows, [_shortened(name) for name in names], parse_math=False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(label)


def _bars(axes: "Axes", cells: pd.DataFrame, looks: Looks, label: str, **options: Any) -> None:  # noqa: ANN401
    """Draw a bar for each of `cells`.

    Options: its `length`; where `diamonds` and the `notes` beside it are; the `notes`; its `error`; the `limit` of the
    axis.
    """
    rows = np.arange(len(cells))[::-1]
    error = {"xerr": options["error"], "ecolor": INK, "capsize": 2} if "error" in options else {}
    axes.barh(rows, options["length"], color=[looks[name][0] for name in cells["variant"]], **error)
    axes.plot(options["diamonds"], rows, **DIAMOND)
    for text, x, y in zip(options["notes"], options.get("notes_at", options["length"]), rows, strict=True):
        _note(axes, text, x, y)
    _name_bars(axes, list(cells["variant"]), rows, label)
    axes.set_xlim(0, float(options["limit"]))


def _texts_per_s(axes: "Axes", served: pd.DataFrame, looks: Looks) -> None:
    length, diamonds = _numbers(served, "texts_per_s", "rate_within_limit")
    options = {"length": length, "diamonds": diamonds, "notes": map(three_digits, length), "limit": 1.15 * length.max()}
    _bars(axes, served, looks, "texts a second", **options)


def _speedups(axes: "Axes", cells: pd.DataFrame, looks: Looks) -> None:
    middle, low, high, best = _numbers(cells, "speedup", "speedup_low", "speedup_high", "over_best")
    rows = cells.to_dict("records")
    notes = [f"{row['speedup']:.2f}" + (" too noisy" if is_too_noisy(row) else "") for row in rows]
    ends = np.fmax(high, middle)
    options = {"length": middle, "diamonds": best, "notes": notes, "notes_at": ends, "limit": 1.12 * np.nanmax(ends)}
    _bars(axes, cells, looks, "times fp32's speed", error=_error(middle, low, high), **options)


def _shares(axes: "Axes", cells: pd.DataFrame, looks: Looks) -> None:
    length, diamonds = (100 * share for share in _numbers(cells, "share_of_limit", "share_of_best_limit"))
    notes, limit = [f"{share:.0f}" for share in length], max(105, 1.12 * length.max())
    _bars(axes, cells, looks, "% of this core's limit", length=length, diamonds=diamonds, notes=notes, limit=limit)


def machine_bars(by_machine: Sequence[Mapping[str, float]], variants: Sequence[str], label: str, axes: "Axes") -> None:
    """Draw a bar for each machine's figure of each of `variants`."""
    rows = np.arange(len(variants))[::-1].astype(float)
    height = 0.8 / len(by_machine)
    for number, own in enumerate(by_machine):
        values = np.array([own.get(name, np.nan) for name in variants])
        places = rows + 0.4 - height * (number + 0.5)
        axes.barh(places, values, height=height, color=COLOURS[number % len(COLOURS)])
        for y, x in zip(places, values, strict=True):
            if not np.isnan(x):
                _note(axes, three_digits(x), x, y, fontsize=8)
    _name_bars(axes, variants, rows, label)
    axes.set_xlim(0, 1.15 * max(value for own in by_machine for value in own.values()))


def _over_alone(axes: "Axes", beside: pd.DataFrame, looks: Looks) -> None:
    rows = np.arange(len(beside))[::-1]
    names = ("loaded_over_alone", "loaded_over_alone_low", "loaded_over_alone_high")
    middle, low, high = _numbers(beside, *names)
    errors = np.stack([middle - low, high - middle], 1)
    for y, x, error, name in zip(rows, middle, errors, beside["variant"], strict=True):
        colour, marker = looks[name]
        axes.errorbar(x, y, xerr=error[:, None], color=colour, marker=marker, capsize=2)
    axes.axvline(1, color=INK, linestyle="--", linewidth=1)
    _name_bars(axes, list(beside["variant"]), rows, "times as long as alone")


def _p99(axes: "Axes", served: pd.DataFrame, looks: Looks) -> None:
    for row in served.to_dict("records"):
        colour, marker = looks[row["variant"]]
        axes.plot(row["rates"], np.array(row["rates_p99_s"]) * 1e3, color=colour, marker=marker, markersize=4)
    axes.axhline(served["latency_limit_s"].iloc[0] * 1e3, color=INK, linestyle="--", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="requests a second", ylabel="p99, ms")
    ticks(axes.xaxis)
    ticks(axes.yaxis)


def _latency(axes: "Axes", cells: pd.DataFrame, looks: Looks) -> None:
    for variant, group in cells.groupby("variant", sort=False):
        colour, marker = looks[str(variant)]
        middle, median, low, high = (1e3 * one for one in _numbers(group, "latency_s", "median_s", "low_s", "high_s"))
        error = _error(middle, low * middle / median, high * middle / median)
        axes.errorbar(group["max_length"], middle, yerr=error, color=colour, marker=marker, markersize=5, capsize=2)
    axes.set(yscale="log", xlabel="tokens", ylabel="ms")
    ticks(axes.yaxis)
    axes.set_xticks(sorted(cells["max_length"].unique()))


def _scores(axes: "Axes", cells: pd.DataFrame, looks: Looks) -> None:
    for row in cells.to_dict("records"):
        colour, marker = looks[row["variant"]]
        latency = row["latency_s"] * 1e3
        if row["variant"] != BASELINE:
            drop, low, high = (np.array([row[f"drop{end}"]], dtype=float) for end in ("", "_low", "_high"))
            axes.errorbar(latency, row["score"], yerr=_error(-drop, -high, -low), color=colour, alpha=0.5, capsize=2)
        axes.plot(latency, row["score"], marker=marker, color=colour, linestyle="")
        if row["undominated"]:
            axes.plot(latency, row["score"], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=INK)
            axes.annotate(
                _shortened(row["variant"]), (latency, row["score"]), xytext=(0, 10), textcoords="offset points",
                ha="center", fontsize=8, parse_math=False,
            )  # fmt: skip
    limit = cells["score_baseline"].iloc[0] - cells["max_drop"].min()
    axes.axhline(limit, color=INK, linestyle="--", linewidth=1)
    axes.set(xscale="log", xlabel="ms", ylabel=metric_of(cells).title)
    axes.margins(x=0.15, y=0.15)
    ticks(axes.xaxis)


def _shortened(name: str, max_length: int = 24) -> str:
    return name if len(name) <= max_length else name[: max_length - 1] + "…"


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
    series = {tuple(row[name] for name in SERIES): row["changes"] for row in rows}
    panels = list(in_order(timed).groupby(["machine", "dataset", "model", "max_length"], sort=False))
    drawn = figure.Figure(figsize=(9, 2.8 * len(panels)), layout="constrained")
    for axes, ((machine, dataset, model, max_length), group) in zip(
        drawn.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True
    ):
        order = {file: number for number, file in enumerate(group["file"].unique())}
        for variant, cell in group.groupby("variant", sort=False):
            positions = [order[file] for file in cell["file"]]
            (line,) = axes.plot(positions, cell["median_s"] * 1e3, marker=".", label=shown(str(variant)))
            for change in series[machine, dataset, model, max_length, variant]:
                position, level = positions[change["run"]], cell["median_s"].iloc[change["run"]] * 1e3
                axes.axvline(position - 0.5, color=line.get_color(), linestyle=":")
                axes.annotate(
                    *(f"{change['change']:+.0%} {shown(change['commits'])}", (position, level)),
                    xytext=(0, 6),
                    textcoords="offset points",
                    parse_math=False,
                    fontsize=7,
                    color=line.get_color(),
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
