"""The functions for notebooks and services; each does the same as the command of its name."""

import collections
import functools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from qbert.system.errors import InputError, lacking, reason

if TYPE_CHECKING:
    import pandas as pd

    from qbert.variants.serving import TextClassifier

Given = ParamSpec("Given")
Answer = TypeVar("Answer")

MOST_CHARACTERS = 100_000
"""The default of the longest text that a loaded classifier takes: about fifty pages."""


def _needs(extra: str) -> Callable[[Callable[Given, Answer]], Callable[Given, Answer]]:
    """Make a function raise, where a package is missing, an error that says to install `extra`."""

    def decorate(function: Callable[Given, Answer]) -> Callable[Given, Answer]:
        @functools.wraps(function)
        def call(*args: Given.args, **kwargs: Given.kwargs) -> Answer:
            try:
                return function(*args, **kwargs)
            except ModuleNotFoundError as error:
                raise lacking(error, f"qbert.{function.__name__}", extra) from error

        return call

    return decorate


def load(
    folder: str | os.PathLike[str],
    *,
    max_length: int | None = None,
    max_characters: int | None = MOST_CHARACTERS,
    verify: bool = True,
) -> "TextClassifier":
    """Return the classifier in a folder that `qbert quantize` wrote.

    Args:
        folder: the artefact.
        max_length: tokens at which texts are cut off; default: the length at which the model was trained.
        max_characters: the longest text that it takes; None for any.
        verify: whether to check the checksums of the files first (0.75 s for each GB on AMD Zen 3).

    Raises:
        InputError: the folder is no artefact, is damaged, cannot run here, or does not take `max_length` tokens.
    """
    from qbert.variants.artefact import Artefact
    from qbert.variants.serving import TextClassifier

    try:
        artefact = Artefact.open(Path(folder))
        classifier = artefact.load(verify=verify)
        return TextClassifier.of(
            artefact, artefact.variant, classifier, max_length=max_length, max_characters=max_characters
        )
    except InputError:
        raise
    except (ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:  # of what is around it
        raise InputError(f"{os.fspath(folder)} cannot be loaded here ({reason(error)})") from error


@_needs("quantize")
def quantize(
    model: str | os.PathLike[str],
    variant: str,
    output: str | os.PathLike[str],
    *,
    dataset: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    kernels: Sequence[str] = (),
) -> Path:
    """Write a model as one variant to the folder `output`, which `load` reads, and return its path.

    Args:
        model: checkpoint folder, hub id or built-in model.
        variant: its name, one of `qbert variants`.
        output: the folder to write.
        dataset: folder of the dataset that a calibrated variant sees, or a built-in model learns.
        max_length: tokens at which texts are cut off; default: the length at which the model was trained.
        kernels: of `int8-native`, each by its name (docs/native.md): where one of these runs, processes share the
            weights although no cache can be written.

    Raises:
        InputError: something cannot be used, the variant cannot run here, or `output` exists already.
    """
    from qbert import variants
    from qbert.inputs import models
    from qbert.system.cache import build_folder, is_filled

    source, target, texts = os.fspath(model), Path(output), None if dataset is None else os.fspath(dataset)
    chosen = variants.get(variant)
    if is_filled(target):
        raise InputError(f"{target} exists already: remove it or name another folder")
    if kernels and not chosen.kernels:
        raise InputError(f"variant {variant} has no kernels of ours to pack weights for: leave out --for (kernels)")
    if unknown := set(kernels) - set(chosen.kernels):
        raise InputError(f"no kernel is called {min(unknown)!r} (--for): there are {', '.join(chosen.kernels)}")
    checkpoint, loaded = models.to_serve(source, chosen, texts, max_length)
    checkpoint.check_trained(source)
    if max_length is not None:
        checkpoint.check_length(max_length)
    build_folder(target, lambda stage: variants.write_artefact(chosen, checkpoint, stage, loaded, max_length, kernels))
    return target


@_needs("bench")
def choose(
    model: str | os.PathLike[str],
    dataset: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    max_drop: float = 0.01,
    variants: str | Sequence[str] = "default",
    validation: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    max_f1_drop: float | None = None,
) -> dict[str, Any]:
    """Write the fastest variant that holds the guard on this machine to the folder `output`, which `load` reads.

    Args:
        model: checkpoint folder, hub id or built-in model.
        dataset: folder of the dataset.
        output: the folder to write; it is not written if no variant holds.
        max_drop: the guard; with 0 no label, or order, may change.
        variants: names, also `default` and `all`.
        validation: file like train.csv to choose by, of documents that the model has not seen; default: half of train.
        max_length: tokens at which texts are cut off; default: the length at which the model was trained.
        max_f1_drop: the former name of `max_drop`.

    Returns:
        What the command writes with `--json`: `chosen` (None if no variant holds), `sentence`, `variants`, `test` and
        others.

    Raises:
        InputError: something cannot be used, no variant runs here, or `output` exists already.
    """
    from qbert.selection import choosing

    max_drop = max_drop if max_f1_drop is None else max_f1_drop
    if not 0 <= max_drop <= 1:
        raise InputError(f"max_drop is {max_drop!r}: give a number from 0 to 1")
    found = choosing.choose(
        os.fspath(model),
        os.fspath(dataset),
        _listed(variants),
        Path(output),
        choosing.Wanted(max_drop),
        validation=None if validation is None else Path(validation),
        max_length=max_length,
    )
    return found.to_record()


@_needs("train")
def train(
    dataset: str | os.PathLike[str],
    base: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    max_length: int = 384,
    seed: int = 0,
    vocab: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    warmup: float | None = None,
) -> dict[str, float]:
    """Fine-tune `base` on a dataset, or train it from scratch; write the checkpoint to `output`.

    Args:
        dataset: folder of the dataset.
        base: hub id or folder with weights, or, from scratch, `bert-tiny`, `-mini`, `-small`, `-medium`, `-base`.
        output: the folder to write.
        max_length: tokens at which texts are cut off.
        seed: of all random numbers.
        vocab: file of a WordPiece vocabulary to use instead of learning one.
        epochs: pretrained: 3; from scratch: until 6,400 texts were seen, at least 3.
        learning_rate: pretrained: 5e-5; from scratch: 1e-3.
        batch_size: pretrained: 32; from scratch: 16.
        warmup: share of the steps over which the learning rate rises; pretrained: 0.2; from scratch: 0.1.

    Returns:
        The metrics: `test_weighted_f1` (for numbers `test_pearson_correlation` or `test_ndcg_at_10`), `seconds` and
        others of the training.

    Raises:
        InputError: something cannot be used, or `output` exists already.
    """
    import dataclasses

    from qbert.inputs import dataset as datasets
    from qbert.inputs import training

    loaded = datasets.load(os.fspath(dataset))
    recipe = training.recipe_for(os.fspath(base), len(loaded.train))
    given = {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "warmup": warmup}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    checkpoint = training.train(
        loaded,
        os.fspath(base),
        Path(output),
        max_length=max_length,
        seed=seed,
        vocab=None if vocab is None else Path(vocab),
        recipe=dataclasses.replace(recipe, **changes),
    )
    return checkpoint.record["metrics"]


@_needs("bench")
def evaluate(
    model: str | os.PathLike[str],
    dataset: str | os.PathLike[str] = "news_mini",
    *,
    variants: str | Sequence[str] = "default",
    max_length: int | None = None,
    documents: int | None = None,
    cluster: str | None = None,
) -> "pd.DataFrame":
    """Classify a dataset's test documents with each variant: a row for each, with score, drop, flips and times.

    Args:
        model: checkpoint folder, hub id or built-in model.
        dataset: folder of the dataset.
        variants: names, also `default` and `all`.
        max_length: tokens at which texts are cut off; default: the length at which the model was trained.
        documents: size of a sample of the test documents to judge by; default: all.
        cluster: a Dask scheduler's address or file, or `local:N`: its workers share the documents.

    Returns:
        Columns `model`, `max_length`, `variant`, those of accuracy.Comparison (`f1`, `f1_drop`, `flips` and so on; of
        regressors `pearson` and its like, of rankers `ndcg`),
        `p50_s` and, where there are enough documents, `p95_s` and `p99_s`, `flipped` (the documents), `identity` (what
        was measured on what), and `cannot`: why a variant that `default` or `all` includes cannot run.

    Raises:
        InputError: something cannot be used, or a variant that was named cannot run.
    """
    import pandas as pd

    from qbert.cluster.judging import workers_at
    from qbert.selection import evaluation
    from qbert.variants import named, select

    names = _listed(variants)
    with workers_at(cluster, [package for variant in select(names) for package in variant.packages]) as workers:
        evaluated = evaluation.evaluate(os.fspath(model), os.fspath(dataset), names, max_length, documents, workers)
    for row in evaluated.results:
        if "cannot" in row and row["variant"] in named(names):
            raise InputError(row["cannot"])
    return pd.DataFrame(evaluated.results)


@_needs("bench")
def benchmark(
    model: str | os.PathLike[str] | Sequence[str],
    dataset: str | os.PathLike[str] = "news_mini",
    *,
    variants: str | Sequence[str] = "default",
    max_lengths: Sequence[int] = (128, 256, 384),
    seconds_per_cell: float | None = None,
) -> "pd.DataFrame":
    """Run `qbert bench` in a process of its own; return a row for each model, length and variant.

    Args:
        model: checkpoint folder, hub id or built-in model, or several.
        dataset: folder of the dataset.
        variants: names, also `default` and `all`.
        max_lengths: tokens.
        seconds_per_cell: seconds for which each latency cell is measured; default: 1.5.

    Returns:
        The columns of `runs`.

    Raises:
        InputError: something cannot be used, or nothing could be measured.
    """
    from qbert.results import history

    with tempfile.TemporaryDirectory() as place:
        saved = Path(place) / "run.json"
        arguments = bench_arguments(model, dataset, variants, max_lengths, seconds_per_cell)
        last_line = _bench([*arguments, f"--benchmark-json={saved}"])
        if not saved.is_file() or not saved.stat().st_size:
            raise InputError(f"nothing was measured: {last_line}")
        return history.own_names(history.load([saved]))


def bench_arguments(
    model: str | os.PathLike[str] | Sequence[str],
    dataset: str | os.PathLike[str],
    variants: str | Sequence[str],
    max_lengths: Sequence[int],
    seconds_per_cell: float | None,
) -> list[str]:
    """Return the arguments of `qbert bench` that ask for these cells."""
    models = [os.fspath(model)] if isinstance(model, str | os.PathLike) else model
    arguments = [f"--model={name}" for name in models]
    arguments += [f"--dataset={os.fspath(dataset)}", f"--variants={_listed(variants)}"]
    arguments.append(f"--max-lengths={','.join(map(str, max_lengths))}")
    if seconds_per_cell is not None:
        arguments.append(f"--seconds-per-cell={seconds_per_cell}")
    return arguments


def _bench(arguments: Sequence[str]) -> str:
    """Run `qbert bench` with a progress bar; return the last line that it printed."""
    from qbert.system import children
    from qbert.system.terminal import progress

    path = os.pathsep.join(entry for entry in sys.path if entry)
    with (
        progress("benchmark", 100) as advance,
        subprocess.Popen(  # noqa: S603  our own command
            [sys.executable, "-m", "qbert", "bench", *arguments],
            **children.tied(PYTHONPATH=path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        last: collections.deque[str] = collections.deque(maxlen=1)
        for line in process.stdout or ():
            last.extend(text for text in [line.strip()] if text)
            if percent := re.search(r"\[ *(\d+)%\]$", line.rstrip()):  # pytest's, at the end of a line
                advance(int(percent[1]))
    return last[0] if last else f"exit code {process.returncode}"


@_needs("report")
def runs(*saved: str | os.PathLike[str]) -> "pd.DataFrame":
    """Return saved runs as `qbert history` and `qbert report` read them: a row for each cell of each run.

    Args:
        saved: files of `--benchmark-json`, or one folder that `--benchmark-autosave` filled; default: .benchmarks.

    Returns:
        Columns `file`, `when`, `machine`, `dataset`, `commit`, `model`, `max_length`, `variant`, `median_s`, `speedup`
        with its interval, `f1`, `f1_drop`, `disk_bytes` and others, missing where a run did not measure them. Runs of a
        folder that cannot be read, or whose guards failed, are left out, and a warning says so.

    Raises:
        InputError: there is no saved run, or a named file is no run of this suite.
    """
    import warnings

    from qbert.results import history

    paths = [Path(path) for path in saved] or [history.STORAGE]
    if len(paths) == 1 and not paths[0].is_file():
        table, left_out = history.stored(paths[0])
        for sentence in left_out:
            warnings.warn(f"left out: {sentence}", stacklevel=2)
        return history.own_names(table)
    return history.own_names(history.load(paths))


def _listed(names: str | Sequence[str]) -> str:
    return names if isinstance(names, str) else ",".join(names)
