"""The commands of qbert that show results: gate, compare, history, report, reproduce."""

import json
import math
import os
import signal
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qbert.cache import write_file
from qbert.errors import InputError
from qbert.results.compare import SUBJECT
from qbert.stats import MIN_EFFECT, MIN_F1_EFFECT
from qbert.terminal import echo

if TYPE_CHECKING:
    from types import FrameType

FILE = click.Path(path_type=Path, dir_okay=False)
CALIBRATED = (0.02, 0.03, 0.05, 0.10)
CALIBRATION_PAIRS = 16
CALIBRATION_SECONDS = 6 * 3600  # nobody said when to stop: all pairs


class Percentage(click.ParamType):  # type: ignore[type-arg]
    """A share, given as `2.5%`."""

    name = "percentage"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Return the share that `value` names."""
        if isinstance(value, float):
            return value
        try:
            share = float(value.removesuffix("%")) / 100
        except ValueError:
            share = -1.0
        if not 0 < share < 1 or not value.endswith("%"):
            self.fail(f"{value!r} is no percentage above 0 and below 100, such as 2.5%", param, ctx)
        return share


class Number(click.FloatRange):
    """A number within bounds; nan and infinity are within none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Return the number that `value` names."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number.", param, ctx)
        return number


_min_effect = click.option(
    "--min-effect",
    type=Percentage(),
    default=MIN_EFFECT,
    show_default=False,
    metavar="PERCENT",
    help="What is smaller is nobody's regression.  [default: 2.5%]",
)
_min_f1_effect = click.option(
    "--min-f1-effect",
    type=Number(min=0, max=1, min_open=True),
    default=MIN_F1_EFFECT,
    show_default=True,
    metavar="DROP",
    help="A smaller drop of F1 is nobody's regression.",
)
_json = click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write all figures to FILE.")
_markdown = click.option("--markdown", type=FILE, metavar="FILE", help="Write the table to FILE, for a pull request.")


@click.command()
@click.option("--base-ref", metavar="REF", help="Base's code: this commit, branch or tag of the repository here.")
@click.option(
    "--base-python",
    type=click.Path(exists=True, dir_okay=False),
    metavar="PATH",
    help="Base's interpreter and libraries.",
)
@click.option("--base-model", multiple=True, metavar="MODEL", help="Base's models, one for each --model.")
@click.option("--base-dataset", metavar="DIR", help="Base's dataset.")
@click.option(
    "--model", "models", multiple=True, metavar="MODEL", help="Checkpoint folder, hub id or built-in model; repeatable."
)
@click.option("--dataset", default="news_mini", show_default=True, metavar="DIR", help="Real text, and what F1 is of.")
@click.option("--variants", default="default", show_default=True, metavar="LIST", help="Names with commas between.")
@click.option("--max-lengths", default="128,256,384", show_default=True, metavar="LIST", help="Tokens.")
@click.option("--documents", type=click.IntRange(min=1), metavar="N", help="Judge F1 by a sample of N test documents.")
@_min_effect
@_min_f1_effect
@click.option(
    "--max-pairs", type=click.IntRange(1, 200), metavar="N", help="Pairs of processes at most.  [default: 40]"
)
@click.option(
    "--max-seconds",
    type=Number(min=1),
    metavar="S",
    help="Time for pairs at most.  [default: by the number of cells]",
)
@click.option(
    "--timeout",
    type=Number(min=0.1),
    default=60,
    show_default=True,
    metavar="S",
    help="A side that does not answer for S seconds while timing is hanging.",
)
@click.option("--strict", is_flag=True, help="End with 3 where any verdict is inconclusive.")
@click.option("--calibrate", is_flag=True, help="Hold this machine against itself: what it can find.")
@_json
@_markdown
@click.pass_context
def gate(
    ctx: click.Context,
    base_ref: str | None,
    base_python: str | None,
    base_model: tuple[str, ...],
    base_dataset: str | None,
    models: tuple[str, ...],
    *,
    dataset: str,
    variants: str,
    max_lengths: str,
    documents: int | None,
    min_effect: float,
    min_f1_effect: float,
    max_pairs: int | None,
    max_seconds: float | None,
    timeout: float,
    strict: bool,
    calibrate: bool,
    json_file: Path | None,
    markdown: Path | None,
) -> None:
    """Hold head, which is what is here, against base: latency by pairs of processes, F1 by the same documents.

    With --base-ref, what lies in the repository (modules, a --model, a --dataset) is on base's side that commit's own.

    Ends with 0 where nothing was shown to be worse, 1 with a regression, 2 with a mistake in how it was called, 3 where
    it could decide nothing (--strict: not everything), 4 where the sides cannot be compared or one of them cannot run.
    Limits of cells are read from pyproject.toml, [[tool.qbert.gate.limits]].
    """
    import contextlib

    from qbert import dataset as datasets
    from qbert.gate import run as gates
    from qbert.gate import sides
    from qbert.results import tables, verdicts
    from qbert.suite import DEFAULT_MODELS
    from qbert.training import GEOMETRIES

    named = base_ref or base_python or base_model or base_dataset
    if not (named or calibrate):
        raise InputError(
            "name what to hold against: --base-ref, --base-python, --base-model, --base-dataset, or --calibrate"
        )
    if named and calibrate:
        raise InputError(
            "--calibrate holds this machine against itself: leave out "
            "--base-ref, --base-python, --base-model, --base-dataset"
        )
    models = tuple(_absolute(model, GEOMETRIES) for model in models or DEFAULT_MODELS)
    models = models if base_model else tuple(dict.fromkeys(models))
    if base_model and len(base_model) != len(models):
        raise InputError(f"--base-model is given {len(base_model)} times for {len(models)} models: give one for each")
    dataset = _absolute(dataset, [datasets.BUILT_IN])
    may_differ = {"versions"} if base_python else set()
    if base_ref or base_model:
        may_differ.add("checkpoint_sha256")  # the commit's own, too, be they in it or trained by it
    subject = sides.Subject(
        _lengths(max_lengths), variants, documents, tuple((ctx.parent or ctx).params.get("plugins", ()))
    )
    budget = gates.Budget(
        min_effect,
        min_f1_effect,
        max_pairs or (CALIBRATION_PAIRS if calibrate else gates.Budget.max_pairs),
        max_seconds or (CALIBRATION_SECONDS if calibrate else None),
        timeout,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _end))
        base, head = stack.enter_context(
            sides.base_and_head(
                models,
                dataset,
                ref=base_ref,
                python=base_python,
                base_models=tuple(_absolute(model, GEOMETRIES) for model in base_model),
                base_dataset=base_dataset and _absolute(base_dataset, [datasets.BUILT_IN]),
            )
        )
        settings = Path("pyproject.toml")
        rows = gates.limits(head.tree / settings if base_ref and head.tree and not settings.is_file() else settings)
        try:
            found = gates.run(
                *(base, head, subject, budget),
                limits=rows,
                may_differ=may_differ,
                every_pair=calibrate,
                against_itself=calibrate,
                strict=strict,
            )
        except sides.SideError as error:
            echo(f"Error: {error}", err=True)
            ctx.exit(gates.NOT_COMPARABLE)
        except KeyboardInterrupt:
            ctx.exit(128 + signal.SIGINT)
    _write(json_file, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if calibrate:
        tables.show(verdicts.calibration(gates.calibrated(found, CALIBRATED), found))
        return
    title, caption = verdicts.answer(found["cells"]), verdicts.gate_caption(found)
    tables.show(verdicts.verdicts(found["cells"], title=title, caption=caption))
    _write(markdown, verdicts.verdicts_markdown(found["cells"], title=title, caption=caption.replace("\n", " ")))
    ctx.exit(found["exit_code"])


def _end(number: int, _: "FrameType | None") -> None:
    """Leave as after an error, so that no process and no worktree is left behind."""
    raise SystemExit(128 + number)


def _absolute(source: str, built_in: Collection[str]) -> str:
    """Return `source` so that it means the same in another folder, where it is one; links in it are not followed."""
    return os.path.abspath(source) if source not in built_in and Path(source).is_dir() else source  # noqa: PTH100


def _lengths(text: str) -> tuple[int, ...]:
    try:
        lengths = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        lengths = ()
    if not lengths or min(lengths) < 1:
        raise InputError(f"--max-lengths {text!r}: give numbers of tokens with commas between, such as 128,256")
    return lengths


def _write(path: Path | None, text: str) -> None:
    if path is None:
        return
    write_file(path, lambda place: place.write_text(text, encoding="utf-8"))


class BaseAndHead(click.Command):
    """A command whose files come as BASE... -- HEAD..., with options anywhere."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let `--` through as a file named `::`, which the command finds."""
        return super().parse_args(ctx, ["::" if argument == "--" else argument for argument in args])


@click.command(cls=BaseAndHead)
@click.argument("files", nargs=-1, type=click.Path(), metavar="BASE... -- HEAD...")
@click.option(
    "--history",
    "storage",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Saved runs that tell how far one sitting is from the next.  [default: .benchmarks]",
)
@click.option(
    "--across",
    multiple=True,
    type=click.Choice(SUBJECT),
    help="Compare although this differs; repeatable.",
)
@_min_effect
@_min_f1_effect
@_json
@click.option("--csv", "csv_file", type=FILE, metavar="FILE", help="Write the rows to FILE.")
@_markdown
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
    """Hold saved runs against each other: latency with its interval, F1, flips, size.

    The sittings of a side are its sample: runs of one boot, less than 6 hours apart, count as one. Two files alone need
    no `--` between them.
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
    _write(json_file, json.dumps({"cells": rows}, indent=1, default=float) + "\n")
    _write(markdown, verdicts.verdicts_markdown(rows, title=title, caption=caption.replace("\n", " ")))
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
        _write(csv_file, tables.spreadsheet(pd.DataFrame(flat)))


@click.command()
@click.argument("storage", type=click.Path(path_type=Path), default=Path(".benchmarks"))
@_min_effect
@click.option("--plot", type=FILE, metavar="FILE", help="Draw each cell over its runs to FILE (.svg, .png, .pdf).")
def history(storage: Path, min_effect: float, plot: Path | None) -> None:
    """Show each cell over the runs saved in STORAGE (.benchmarks): where its latency changed, and at which commit.

    Machines are kept apart, and so are datasets.
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
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Write the page to FILE (.html).")
@_markdown
@click.option("--csv", "csv_file", type=FILE, metavar="FILE", help="Write the figures to FILE, for a spreadsheet.")
def report(files: tuple[Path, ...], output: Path | None, markdown: Path | None, csv_file: Path | None) -> None:
    """Make one page of saved runs that a person decides by: it needs no network and can be sent to a colleague.

    Several runs are of one machine, and what is in them is measured alike: libraries, dataset, documents, guard.
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
        _write(output, html)
    if markdown:
        _write(markdown, page.markdown(runs))
    if csv_file:
        _write(csv_file, page.csv(runs))
    for answer in page.answers(page.summarize(runs)):
        echo(answer)


@click.command()
@click.option("--dataset", default="news_mini", show_default=True, metavar="DIR", help="Folder of the dataset.")
@click.option(
    "--base",
    default="bert-tiny",
    show_default=True,
    metavar="BASE",
    help="What is trained: hub id, folder or built-in.",
)
@click.option("--variant", default="int8-dynamic", show_default=True, metavar="NAME", help="What comes after.")
@click.option("--max-lengths", default="384,256,128", show_default=True, metavar="LIST", help="Tokens.")
@click.option("--trainings", type=click.IntRange(min=1), default=3, show_default=True, help="Of each length.")
@_json
@_markdown
def reproduce(
    dataset: str,
    base: str,
    variant: str,
    max_lengths: str,
    trainings: int,
    json_file: Path | None,
    markdown: Path | None,
) -> None:
    """Do the published experiment anew: trainings at each length, time per document and F1 before and after.

    What is done is kept: an interrupted run goes on where it stopped.
    """
    import dataclasses
    import hashlib

    from qbert import dataset as datasets
    from qbert import reproduce
    from qbert import variants as table
    from qbert.cache import cache_dir
    from qbert.results import tables
    from qbert.suite import UNTRAINED, Suite
    from qbert.terminal import progress

    table.get(variant)
    if variant == table.BASELINE:
        raise InputError(f"--variant {variant} is what comes before: name what comes after")
    if base == UNTRAINED:
        raise InputError(
            f"--base {base} is random weights here: name a hub id (bert-base-chinese), a folder or bert-tiny"
        )
    loaded = datasets.load(dataset)
    suite = Suite(loaded, [base], max_lengths=_lengths(max_lengths), experiments=trainings, fine_tune=True)
    documents = loaded.documents(None)
    done = []
    for max_length in suite.max_lengths:
        for model in suite.models.values():
            before, after = (suite.cell(model.name, max_length, name) for name in (table.BASELINE, variant))
            identity = [cell.describe(cell.classifier.evidence)["identity"] for cell in (before, after)]
            key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
            path = cache_dir() / "reproductions" / f"{key}.json"
            training = reproduce.kept(path, identity)
            if training is None:
                what = f"{max_length} tokens, training {model.seed + 1} of {trainings}"
                with progress(what, len(documents)) as advance:
                    training = reproduce.measure(before, after, documents, advance)
                reproduce.keep(path, identity, training)
            done.append(training)
    title = f"{base} on {loaded.name}, {len(documents)} documents one by one: fp32 before, {variant} after"
    tables.show(reproduce.table(done, title=title))
    _write(json_file, json.dumps([dataclasses.asdict(one) for one in done], indent=1) + "\n")
    _write(markdown, reproduce.markdown(done, title=title))
