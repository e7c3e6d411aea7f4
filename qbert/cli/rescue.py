"""The command `qbert rescue`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qbert.cli import options
from qbert.cli.options import Number
from qbert.inputs import metrics
from qbert.inputs.settings import here
from qbert.system.errors import InputError
from qbert.system.terminal import counted, echo

if TYPE_CHECKING:
    from rich.console import Group

    from qbert.measure.accuracy import Comparison
    from qbert.selection.rescue import Rescued

DOCUMENTS = 2_000  # with 20 flips among them, a drop is known to 0.004
SHOWN = 6  # names of layers, in the sentence


@click.command()
@options.shared("model", "dataset")
@options.max_drop_option(Number(0, 1, min_open=True), "How far F1, or what else it is judged by, may drop.  [0.01]")
@options.output_option()
@click.option(
    "--variant",
    default="int8-native",
    show_default=True,
    metavar="NAME",
    help="int8-native, int8-onnxruntime, int8-openvino, or one of their kind.",
)
@click.option(
    "--validation",
    type=options.FILE,
    metavar="FILE",
    help="CSV file of labelled documents to judge by, which MODEL was not trained on. Default: rows of train.csv.",
)
@click.option(
    "--documents",
    type=click.IntRange(min=1),
    default=DOCUMENTS,
    show_default=True,
    metavar="N",
    help="Judge by N documents at most.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    metavar="L",
    help="Tokens at which texts are cut off. Default: as many as MODEL was trained at.",
)
@options.json_option
@click.pass_context
def rescue(
    context: click.Context,
    model: str | None,
    dataset: str | None,
    max_drop: float | None,
    output: Path,
    variant: str,
    validation: Path | None,
    documents: int,
    max_length: int | None,
    json_file: Path | None,
) -> None:
    """Write MODEL in int8 with those few layers in float that the guard needs.

    Float layers are in bf16, in fp32 where the runtime or the processor has no bf16, those first that save most error
    for the time that they cost; with OpenVINO, NNCF's accuracy control chooses. The test split is read once, at the
    end. If the guard does not hold with all layers in float, nothing is written, and the exit code is 1.
    """
    from qbert.results import tables
    from qbert.selection import rescue as rescuing
    from qbert.variants.base import MAX_DROP

    settings = here(Path.cwd(), models=model and (model,), dataset=dataset, max_drop=max_drop)
    limit = MAX_DROP if settings.max_drop is None else settings.max_drop
    if limit <= 0:
        raise InputError(f"[tool.qbert] max_drop is {limit:g}, and int8 needs more than 0: give --max-drop")
    rescued = rescuing.rescue(
        options.one_model(settings),
        settings.dataset,
        limit,
        output,
        variant=variant,
        validation=validation,
        documents=documents,
        max_length=max_length,
    )
    options.write(json_file, json.dumps(rescued.record(), indent=1, ensure_ascii=False) + "\n")
    tables.show(_table(rescued))
    echo(f"{_sentence(rescued, output)}\n{rescued.judged_by}")
    if not rescued.holds:
        context.exit(1)


def _table(rescued: "Rescued") -> "Group":
    """Return the table of plain int8 and the chosen mix, at most 80 columns wide."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    drawn.add_column("layers")
    short = metrics.named(rescued.plain.metric).short
    for heading in ("in\n{precision}", "{short} drop\n", "at most\n", "flips\n", "test\n{short} drop", "test\nflips"):
        drawn.add_column(heading.format(precision=rescued.precision, short=short), justify="right")
    drawn.add_column("latency\nto int8", justify="right")
    rows = [("all int8", 0, rescued.plain, rescued.plain_at_most, rescued.plain_test, 1.0)]
    if rescued.kept:
        what = "rescued" if rescued.holds else "nearest" if len(rescued.kept) < rescued.every else "none int8"
        mix = (what, len(rescued.kept), rescued.chosen, rescued.chosen_at_most, rescued.test, rescued.latency_ratio)
        rows.append(mix)
    for what, kept, held, at_most, test, ratio in rows:
        tested = (f"{test.drop:+.4f}", _flips(test)) if test else ("", "")
        drawn.add_row(what, str(kept), f"{held.drop:+.4f}", f"{at_most:+.4f}", _flips(held), *tested, f"{ratio:.3f}")
    judged = f"{rescued.plain.documents:,} held-out documents, limit {rescued.limit:g}"
    title = f"{rescued.variant} of {rescued.model} on {rescued.dataset}, {judged}"
    return Group(Text(title, style="bold"), "", drawn, "")


def _flips(judged: "Comparison") -> str:
    return "" if judged.flips is None else str(judged.flips)


def _sentence(rescued: "Rescued", output: Path) -> str:
    """Return what was found, in one sentence."""
    short = metrics.named(rescued.plain.metric).short
    if not rescued.holds:
        over = rescued.chosen_at_most - rescued.limit
        left = rescued.every - len(rescued.kept)
        kept = f"{counted(left, 'layer')} of {rescued.every} in int8" if left else "no layer in int8"
        return (
            f"Nothing holds the guard: with {kept}, {short} drops by {rescued.chosen.drop:.4f}, and by up to "
            f"{over:.4f} more than {rescued.limit:g}; judge by more documents (--documents) or raise the limit."
        )
    if rescued.test is None:  # not when the guard holds
        raise AssertionError
    test = rescued.test
    tested = f"on the {test.documents:,} test documents, which chose nothing, {short} drops by {test.drop:.4f}"
    if not rescued.kept:
        return f"{output}: int8 holds the guard already, so no layer has to be in float; {tested}."
    names, layers = ", ".join(rescued.kept[:SHOWN]), counted(len(rescued.kept), "layer")
    more = f" and {len(rescued.kept) - SHOWN} more" if len(rescued.kept) > SHOWN else ""
    return f"{output}: with {layers} in {rescued.precision} ({names}{more}) the guard holds; {tested}."
