"""The qbert command: train, evaluate, quantize, predict, variants, machine, and those of cli_results."""

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from qbert import __version__
from qbert.cli import bench, gate, init, reproduce, results
from qbert.cli.options import Number
from qbert.errors import TRACEBACK, InputError, lacking, sentence
from qbert.settings import import_plugin
from qbert.terminal import echo, shown

if TYPE_CHECKING:
    from qbert.artefact import Artefact
    from qbert.checkpoint import Checkpoint
    from qbert.dataset import Dataset
    from qbert.variants import Classifier, Variant


DEFAULT_MAX_LENGTH = 384
EXTRAS = {
    "train": "train",
    "predict": "train",  # of a checkpoint; an artefact needs its runtime alone
    "quantize": "quantize",
    "compare": "report",
    "history": "report",
    "report": "report",
    "evaluate": "bench",
    "bench": "bench",
    "gate": "bench",
    "machine": "bench",
    "reproduce": "bench",
}
"""The extra of this project that brings all which a command needs."""


class Command(click.Group):
    """A group that reports every error in one sentence, with exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run the command."""
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            try:
                return self._invoke(ctx)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except Exception as error:  # the outer net: whatever is raised is told in a sentence
                if os.environ.get(TRACEBACK):
                    raise
                raise click.UsageError(shown(sentence(error))) from error

    def _invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            name = ctx.invoked_subcommand or ""
            raise lacking(error, f"qbert {name}", EXTRAS.get(name, "all")) from error


def _warn(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    datasets = sys.modules.get("qbert.dataset")
    if datasets and issubclass(category, datasets.DatasetWarning):  # a library's are not for the person at the terminal
        echo(f"warning: {message}", err=True)


@click.group(cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="qbert")
@click.option("-p", "plugins", multiple=True, metavar="MODULE", help="Import a module that adds variants; repeatable.")
def main(plugins: tuple[str, ...]) -> None:
    """Train, quantize and judge BERT text classifiers on CPUs.

    `qbert bench` measures; what it takes where nothing is said stands in pyproject.toml, [tool.qbert].
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for name in plugins:
        import_plugin(name, "-p")


for command in (
    bench.bench,
    gate.gate,
    results.compare,
    results.history,
    results.report,
    reproduce.reproduce,
    init.init,
):
    main.add_command(command)

_dataset = click.option(
    "--dataset",
    default="news_mini",
    show_default=True,
    metavar="DIR",
    help="Folder with train.csv, test.csv and label.json.",
)
_model = click.option("--model", required=True, metavar="MODEL", help="Checkpoint folder, hub id or built-in model.")
_max_length = click.option(
    "--max-length",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_LENGTH,
    show_default=True,
    metavar="L",
    help="Tokens at which texts are cut off.",
)


_served_dataset = click.option(
    "--dataset",
    metavar="DIR",
    help="Folder of the dataset that a calibrated variant sees, or a built-in model learns (unless told: news_mini).",
)
_served_length = click.option(
    "--max-length",
    type=click.IntRange(min=1),
    metavar="L",
    help="Tokens at which texts are cut off, and at which a built-in model is trained. "
    "Unless told: as many as MODEL was trained at; of a built-in one, or where it does not say, 384.",
)


@main.command()
@_dataset
@click.option(
    "--base",
    required=True,
    metavar="BASE",
    help="Hub id or folder with weights; or, from scratch: bert-tiny, -mini, -small, -medium, -base.",
)
@_max_length
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)  # as numpy takes them
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Checkpoint folder to write.",
)
@click.option(
    "--vocab",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="WordPiece vocabulary to use instead of learning one.",
)
@click.option(
    "--epochs",
    type=click.IntRange(1, 10_000),
    help="Pretrained: 3. From scratch: until 6,400 texts were seen, at least 3.",
)
@click.option(
    "--learning-rate",
    type=Number(0, 1, min_open=True),
    help="Pretrained: 5e-5. From scratch: 1e-3.",
)
@click.option("--batch-size", type=click.IntRange(1, 65_536), help="Pretrained: 32. From scratch: 16.")
@click.option(
    "--warmup",
    type=Number(0, 1, max_open=True),
    help="Share of the steps. Pretrained: 0.2. From scratch: 0.1.",
)
def train(
    dataset: str,
    base: str,
    max_length: int,
    seed: int,
    output: Path,
    vocab: Path | None,
    **settings: float | None,
) -> None:
    """Fine-tune BASE on a dataset, or train it from scratch."""
    import dataclasses

    from qbert import dataset as datasets
    from qbert import training

    loaded = datasets.load(dataset)
    recipe = training.recipe_for(base, len(loaded.train))
    given = {name: value for name, value in settings.items() if value is not None}
    recipe = dataclasses.replace(recipe, **given)  # type: ignore[arg-type] # click has checked each option's type
    checkpoint = training.train(loaded, base, output, max_length=max_length, seed=seed, vocab=vocab, recipe=recipe)
    metrics = checkpoint.record["metrics"]
    echo(f"{output}: weighted F1 {metrics['test_weighted_f1']:.4f} on the test split, {metrics['seconds']:.0f} s")


@main.command()
@_model
@_dataset
@click.option(
    "--variants",
    default="default",
    show_default=True,
    metavar="LIST",
    help="Names with commas between; also 'default' and 'all'.",
)
@_served_length
@click.option(
    "--documents",
    type=click.IntRange(min=1),
    metavar="N",
    help="Judge by a sample of N test documents, not by all.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the figures to FILE too.",
)
def evaluate(
    model: str, dataset: str, variants: str, max_length: int | None, documents: int | None, json_file: Path | None
) -> None:
    """Classify the test documents one by one with each variant: F1, F1 drop, flips, time per document.

    A variant that cannot be made or run for this model says why; the others are judged. Exit code 2 only if LIST names
    it, and not where 'default' or 'all' bring it along.
    """
    from qbert import evaluation
    from qbert.cache import write_file
    from qbert.results import tables
    from qbert.terminal import counted

    found = evaluation.evaluate(model, dataset, variants, max_length, documents)
    if json_file:
        text = json.dumps(found.results, indent=1, ensure_ascii=False) + "\n"
        write_file(json_file, lambda place: place.write_text(text, encoding="utf-8"))
    judged_by = f"{counted(found.documents, 'document')}, {counted(found.max_length, 'token')} at most"
    tables.show(tables.accuracy(found.results, title=f"{found.model} on {found.dataset}, {judged_by}"))
    found.check_named(variants)


@main.command()
@_model
@click.option("--variant", required=True, metavar="NAME", help="One of `qbert variants`.")
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write.")
@_served_dataset
@_served_length
def quantize(model: str, variant: str, output: Path, dataset: str | None, max_length: int | None) -> None:
    """Write MODEL as one variant to a folder that `qbert predict` and `load_artefact` read."""
    from qbert import api

    api.quantize(model, variant, output, dataset=dataset, max_length=max_length)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    echo(f"{output}: {variant}, {size / 1e6:.1f} MB")


@main.command()
@click.argument("texts", nargs=-1)
@click.option(
    "--model",
    required=True,
    metavar="MODEL",
    help="Folder from `qbert quantize`, checkpoint folder, hub id or built-in model.",
)
@click.option("--variant", metavar="NAME", help="How to run a checkpoint; fp32 unless told.")
@_served_dataset
@_served_length
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with the score of every label.")
@click.option("--no-verify", is_flag=True, help="Do not hold an artefact's files against their checksums.")
def predict(
    texts: tuple[str, ...],
    model: str,
    variant: str | None,
    dataset: str | None,
    max_length: int | None,
    *,
    as_json: bool,
    no_verify: bool,
) -> None:
    """Print label and score of each of TEXTS, or of each line piped in.

    A tab separates the two texts of a pair. A multi-label model gives all labels scored 0.5 and more, with commas
    between, and none where there is none. The answer to a blank line has neither label nor score (null in JSON), so
    that the n-th answer is to the n-th line.
    """
    from qbert.labels import MULTI_LABEL
    from qbert.serving import TextClassifier

    if not texts and sys.stdin.isatty():
        raise InputError("no text: give some as arguments, or pipe in one a line")
    classifier, opened, name = _open(model, variant, dataset, max_length, verify=not no_verify)
    served = TextClassifier.of(opened, name, classifier, max_length=max_length)
    several = served.problem_type == MULTI_LABEL
    key = "labels" if several else "label"
    with _reading(sys.stdin) as lines:
        for text in texts or lines:
            first, _, second = text.rstrip("\r\n").partition("\t")
            if not first.strip():
                blank = json.dumps({"text": text.rstrip("\r\n"), key: None, "scores": {}}, ensure_ascii=False)
                echo(blank if as_json else "\t\t")
                continue
            found = served(first, second if second.strip() else None)
            if as_json:
                told: dict[str, Any] = {key: list(found.labels) if several else found.label}
                told["scores"] = {label: round(score, 6) for label, score in found.scores.items()}
                echo(json.dumps({"text": text.rstrip("\r\n")} | told, ensure_ascii=False))
            else:
                scored = ",".join(f"{found.scores[label]:.4f}" for label in found.labels)
                echo(f"{','.join(found.labels)}\t{scored}\t{first[:60]}")


@main.command()
def variants() -> None:
    """List the ways to run a model: which can run here, and what the others lack."""
    from rich.table import Table

    from qbert import variants as table
    from qbert.terminal import console

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("variant", "runtime", "here", "needs"):
        drawn.add_column(heading, no_wrap=heading != "needs")
    for row in table.VARIANTS.values():
        reason = row.missing()
        here = "no" if reason else "yes" if row.default else "by name"
        drawn.add_row(escape(row.name), escape(row.runtime), here, escape(reason or row.needs))
    console().print(drawn)


@main.command()
def machine() -> None:
    """Say what this processor is, what one core of it can do at best, and what disturbs timing here."""
    from rich.table import Table

    from qbert import machine as here
    from qbert import roofline
    from qbert import variants as table
    from qbert.results import tables
    from qbert.terminal import say

    packages = sorted({name for variant in table.VARIANTS.values() for name in variant.packages})
    say("measuring matrix products on one core, some seconds")
    rates = roofline.rates()
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    drawn.add_row("processor", escape(here.processor()))
    drawn.add_row("cores", f"{os.cpu_count()}")
    drawn.add_row("instruction sets", ", ".join(here.instruction_sets()))
    drawn.add_row("caches", ", ".join(f"{name} {size}" for name, size in here.caches().items()) or "not told")
    drawn.add_row("libraries", ", ".join(f"{name} {version}" for name, version in here.versions(*packages).items()))
    for precision, (rate, library) in rates.items():
        drawn.add_row(f"{precision} products", f"{rate / 1e9:.0f} billion operations a second, by {library}")
    for number, found in enumerate(here.disturbances() or ["nothing found"]):
        drawn.add_row("" if number else "disturbs timing", escape(found))
    tables.show(drawn)


@contextlib.contextmanager
def _reading(stream: Any) -> Iterator[Any]:  # noqa: ANN401  a text stream
    try:
        yield stream
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not {error.encoding} text: pipe in UTF-8") from error


def _check_trained(model: str, *, trained: bool) -> None:
    if not trained:
        raise InputError(f"{model} has no trained classification head, so its labels would be random: train it first")


def _served(model: str) -> int:
    """Return the length at which the texts for `model` are cut off where nobody said another."""
    from qbert import training
    from qbert.checkpoint import Checkpoint, locate

    return DEFAULT_MAX_LENGTH if model in training.GEOMETRIES else Checkpoint.open(locate(model)).max_length


def _calibration(variant: "Variant", model: str, dataset: str | None) -> "Dataset | None":
    """Return the dataset that `variant` is calibrated on: the one named, or a built-in model's own."""
    from qbert import dataset as datasets
    from qbert import training

    if not variant.calibrated or (dataset is None and model not in training.GEOMETRIES):
        return None
    return datasets.load(dataset or datasets.BUILT_IN)


def _checkpoint(model: str, dataset: str | None, max_length: int | None) -> "Checkpoint":
    """Return the checkpoint that `model` names, without asking whether it fits the dataset."""
    from qbert import dataset as datasets
    from qbert import training
    from qbert.checkpoint import Checkpoint, locate
    from qbert.suite import Suite

    if model not in training.GEOMETRIES:
        return Checkpoint.open(locate(model))
    max_length = max_length or DEFAULT_MAX_LENGTH
    suite = Suite(datasets.load(dataset or datasets.BUILT_IN), [model], max_lengths=[max_length])
    return suite.checkpoint(suite.models[model], max_length)


def _open(
    model: str, variant: str | None, dataset: str | None, max_length: int | None, *, verify: bool
) -> "tuple[Classifier, Checkpoint | Artefact, str]":
    """Return the classifier of an artefact, or of a checkpoint run as `variant`, its folder, and the variant's name."""
    from qbert import variants as table
    from qbert.artefact import Artefact
    from qbert.checkpoint import Checkpoint

    if "variant" not in Checkpoint(Path(model)).record:
        checkpoint = _checkpoint(model, dataset, max_length)
        chosen = table.get(variant or table.BASELINE)
        seen = _calibration(chosen, model, dataset)
        return table.build(chosen, checkpoint, seen, max_length), checkpoint, chosen.name
    artefact = Artefact.open(Path(model))
    if variant not in (None, artefact.variant):
        raise InputError(f"{model} holds the variant {artefact.variant}: leave out --variant {variant}")
    return artefact.load(verify=verify), artefact, artefact.variant
