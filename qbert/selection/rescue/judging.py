"""The documents that decide, and what the guard says of answers to them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qbert.inputs import dataset as datasets
from qbert.inputs.dataset import Dataset
from qbert.inputs.labels import MULTI_LABEL, predicted
from qbert.inputs.tokenizer import Encoding
from qbert.measure import accuracy
from qbert.measure.accuracy import Comparison
from qbert.measure.cells import Cell
from qbert.selection.kept_answers import KeptAnswers
from qbert.system.errors import InputError
from qbert.system.terminal import progress

if TYPE_CHECKING:
    import pandas as pd

SURE = 0.9  # of the interval whose upper end has to be within the limit: 95 % on that side
FAR = 2.0  # times the greatest error in int8: documents with a wider margin are not asked again until the end

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Documents:
    """Labelled documents, encoded, with the baseline's logits, `(documents, num_labels)`."""

    rows: "pd.DataFrame"
    encodings: list[Encoding]
    baseline: Logits

    def __len__(self) -> int:
        """Return how many they are."""
        return len(self.encodings)

    @property
    def median(self) -> Encoding:
        """The text of median length."""
        return sorted(self.encodings, key=lambda encoding: encoding["input_ids"].shape[1])[len(self) // 2]


def ask(baseline: Cell, rows: "pd.DataFrame", what: str) -> Documents:
    """Return `rows` with the logits of the cell `baseline`."""
    texts = datasets.text_rows(rows)
    encodings = [baseline.encoder(*text, max_length=baseline.max_length) for text in texts]
    return Documents(rows, encodings, answers(baseline, rows, what))


def answers(cell: Cell, rows: "pd.DataFrame", what: str) -> Logits:
    """Return the logits of `cell` for `rows`, those from the cache that an earlier run asked for."""
    texts = datasets.text_rows(rows)
    with progress(f"{cell.variant.name}, {what}", len(texts)) as advance:
        return KeptAnswers(cell).logits(texts, advance)


@dataclass(frozen=True)
class Judgement:
    """What the guard says of some answers."""

    comparison: Comparison
    at_most: float
    """What the F1 drop surely does not exceed."""


@dataclass(frozen=True)
class Judge:
    """The guard."""

    dataset: Dataset
    problem_type: str
    limit: float
    """Of the F1 drop."""

    def judge(self, documents: Documents, logits: Logits) -> Judgement:
        """Compare `logits` with the baseline's."""
        labels = self.dataset.indicators(documents.rows)
        before, after = (predicted(array, self.problem_type) for array in (documents.baseline, logits))
        comparison = accuracy.compare(labels, before, after, multi_label=self.problem_type == MULTI_LABEL)
        _, high = accuracy.f1_drop_interval(labels, before, after, confidence=SURE)
        return Judgement(comparison, max(high, comparison.f1_drop))

    def check_enough(self, documents: Documents) -> None:
        """Raise InputError where `documents` are too few to tell a drop of the limit even if no answer changes."""
        at_most = self.judge(documents, documents.baseline).at_most
        if at_most > self.limit:
            enough = int(np.ceil(len(documents) * at_most / self.limit / 100) * 100)
            raise InputError(
                f"{len(documents)} held-out documents cannot show that F1 drops by {self.limit:g} at most, even if no "
                f"answer changes: it would take about {enough:,} (--documents, more rows or --validation), or a higher "
                "limit"
            )

    def near(self, documents: Documents, plain: Logits) -> "Near":
        """Return those of `documents` whose answer a mix could change; `plain` are the logits in int8.

        No mix has greater errors, by far; a document whose margin is `FAR` times the greatest keeps its answer. Whoever
        relies on that judges all documents in the end.
        """
        greatest = changes(plain, documents.baseline, self.problem_type).max()
        numbers = np.flatnonzero(~(margins(documents.baseline, self.problem_type) > FAR * greatest))
        return Near(self, documents, numbers)


@dataclass(frozen=True)
class Near:
    """Those of some documents whose answer a mix could change."""

    guard: Judge
    documents: Documents
    numbers: npt.NDArray[np.intp]

    @property
    def encodings(self) -> list[Encoding]:
        """The documents as a mix takes them."""
        return [self.documents.encodings[number] for number in self.numbers]

    @property
    def baseline(self) -> Logits:
        """The baseline's logits of them."""
        return self.documents.baseline[self.numbers]

    def judge(self, logits: Logits) -> Judgement:
        """Compare `logits` of these documents, and the baseline's of the others, with the baseline's."""
        every = self.documents.baseline.copy()
        every[self.numbers] = logits
        return self.guard.judge(self.documents, every)


def squared_errors(logits: Logits, reference: Logits) -> npt.NDArray[np.float64]:
    """Return each text's squared distance of `logits` from `reference`, both `(texts, num_labels)`.

    What is the same for all labels of a text changes no answer, and is no error.
    """
    difference = logits.astype(np.float64) - reference
    return np.asarray(((difference - difference.mean(axis=1, keepdims=True)) ** 2).sum(axis=1))


def margins(logits: Logits, problem_type: str) -> npt.NDArray[np.float64]:
    """Return by how much each document's logits may change before its answer can."""
    if problem_type == MULTI_LABEL:
        return np.asarray(np.abs(logits.astype(np.float64)).min(axis=1))
    second, first = np.partition(logits.astype(np.float64), -2, axis=1)[:, -2:].T
    return np.asarray(first - second)


def changes(logits: Logits, reference: Logits, problem_type: str) -> npt.NDArray[np.float64]:
    """Return by how much each document's logits differ from `reference`, to be held against `margins`."""
    difference = logits.astype(np.float64) - reference
    return np.asarray(np.abs(difference).max(axis=1) if problem_type == MULTI_LABEL else np.ptp(difference, axis=1))
