"""The commands for saved runs: compare, history and report."""

import json
from pathlib import Path
from typing import Any

import click

from qbert.cli import options
from qbert.errors import InputError
from qbert.results.compare import SUBJECT
from qbert.terminal import echo


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
    help="Saved runs that show the noise between sittings.  [default: .benchmarks]",
)
@click.option(
    "--across",
    multiple=True,
    type=click.Choice(SUBJECT),
    help="Compare although this differs; repeatable.",
)
@options.min_effect_option
@options.min_f1_effect_option
@options.json_option
@click.option("--csv", "csv_file", type=options.FILE, metavar="FILE", help="Write the rows to FILE.")
@options.markdown_option
def compare(
    files: tuple[str, ...],
    storage: Path | None,
    across: tuple[str, ...],
    min_effect: float,
    min_f1_effect: float,
    json_file: Path | None,
    csv_file: Path | None,
    markdown: Path | None,
) -> None:
    """Compare saved runs with each other: latency with its interval, F1, flips, size.

    The sittings of a side are its sample: runs of one boot, less than 6 hours apart, count as one. Two files need no
    `--` between them.
    """
    import pandas as pd

    from qbert.results import compare as comparing
    from qbert.results import history as saved
    from qbert.results import tables, verdicts

    split = files.index("::") if "::" in files else 1 if len(files) == 2 else 0  # noqa: PLR2004  base and head
    names = [[Path(file) for file in part if file != "::"] for part in (files[:split], files[split:])]
    if not all(names):
        raise InputError("name the runs of both sides: qbert compare BASE.json... -- HEAD.json...")
    base, head = (saved.load(part) for part in names)
    spreads: dict[tuple[Any, ...], tuple[float, int]] = {}
    if storage or saved.STORAGE.is_dir():
        try:
            table, left_out = saved.stored(storage or saved.STORAGE)
            for sentence in left_out:
                echo(f"left out: {sentence}", err=True)
            spreads = saved.spreads(table, pd.concat([base, head]))
        except InputError:
            if storage:
                raise
    rows = comparing.runs(
        base, head, spreads=spreads, min_effect=min_effect, min_f1_effect=min_f1_effect, across=across
    )
    title = verdicts.answer(rows)
    counts = [side["sitting"].nunique() for side in (base, head)]
    caption = (
        f"{len(names[0])} and {len(names[1])} runs, of {counts[0]} and {counts[1]} sittings. Intervals hold together "
        f"with 95 %;\nslower, faster: beyond {min_effect:.1%}; worse, better: beyond {min_f1_effect:g} of F1; same: "
        "within.\nLatency: geometric mean of medians."
    )
    if counts == [1, 1]:
        known = sum(tuple(row[name] for name in comparing.CELL) in spreads for row in rows)
        caption += "\nWith one sitting a side the noise between days cannot be told from a change: " + (
            f"for {known} of\n{len(rows)} cells it is taken from --history."
            if known
            else "save runs\nof several days, or use qbert gate."
        )
    tables.show(verdicts.verdicts(rows, title=title, caption=caption))
    options.write(json_file, json.dumps({"cells": rows}, indent=1, default=float) + "\n")
    options.write(markdown, verdicts.verdicts_markdown(rows, title=title, caption=caption.replace("\n", " ")))
    if csv_file:
        flat = [
            {k: v for k, v in row.items() if k not in ("f1", "differs")}
            | row["f1"]
            | {
                "f1_verdict": row["f1"].get("verdict", ""),
                "verdict": row["verdict"],
                "differs": "; ".join(row["differs"]),
            }
            for row in rows
        ]
        options.write(csv_file, tables.spreadsheet(pd.DataFrame(flat)))


@click.command()
@click.argument("storage", type=click.Path(path_type=Path), default=Path(".benchmarks"))
@options.min_effect_option
@click.option(
    "--plot", type=options.FILE, metavar="FILE", help="Draw each cell over its runs to FILE (.svg, .png, .pdf)."
)
def history(storage: Path, min_effect: float, plot: Path | None) -> None:
    """Show each cell over the runs saved in STORAGE (.benchmarks): where its latency changed, and at which commit.

    Each machine and each dataset has its own history.
    """
    from qbert.results import history as saved
    from qbert.results import tables, verdicts

    table, left_out = saved.stored(storage)
    for sentence in left_out:
        echo(f"left out: {sentence}", err=True)
    rows = saved.changes(table, min_effect)
    tables.show(verdicts.history(rows, runs=table["file"].nunique(), min_effect=min_effect))
    if plot:
        verdicts.plot_history(table, rows, plot)


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN.json...")
@click.option("-o", "--output", type=options.FILE, metavar="FILE", help="Write the page to FILE (.html).")
@options.markdown_option
@click.option(
    "--csv", "csv_file", type=options.FILE, metavar="FILE", help="Write the figures to FILE, for a spreadsheet."
)
def report(files: tuple[Path, ...], output: Path | None, markdown: Path | None, csv_file: Path | None) -> None:
    """Make one page from saved runs, for a decision: it needs no network and can be sent to a colleague.

    Several runs must be of one machine, with the same libraries, dataset, documents and guard.
    """
    from qbert.results import history as saved
    from qbert.results import page
    from qbert.terminal import progress

    if not (output or markdown or csv_file):
        raise InputError("name what to write: -o tables.html, --markdown FILE or --csv FILE")
    runs = saved.load(files)
    if output:
        with progress("drawing"):
            html = page.render(runs)
        options.write(output, html)
    if markdown:
        options.write(markdown, page.markdown(runs))
    if csv_file:
        options.write(csv_file, page.csv(runs))
    for answer in page.answers(page.summarize(runs)):
        echo(answer)
