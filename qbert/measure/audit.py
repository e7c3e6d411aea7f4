"""Whether a variant does the work that is timed: equal inputs must get equal answers at any time.

Source: MLPerf Inference's audit: TEST01 compares the answers of timed queries with those of an accuracy run, TEST04
finds caches by repeated queries (github.com/mlcommons/inference, compliance).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qbert.system.errors import InputError

Logits = npt.NDArray[np.float32]

TOLERANCE = 1e-3
"""Greatest difference of two answers to one input, as a share of the greatest logit of both. All 12 variants that run
on AMD Zen 3 without a compiler repeated their answers bit by bit in another order; a barely trained model's answers to
two texts may differ by 1 %."""
ABSOLUTE_TOLERANCE = 1e-6
"""Greatest difference of logits, however small they are."""
SHOWN = 3
REMEMBERED = 2.0
"""If repeated texts are faster by more than this factor in every process, answers are remembered. A table of
BERT-tiny's answers was 1,200 times faster, repeating the previous answer in every other call 44 times."""


def differing(first: Logits, again: Logits) -> npt.NDArray[np.intp]:
    """Return the rows in which the answers `first` and `again`, `(rows, num_labels)`, differ."""
    size = np.maximum(np.abs(first), np.abs(again)).max(axis=1)
    same = np.abs(first - again).max(axis=1) <= TOLERANCE * size + ABSOLUTE_TOLERANCE  # also false for nan
    return np.flatnonzero(~same)


def check_again(
    classify: Callable[..., Logits], rows: Sequence[tuple[str, ...]], numbers: Sequence[Any], first: Logits, what: str
) -> None:
    """Classify all `rows` again, in another order, and compare the answers with the logits `first`.

    `numbers` are the documents' numbers for the message; `what` is the cell's name.

    Raises:
        InputError: an answer differs.
    """
    order = np.random.default_rng(0).permutation(len(rows))
    again = np.concatenate([classify(*rows[row]) for row in order])
    for index in differing(first[order], again)[:1]:
        row = order[index]
        raise InputError(
            f"{what} answers document {numbers[row]} with {format_logits(again[index])} when all are asked again in "
            f"another order, and with {format_logits(first[row])} before: an answer has to depend on its own text alone"
        )


def format_logits(logits: Logits) -> str:
    """Return the first SHOWN of `logits`, `(num_labels,)`, as text."""
    return " ".join(f"{logit:.3g}" for logit in logits[:SHOWN]) + (" …" if len(logits) > SHOWN else "")
