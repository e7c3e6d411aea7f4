"""From logits to the labels of a text and their scores."""

import base64
import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
"""The kinds of heads, as transformers names them."""
REGRESSION: ProblemType = "regression"
SINGLE_LABEL: ProblemType = "single_label_classification"
MULTI_LABEL: ProblemType = "multi_label_classification"

IDENTITY = "identity"
ACTIVATIONS: Mapping[str, Callable[[npt.NDArray[np.floating[Any]]], npt.NDArray[np.floating[Any]]]] = {
    IDENTITY: lambda logits: logits,
    "sigmoid": lambda logits: np.exp(-np.logaddexp(0, -logits)),  # without an overflow
    "tanh": np.tanh,
}
"""What can make the one output of a regressor or ranker of its logit, as torch names it in lower case."""

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


def matched(own: Sequence[str], others: Sequence[str]) -> tuple[int, ...] | None:
    """Return where in `others` each name of `own` is; None where that is not clear.

    If not all are the same, case, blanks, hyphens and underscores are ignored, and `LABEL_1` is 1. A list that only
    counts from 0, as transformers names labels by default, is in the order of the other.
    """
    numbers = [str(number) for number in range(len(own))]
    for read in (str, _without_spelling):
        ours, theirs = list(map(read, own)), list(map(read, others))
        if sorted(ours) == sorted(theirs) and len(set(ours)) == len(ours):
            return tuple(map(theirs.index, ours))
    return tuple(range(len(own))) if len(own) == len(others) and numbers in (ours, theirs) else None


def _without_spelling(name: str) -> str:
    words = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name)).strip().casefold()
    return re.sub(r"^label (?=\d+$)", "", words)


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


MOST_BYTES = 150
"""Of a document's logits in a saved run: 200 KB of base64 for 1,000 documents."""


def packed_logits(logits: npt.NDArray[np.float32]) -> dict[str, str]:
    """Return `logits`, `(documents, num_labels)`, as text for a saved run: as they are with up to 37 labels.

    With up to 75 labels they are rounded to 16 bits; with more, or where one is beyond those, nothing is kept.
    """
    kinds: tuple[type[np.floating[Any]], ...] = (np.float32, np.float16)
    with np.errstate(over="ignore"):
        arrays = [logits.astype(kind) for kind in kinds if logits.shape[1] * np.dtype(kind).itemsize <= MOST_BYTES]
    if not arrays or not np.isfinite(arrays[0]).all():
        return {}
    text = base64.b64encode(arrays[0].astype(arrays[0].dtype.newbyteorder("<")).tobytes()).decode()
    return {"logits": text, "logits_type": arrays[0].dtype.name}


def unpacked_logits(answers: Mapping[str, str], documents: int) -> npt.NDArray[np.float32]:
    """Return the logits `(documents, num_labels)` that packed_logits wrote into `answers`.

    Raises:
        ValueError: they are not of that many documents.
    """
    data = base64.b64decode(answers["logits"], validate=True)
    kind = np.dtype(answers["logits_type"]).newbyteorder("<")
    return np.frombuffer(data, kind).reshape(documents, -1).astype(np.float32)


def activated(logits: npt.NDArray[np.floating[Any]], activation: str) -> npt.NDArray[np.floating[Any]]:
    """Return `logits` after the `activation`, one of ACTIVATIONS."""
    return np.asarray(ACTIVATIONS[activation](logits))


def scores(logits: npt.NDArray[np.floating[Any]], problem_type: str) -> npt.NDArray[np.floating[Any]]:
    """Return the probability of each label, from 0 to 1, in the shape of `logits`."""
    if problem_type == MULTI_LABEL:
        return activated(logits, "sigmoid")
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
