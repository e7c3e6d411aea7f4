"""The commands for saved runs: compare, history and report."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from qbert.cli import options
from qbert.inputs import settings
from qbert.results.compare import MACHINE, SUBJECT
from qbert.system.errors import InputError
from qbert.system.terminal import echo

MACHINES = "machines"
"""What --across calls all that says on which machine a run was made."""


class Price(click.ParamType):  # type: ignore[type-arg]
    """What an hour of a machine costs, given as `NAME=0.17`."""

    name = "price"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:  # noqa: ANN401
        """Return the machine and the price that `value` names."""
        name, _, price = value.rpartition("=")
        try:
            number = float(price)
        except ValueError:
            number = 0.0
        if not name or not 0 < number < float("inf"):
            self.fail(f"{value!r} is no machine's name and a price above 0, such as m7i.large=0.17", param, ctx)
        return name, number


class BaseAndHead(click.Command):
    """A command whose files are given as BASE... -- HEAD..., with options anywhere."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Pass `--` to the command as a file named `::`."""
        return super().parse_args(ctx, ["::" if argument == "--" else argument for argument in args])


@click.command(cls=BaseAndHead)
@click.argument("files", nargs=-1, type=click.Path(), metavar="BASE... -- HEAD...")
@click.option(
    "--history",
    "storage",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Saved runs that show the noise between sessions.  [default: .benchmarks]",
)
@click.option(
    "--across",
    multiple=True,
    type=click.Choice([MACHINES, *SUBJECT]),
    help=f"Compare although this differs; repeatable. '{MACHINES}': {', '.join(MACHINE)}.",
)
@click.option(
    "--max-machine-flips",
    type=click.IntRange(min=0),
    metavar="N",
    help="With --across machines: fail where more documents of a cell are labelled differently.",
)
@options.min_effect_option
@options.min_drop_option
@options.json_option
@click.option("--csv", "csv_file", type=options.OUTPUT, metavar="FILE", help="Write the rows to FILE.")
@options.markdown_option
def compare(
    files: tuple[str, ...],
    storage: Path | None,
    across: tuple[str, ...],
    max_machine_flips: int | None,
    min_effect: float,
    min_drop: float,
    json_file: Path | None,
    csv_file: Path | None,
    markdown: Path | None,
) -> None:
    """Compare saved runs with each other: latency with its interval, score, flips, size.

    The sessions of a side are its sample: runs of one boot, less than 6 hours apart, count as one. Two files need no
    `--` between them. Between machines, answers are compared and no verdict is given on latency. The exit code is 1
    where more than --max-machine-flips labels of a cell differ, or cannot be compared.
    """
    import pandas as pd

    from qbert.results import changes, tables, verdicts
    from qbert.results import compare as comparing
    from qbert.results import history as saved

    if max_machine_flips is not None and MACHINES not in across:
        raise InputError(f"--max-machine-flips compares machines: give --across {MACHINES} too")
    names = _sides(files)
    base, head = (saved.load(part) for part in names)
    spreads: dict[tuple[Any, ...], tuple[float, int]] = {}
    if storage or saved.STORAGE.is_dir():
        try:
            table, left_out = saved.stored(storage or saved.STORAGE)
            for sentence in left_out:
                echo(f"left out: {sentence}", err=True)
            spreads = changes.spreads(table, pd.concat([base, head]))
        except InputError:
            if storage:
                raise
    rows = comparing.runs(
        base,
        head,
        spreads=spreads,
        min_effect=min_effect,
        min_drop=min_drop,
        across={*across, *(MACHINE if MACHINES in across else ())},
    )
    title = verdicts.answer(rows)
    counts = [side["session"].nunique() for side in (base, head)]
    short = verdicts.metric_of(rows).short
    caption = (
        f"{len(names[0])} and {len(names[1])} runs, of {counts[0]} and {counts[1]} sessions. Intervals hold together "
        f"with 95 %;\nslower, faster: beyond {min_effect:.1%}; worse, better: beyond {min_drop:g} of {short};\n"
        "same: within. Latency: geometric mean of medians."
    )
    if counts == [1, 1]:
        known = sum(tuple(row[name] for name in comparing.CELL) in spreads for row in rows)
        caption += "\nWith one session a side the noise between days cannot be told from a change: " + (
            f"for {known} of\n{len(rows)} cells it is taken from --history."
            if known
            else "save runs\nof several days, or use qbert gate."
        )
    tables.show(verdicts.verdicts(rows, title=title, caption=caption))
    options.write(json_file, json.dumps({"cells": verdicts.for_json(rows)}, indent=1, default=_as_json) + "\n")
    options.write(markdown, verdicts.verdicts_markdown(rows, title=title, caption=caption.replace("\n", " ")))
    if csv_file:
        options.write(
            csv_file, tables.spreadsheet(pd.DataFrame(_flat(row, verdicts.metric_of(rows).key) for row in rows))
        )
    if max_machine_flips is not None:
        over = comparing.over_machine_flips(rows, max_machine_flips)
        for line in over:
            echo(line, err=True)
        sys.exit(1 if over else 0)


def _sides(files: tuple[str, ...]) -> list[list[Path]]:
    """Return the files of base and of head.

    Raises:
        InputError: a side has none.
    """
    split = files.index("::") if "::" in files else 1 if len(files) == 2 else 0  # noqa: PLR2004  base and head
    names = [[Path(file) for file in part if file != "::"] for part in (files[:split], files[split:])]
    if not all(names):
        raise InputError("name the runs of both sides: qbert compare BASE.json... -- HEAD.json...")
    return names


def _flat(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return a row of compare.runs, whose answers are judged by the metric of that key, without tables in it."""
    from qbert.inputs import metrics

    left_out = ("judged", "differs", "has_answers", "machine_flips")
    flips = {"machine_flips": row["machine_flips"].flips} if row.get("machine_flips") else {}
    judged = metrics.own_names({"metric": metric, "drop_verdict": ""} | row["judged"])
    rest = {name: value for name, value in row.items() if name not in left_out}
    return rest | flips | judged | {"differs": "; ".join(row["differs"])}


def _as_json(value: Any) -> Any:  # noqa: ANN401
    is_row = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return dataclasses.asdict(value) if is_row else float(value)


@click.command()
@click.argument("storage", type=click.Path(path_type=Path), default=Path(".benchmarks"))
@options.min_effect_option
@click.option(
    "--plot", type=options.OUTPUT, metavar="FILE", help="Draw each cell over its runs to FILE (.svg, .png, .pdf)."
)
def history(storage: Path, min_effect: float, plot: Path | None) -> None:
    """Show each cell over the runs saved in STORAGE (.benchmarks): where its latency changed, and at which commit.

    Each machine and each dataset has its own history.
    """
    from qbert.results import changes, figures, tables, verdicts
    from qbert.results import history as saved

    table, left_out = saved.stored(storage)
    for sentence in left_out:
        echo(f"left out: {sentence}", err=True)
    rows = changes.changes(table, min_effect)
    if not rows:
        raise InputError(f"{storage} holds no run that measured latency: save some (qbert bench --benchmark-autosave)")
    tables.show(verdicts.history(rows, runs=table["file"].nunique(), min_effect=min_effect))
    if plot:
        figures.plot_history(table, rows, plot)


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN.json...")
@click.option("-o", "--output", type=options.OUTPUT, metavar="FILE", help="Write the page to FILE (.html).")
@options.markdown_option
@click.option(
    "--csv", "csv_file", type=options.OUTPUT, metavar="FILE", help="Write the figures to FILE, for a spreadsheet."
)
@click.option(
    "--price",
    "prices",
    multiple=True,
    type=Price(),
    metavar="NAME=PRICE",
    help="Of a machine by its name here, an hour; repeatable. Default: prices in pyproject.toml, [tool.qbert].",
)
def report(
    files: tuple[Path, ...],
    output: Path | None,
    markdown: Path | None,
    csv_file: Path | None,
    prices: tuple[tuple[str, float], ...],
) -> None:
    """Make one page from saved runs, for a decision: it needs no network and can be sent to a colleague.

    Runs of several machines are shown side by side. Those of one machine must have the same libraries; all must have
    the same dataset, documents and limits.
    """
    from qbert.results import history as saved
    from qbert.results import machines, page
    from qbert.system.terminal import progress

    if not (output or markdown or csv_file):
        raise InputError("name what to write: -o tables.html, --markdown FILE or --csv FILE")
    runs = saved.load(files)
    found = machines.split(runs, settings.read(settings.nearest(Path.cwd())).prices | dict(prices))
    machines.check_prices(found, dict(prices))
    if output:
        with progress("drawing"):
            html = page.render(found)
        options.write(output, html)
    if markdown:
        options.write(markdown, page.markdown(found))
    if csv_file:
        options.write(csv_file, page.csv(found))
    for answer in machines.findings(found):
        echo(answer)
