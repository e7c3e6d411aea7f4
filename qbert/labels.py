"""From logits to the labels of a text and their scores."""

import hashlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
"""The kinds of heads, as transformers names them."""
REGRESSION: ProblemType = "regression"
SINGLE_LABEL: ProblemType = "single_label_classification"
MULTI_LABEL: ProblemType = "multi_label_classification"

Indicators = npt.NDArray[np.bool_]
"""Which labels each document has; the shape is `(documents, num_labels)`."""


def predicted(logits: npt.NDArray[np.floating[Any]], problem_type: str) -> Indicators:
    """Return the labels that `logits` `(documents, num_labels)` predict: the highest, or all scored 0.5 and more."""
    if problem_type == MULTI_LABEL:
        return np.asarray(logits >= 0)  # where the sigmoid is 0.5
    return one_hot(logits.argmax(axis=1), logits.shape[1])


def one_hot(ids: npt.NDArray[np.integer[Any]], num_labels: int) -> Indicators:
    """Return the indicators of one label a document, given by its id."""
    return np.asarray(np.eye(num_labels, dtype=bool)[ids])


def packed(indicators: Indicators) -> str:
    """Return the ids of each document's labels as text: commas between ids, blanks between documents, `-` for none."""
    return " ".join(",".join(map(str, np.flatnonzero(row))) or "-" for row in indicators)


def unpacked(text: str, num_labels: int) -> Indicators:
    """Return the indicators that `packed` wrote as `text`."""
    indicators = np.zeros((len(documents := text.split(" ")), num_labels), dtype=bool)
    for row, ids in zip(indicators, documents, strict=True):
        row[[int(label) for label in ids.split(",") if label != "-"]] = True
    return indicators


def answers(labels: Indicators, predicted: Indicators, logits: npt.NDArray[np.float32]) -> dict[str, str]:
    """Return what a saved run or a side of the gate records of its answers: true and predicted labels, and a hash."""
    return {
        "labels": packed(labels),
        "predicted": packed(predicted),
        "logits_sha256": hashlib.sha256(logits.tobytes()).hexdigest(),
    }


def scores(logits: npt.NDArray[np.floating[Any]], problem_type: str) -> npt.NDArray[np.floating[Any]]:
    """Return the probability of each label, from 0 to 1, in the shape of `logits`."""
    if problem_type == MULTI_LABEL:
        positive = np.exp(-np.logaddexp(0, -logits))  # the sigmoid, without an overflow
        return np.asarray(positive)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
