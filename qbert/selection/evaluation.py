"""Judge the variants of a model by a dataset's test documents, one by one: `qbert evaluate`."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from qbert import variants
from qbert.inputs import dataset as datasets
from qbert.inputs import models
from qbert.inputs.dataset import text_rows
from qbert.measure import accuracy
from qbert.measure.cells import Cell, Suite
from qbert.system.errors import CannotRunError, InputError
from qbert.system.terminal import progress

if TYPE_CHECKING:
    import pandas as pd

Logits = npt.NDArray[np.float32]
Seconds = npt.NDArray[np.float64]


class Workers(Protocol):
    """Processes that classify documents in place of this one, such as those of a cluster."""

    notes: list[str]
    """What is to be said of them."""
    identity: dict[str, Any]
    """What their results are of, where their machines are alike."""

    def classify(
        self, cell: Cell, texts: Sequence[tuple[str, ...]], advance: Callable[[int], None]
    ) -> tuple[Logits, Seconds, Mapping[str, Any]]:
        """Return logits `(texts, num_labels)`, the seconds of each text, and the classifier's evidence."""


@dataclass(frozen=True)
class Evaluation:
    """The results of one model."""

    model: str
    dataset: str
    documents: int
    max_length: int
    results: list[dict[str, Any]]
    """A row for each variant; if it cannot run this model, `cannot` gives the reason."""
    notes: list[str] = field(default_factory=list)
    """What is to be said of the workers."""

    def check_named(self, names: str) -> None:
        """Raise InputError if a variant that the list `names` gives by name, not by `default` or `all`, cannot run.

        The message names the variants; the reasons are in `results`.
        """
        wanted = variants.named(names)
        if failed := [row["variant"] for row in self.results if "cannot" in row and row["variant"] in wanted]:
            raise InputError(
                f"{', '.join(failed)} cannot be judged on {self.model}, as said above: leave out what cannot run"
            )


def evaluate(
    model: str,
    dataset: str,
    names: str,
    max_length: int | None = None,
    documents: int | None = None,
    workers: Workers | None = None,
) -> Evaluation:
    """Classify the test documents of `dataset` with fp32 and each variant of the list `names`.

    The `workers`, where they are given, classify in place of this process.

    Raises:
        InputError: model, dataset, a name or the length cannot be used, or the workers fail.
    """
    chosen = sorted(variants.select(names), key=lambda variant: variant.name != variants.BASELINE)
    loaded = datasets.load(dataset)
    max_length = max_length or models.max_length_of(model)
    suite = Suite(loaded, [model], max_lengths=[max_length])
    (name,) = suite.models
    rows = loaded.documents(documents)
    results: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        suite.checkpoint(suite.models[name], max_length).check_trained(model)  # an error of the model is no variant's
        cells = [suite.cell(name, max_length, variant.name) for variant in chosen]
        if workers is None:
            suite.make(cells)
        advance = stack.enter_context(progress(chosen[0].name, len(rows) * len(chosen)))
        for number, cell in enumerate(cells):
            advance_here = partial(_advance, advance, number * len(rows), cell.variant.name)
            try:
                logits, seconds, described = _judge(cell, rows, workers, advance_here)
                accuracy.check_finite(logits, cell.name)
            except CannotRunError as error:
                if cell.is_baseline:
                    raise
                results.append(
                    {"model": name, "max_length": max_length, "variant": cell.variant.name, "cannot": str(error)}
                )
                continue
            comparison, flips = cell.judge(rows, logits)
            times = accuracy.percentiles(seconds) if len(seconds) else {}
            results.append(described | comparison.record() | times | {"flipped": flips})
    return Evaluation(name, loaded.name, len(rows), max_length, results, workers.notes if workers else [])


def _advance(advance: Callable[..., None], before: int, what: str, done: int) -> None:
    advance(before + done, what)


def _judge(
    cell: Cell, documents: "pd.DataFrame", workers: Workers | None, advance: Callable[[int], None]
) -> tuple[Logits, Seconds, dict[str, Any]]:
    """Return the logits and seconds of `documents`, and what the cell is."""
    if workers is not None:
        logits, seconds, evidence = workers.classify(cell, text_rows(documents), advance)
        described = cell.describe(evidence)
        described["identity"] |= workers.identity
        return logits, seconds, described
    classifier = cell.classifier
    logits, seconds = accuracy.run(classifier, cell.encoder, documents, cell.max_length, advance)
    return logits, seconds, cell.describe(classifier.evidence)
