"""The documents that decide, and the guard of answers to them."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qbert.inputs import dataset as datasets
from qbert.inputs.dataset import Dataset
from qbert.inputs.metrics import Metric
from qbert.inputs.tokenizer import Encoding
from qbert.measure import accuracy
from qbert.measure.accuracy import Comparison
from qbert.measure.cells import Cell
from qbert.measure.stats import CONFIDENCE, bonferroni
from qbert.selection.kept_answers import KeptAnswers
from qbert.system.errors import InputError
from qbert.system.terminal import progress

if TYPE_CHECKING:
    import pandas as pd

LOOKS = 10
"""The mixes that are judged by the same documents: plain int8, all in float, and a bisection of up to 256 layers."""
FAR = 2.0  # times the greatest error in int8: documents with a wider margin are not asked again until the end

Logits = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Documents:
    """Labelled documents, encoded, with the baseline's logits, `(documents, num_labels)`."""

    rows: "pd.DataFrame"
    encodings: list[Encoding]
    baseline: Logits

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.encodings)

    @property
    def median(self) -> Encoding:
        """The text of median length."""
        return sorted(self.encodings, key=lambda encoding: encoding["input_ids"].shape[1])[len(self) // 2]


def ask(baseline: Cell, rows: "pd.DataFrame", what: str) -> Documents:
    """Return `rows` with the logits of the cell `baseline`."""
    encodings = [baseline.encoder(*text, max_length=baseline.max_length) for text in datasets.text_rows(rows)]
    return Documents(rows, encodings, answers(baseline, rows, what))


def answers(cell: Cell, rows: "pd.DataFrame", what: str) -> Logits:
    """Return the logits of `cell` for `rows`, those from the cache that an earlier run asked for."""
    texts = datasets.text_rows(rows)
    with progress(f"{cell.variant.name}, {what}", len(texts)) as advance:
        return KeptAnswers(cell).logits(texts, advance)


@dataclass(frozen=True)
class Judge:
    """The guard: the drop has to be surely within `limit`, however many of LOOKS mixes are judged."""

    dataset: Dataset
    metric: Metric
    limit: float

    def judge(self, documents: Documents, logits: Logits, numbers: Numbers | None = None) -> Comparison:
        """Compare `logits` with the baseline's; they are of the documents `numbers`, the others' are the baseline's."""
        every = documents.baseline.copy()
        every[slice(None) if numbers is None else numbers] = logits
        truth = self.metric.truth(self.dataset, documents.rows)
        before, after = (self.metric.answers(array) for array in (documents.baseline, every))
        comparison = accuracy.compare(truth, before, after, self.metric)
        surely = self.metric.paired(truth, before, after).at_most(bonferroni(CONFIDENCE, LOOKS))
        return replace(comparison, drop_at_most=surely)

    def holds(self, judged: Comparison) -> bool:
        """Whether the drop is surely within the limit."""
        return judged.drop_at_most <= self.limit

    def check_enough(self, documents: Documents) -> None:
        """Raise InputError where `documents` are too few to tell a drop of the limit even if no answer changes."""
        at_most = self.judge(documents, documents.baseline).drop_at_most
        if at_most > self.limit:
            enough = int(np.ceil(len(documents) * at_most / self.limit / 100) * 100)
            raise InputError(
                f"{len(documents)} held-out documents cannot show that {self.metric.short} drops by {self.limit:g} at "
                f"most, even if no answer changes: it would take about {enough:,} (--documents, more rows or "
                "--validation), or a higher limit"
            )

    def near(self, documents: Documents, plain: Logits) -> Numbers:
        """Return the numbers of the `documents` whose answer a mix could change; `plain` are the logits in int8.

        No mix has greater errors, by far; a document whose margin is `FAR` times the greatest keeps its answer. Whoever
        relies on that judges all documents in the end.
        """
        greatest = self.metric.changes(plain, documents.baseline).max()
        return np.flatnonzero(~(self.metric.margins(documents.baseline) > FAR * greatest))

    def squared_errors(self, logits: Logits, reference: Logits) -> npt.NDArray[np.float64]:
        """Return each text's squared distance of `logits` from `reference`, both `(texts, num_labels)`.

        What changes no answer is no error.
        """
        return np.asarray((self.metric.errors(logits, reference) ** 2).sum(axis=1))
