"""What a classifier's logits say: which labels a text has, and with what score."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
"""What transformers calls the kinds of heads."""
REGRESSION: ProblemType = "regression"
SINGLE_LABEL: ProblemType = "single_label_classification"
MULTI_LABEL: ProblemType = "multi_label_classification"

Indicators = npt.NDArray[np.bool_]
"""Which labels each document has, `(documents, num_labels)`."""


def predicted(logits: npt.NDArray[np.floating[Any]], problem_type: str) -> Indicators:
    """Return the labels that `logits` `(documents, num_labels)` predict: the highest, or all scored 0.5 and more."""
    if problem_type == MULTI_LABEL:
        return np.asarray(logits >= 0)  # where the sigmoid is 0.5
    return one_hot(logits.argmax(axis=1), logits.shape[1])


def one_hot(ids: npt.NDArray[np.integer[Any]], num_labels: int) -> Indicators:
    """Return the indicators of one label a document, given by its id."""
    return np.asarray(np.eye(num_labels, dtype=bool)[ids])


def scores(logits: npt.NDArray[np.floating[Any]], problem_type: str) -> npt.NDArray[np.floating[Any]]:
    """Return the probability of each label, from 0 to 1, in the shape of `logits`."""
    from scipy import special

    return np.asarray(special.expit(logits) if problem_type == MULTI_LABEL else special.softmax(logits, axis=-1))
