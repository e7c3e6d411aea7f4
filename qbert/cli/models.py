"""The commands for one model: train, evaluate, quantize, predict."""

import codecs
import contextlib
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qbert.cli import options
from qbert.cli.options import Number
from qbert.inputs.settings import DEFAULT_MAX_LENGTH, DEFAULTS, here
from qbert.system.errors import InputError
from qbert.system.terminal import echo

if TYPE_CHECKING:
    from qbert.inputs.checkpoint import Checkpoint
    from qbert.variants import Classifier
    from qbert.variants.artefact import Artefact
    from qbert.variants.serving import Prediction, TextClassifier


_served_dataset = click.option(
    "--dataset",
    metavar="DIR",
    help="Folder of the dataset that a calibrated variant sees, or a built-in model learns (default: news_mini).",
)
_served_length = click.option(
    "--max-length",
    type=click.IntRange(min=1),
    metavar="L",
    help="Tokens at which texts are cut off, and at which a built-in model is trained. "
    "Default: as many as MODEL was trained at; 384 for a built-in one, or where that is unknown.",
)


@click.command()
@options.shared("dataset", default=DEFAULTS.dataset)
@click.option(
    "--base",
    required=True,
    metavar="BASE",
    help="Hub id or folder with weights; or, from scratch: bert-tiny, -mini, -small, -medium, -base.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_LENGTH,
    show_default=True,
    metavar="L",
    help="Tokens at which texts are cut off.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)  # as numpy takes them
@options.output_option("Checkpoint folder to write.")
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
@click.option("--learning-rate", type=Number(0, 1, min_open=True), help="Pretrained: 5e-5. From scratch: 1e-3.")
@click.option("--batch-size", type=click.IntRange(1, 65_536), help="Pretrained: 32. From scratch: 16.")
@click.option(
    "--warmup", type=Number(0, 1, max_open=True), help="Share of the steps. Pretrained: 0.2. From scratch: 0.1."
)
def train(
    dataset: str,
    base: str,
    max_length: int,
    seed: int,
    output: Path,
    vocab: Path | None,
    **recipe: Any,  # noqa: ANN401  of each option's own type
) -> None:
    """Fine-tune BASE on a dataset, or train it from scratch."""
    from qbert import api
    from qbert.inputs.metrics import BY_KEY as METRICS

    metrics = api.train(dataset, base, output, max_length=max_length, seed=seed, vocab=vocab, **recipe)
    of_test = {metric.of_test: metric.title for metric in METRICS.values()}
    judged = [f"{of_test[name]} {score:.4f}" for name, score in metrics.items() if name in of_test]
    echo(f"{output}: {judged[0]} on the test split, {metrics['seconds']:.0f} s")


@click.command()
@options.shared("model", "dataset", "variants")
@_served_length
@options.shared("documents")
@options.cluster_option()
@options.json_option
def evaluate(
    model: str | None,
    dataset: str | None,
    variants: str | None,
    max_length: int | None,
    documents: int | None,
    cluster: str | None,
    json_file: Path | None,
) -> None:
    """Classify the test documents one by one with each variant: score, drop, flips, time per document.

    A variant that cannot be made or run for this model says why; the others are judged. The exit code is then 2 only if
    LIST names it, not if 'default' or 'all' includes it. Defaults are in pyproject.toml, [tool.qbert].
    """
    from qbert.cluster.judging import workers_at
    from qbert.results import run_tables, tables
    from qbert.selection import evaluation
    from qbert.system.terminal import counted
    from qbert.variants import select

    settings = here(Path.cwd(), models=model and (model,), dataset=dataset, variants=variants)
    names = settings.variant_list
    packages = [package for variant in select(names) for package in variant.packages]
    with workers_at(cluster, packages) as workers:
        evaluated = evaluation.evaluate(
            options.one_model(settings), settings.dataset, names, max_length, documents, workers
        )
    options.write(json_file, json.dumps(evaluated.results, indent=1, ensure_ascii=False) + "\n")
    judged_by = f"{counted(evaluated.documents, 'document')}, {counted(evaluated.max_length, 'token')} at most"
    tables.show(run_tables.accuracy(evaluated.results, title=f"{evaluated.model} on {evaluated.dataset}, {judged_by}"))
    for note in evaluated.notes:
        echo(note, err=True)
    evaluated.check_named(names)


@click.command()
@options.shared("model")
@click.option("--variant", required=True, metavar="NAME", help="One of `qbert variants`.")
@options.output_option()
@_served_dataset
@_served_length
@click.option(
    "--for",
    "kernels",
    multiple=True,
    metavar="KERNEL",
    help="Pack int8-native's weights for KERNEL, as avx2, so that processes share them; also more than once.",
)
def quantize(
    model: str | None,
    variant: str,
    output: Path,
    dataset: str | None,
    max_length: int | None,
    kernels: tuple[str, ...],
) -> None:
    """Write MODEL as one variant to a folder that `qbert predict` and `qbert.load` read.

    The defaults of MODEL and the dataset are in pyproject.toml, [tool.qbert].
    """
    from qbert import api

    settings = here(Path.cwd(), models=model and (model,), dataset=dataset)
    dataset = None if settings.dataset == DEFAULTS.dataset and dataset is None else settings.dataset
    api.quantize(options.one_model(settings), variant, output, dataset=dataset, max_length=max_length, kernels=kernels)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    echo(f"{output}: {variant}, {size / 1e6:.1f} MB")


@click.command()
@click.argument("texts", nargs=-1)
@click.option(
    "--model",
    required=True,
    metavar="MODEL",
    help="Folder from `qbert quantize`, checkpoint folder, hub id or built-in model.",
)
@click.option("--variant", metavar="NAME", help="How to run a checkpoint; default: fp32.")
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
    between, and none where there is none. A regressor or ranker gives a score alone. The answer to a blank line has
    neither label nor score (null in JSON), so that the n-th answer is to the n-th line.
    """
    from qbert.inputs.labels import MULTI_LABEL, REGRESSION
    from qbert.variants.serving import TextClassifier

    if not texts and sys.stdin.isatty():
        raise InputError("no text: give some as arguments, or pipe in one a line")
    classifier, source, name = _open(model, variant, dataset, max_length, verify=not no_verify)
    served = TextClassifier.of(source, name, classifier, max_length=max_length)
    several, number = served.problem_type == MULTI_LABEL, served.problem_type == REGRESSION
    key = "score" if number else "labels" if several else "label"
    with _reading(sys.stdin) as stream:
        for line, prediction in _predicted(served, [list(texts)] if texts else _at_hand(stream)):
            text = line.rstrip("\r\n")
            first = text.partition("\t")[0]
            if prediction is None:
                nothing: dict[str, Any] = {"text": text, key: None}
                nothing |= {} if number else {"scores": {}}
                echo(json.dumps(nothing, ensure_ascii=False) if as_json else "\t\t")
            elif as_json:
                answer: dict[str, Any] = {key: list(prediction.labels) if several else prediction.label}
                answer["scores"] = {label: round(score, 6) for label, score in prediction.scores.items()}
                answer = {key: round(prediction.score, 6)} if number else answer
                echo(json.dumps({"text": text} | answer, ensure_ascii=False))
            else:
                scored = ",".join(f"{prediction.scores[label]:.4f}" for label in prediction.labels)
                scored = f"{prediction.score:.4f}" if number else scored
                echo(f"{','.join(prediction.labels)}\t{scored}\t{first[:60]}")


TOGETHER = 1_000
"""Characters of the lines that are classified in one call: more would take longer, and the first answer as well."""


def _at_hand(stream: Any) -> Iterator[list[str]]:  # noqa: ANN401  a text stream
    """Yield the lines of `stream`, as many at once as have arrived.

    Raises:
        UnicodeDecodeError: it is not text; what came before that was yielded.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(stream.encoding)(stream.errors), translate=True)
    line: list[str] = []  # the parts of one that has not ended
    failed = None
    while not failed and (content := stream.buffer.read1(1 << 16)):
        try:
            text = decoder.decode(content)
        except UnicodeDecodeError as error:
            failed, text = error, error.object[: error.start].decode(stream.encoding).replace("\r\n", "\n")
        first, *others = text.split("\n")
        line.append(first)
        if others:
            yield ["".join(line), *others[:-1]]
            line = others[-1:]
    if failed:
        raise failed
    line.append(decoder.decode(b"", final=True))
    if "".join(line):
        yield ["".join(line)]


def _predicted(served: "TextClassifier", arrived: Iterable[list[str]]) -> "Iterator[tuple[str, Prediction | None]]":
    """Yield each line of those that `arrived` together, and its prediction: None of a blank one."""
    for lines in arrived:
        for together in _together(lines) if served.is_batched else [[line] for line in lines]:
            pairs = [line.rstrip("\r\n").partition("\t")[::2] for line in together]
            texts = [(first, second) if second.strip() else (first,) for first, second in pairs]
            yield from zip(together, _answers(served, texts), strict=True)


def _together(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the `lines` that are classified in one call: with TOGETHER characters, or one that has more."""
    together: list[str] = []
    for line in lines:
        if together and sum(map(len, together)) + len(line) > TOGETHER:
            yield together
            together = []
        together.append(line)
    if together:
        yield together


def _answers(served: "TextClassifier", texts: "Sequence[tuple[str, ...]]") -> "Iterator[Prediction | None]":
    """Yield the prediction of each of `texts`; where one cannot be classified, first those of the texts before it."""
    asked = [text for text in texts if text[0].strip()]
    try:
        found = iter(served.many(asked) if len(asked) > 1 else [served(*text) for text in asked])
    except InputError:
        found = (served(*text) for text in asked)
    yield from (next(found) if text[0].strip() else None for text in texts)


@contextlib.contextmanager
def _reading(stream: Any) -> Iterator[Any]:  # noqa: ANN401  a text stream
    try:
        yield stream
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not {error.encoding} text: pipe in UTF-8") from error


def _open(
    model: str, variant: str | None, dataset: str | None, max_length: int | None, *, verify: bool
) -> "tuple[Classifier, Checkpoint | Artefact, str]":
    """Return the classifier of `model`, the artefact or checkpoint that `model` is, and the variant's name."""
    from qbert import variants as table
    from qbert.variants.artefact import Artefact, is_artefact

    if not is_artefact(Path(model)):
        from qbert.inputs import models

        chosen = table.get(variant or table.BASELINE)
        checkpoint, loaded = models.to_serve(model, chosen, dataset, max_length)
        return table.build(chosen, checkpoint, loaded, max_length), checkpoint, chosen.name
    artefact = Artefact.open(Path(model))
    if variant not in (None, artefact.variant):
        raise InputError(f"{model} holds the variant {artefact.variant}: leave out --variant {variant}")
    return artefact.load(verify=verify), artefact, artefact.variant
