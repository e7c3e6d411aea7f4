"""Whether a variant does the work that is timed: the same input has to get the same answer whenever it comes.

Source: MLPerf Inference's audit: TEST01 holds the answers of timed queries against those of an accuracy run, and TEST04
finds caches by asking the same again (github.com/mlcommons/inference, compliance).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qbert.errors import InputError

Logits = npt.NDArray[np.float32]

TOLERANCE = 1e-3
"""How far two answers to one input may lie apart, as a share of the greater one's greatest logit. Of 12 variants (all
that run on AMD Zen 3 without a compiler) each gave the same bits again, in another order; the answers of a model that
has hardly been trained to two texts may lie 1 % apart."""
LEAST = 1e-6
"""What logits may differ by however small they are."""
SHOWN = 3
REMEMBERED = 2.0
"""From how many times faster on, in every process, an answer is remembered. One that finds BERT-tiny's in a table was
1,200 times faster; one that gives every other call the answer of the one before, 44 times."""


def differing(first: Logits, again: Logits) -> npt.NDArray[np.intp]:
    """Return the rows of `first` and `again`, `(rows, num_labels)`, that are not the same answer."""
    size = np.maximum(np.abs(first), np.abs(again)).max(axis=1)
    same = np.abs(first - again).max(axis=1) <= TOLERANCE * size + LEAST  # false of nan, too
    return np.flatnonzero(~same)


def check_again(
    classify: Callable[..., Logits], rows: Sequence[tuple[str, ...]], numbers: Sequence[Any], first: Logits, what: str
) -> None:
    """Classify every one of `rows` again, in another order, and hold that against the logits `first`.

    `numbers` are what a person knows the documents by; `what` is the cell's name.

    Raises:
        InputError: one has another answer.
    """
    order = np.random.default_rng(0).permutation(len(rows))
    again = np.concatenate([classify(*rows[row]) for row in order])
    for place in differing(first[order], again)[:1]:
        row = order[place]
        raise InputError(
            f"{what} answers document {numbers[row]} with {told(again[place])} when all are asked again in another "
            f"order, and with {told(first[row])} before: an answer has to depend on its own text alone"
        )


def told(logits: Logits) -> str:
    """Return `logits`, `(num_labels,)`, as a sentence holds them: the first SHOWN."""
    return " ".join(f"{logit:.3g}" for logit in logits[:SHOWN]) + (" …" if len(logits) > SHOWN else "")
