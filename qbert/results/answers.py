"""What different machines answer to the same documents: what differs, and how far the logits lie apart."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from qbert.inputs import metrics
from qbert.inputs.labels import unpacked_logits

Answers = Mapping[str, Any]
"""What a saved run holds of a cell's answers: saved_run.Answers."""


@dataclass(frozen=True)
class Difference:
    """How the answers of some machines differ."""

    documents: int
    rows: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Each answer that is not the same everywhere, by machine; by its document's row in the test split."""
    logit_difference: float | None = None
    """The greatest difference of a logit between two machines; None where a run has kept no logits."""
    logit_row: int | None = None
    """The document that has it."""
    answers: int = 0
    """How many there are that could differ: of each document or each query."""
    changed: str = ""
    """What those are called; empty where any answer differs a little."""

    @property
    def flips(self) -> int:
        """How many answers differ."""
        return len(self.rows)


def compare(answers: Mapping[str, Answers]) -> Difference | None:
    """Compare the `answers` of machines, by their names; None where they are not of the same documents."""
    sides = list(answers.values())
    if len({tuple(side.get(name, "") for name in ("labels", "queries", "rows")) for side in sides}) > 1:
        return None
    metric = metrics.of_records(*sides)
    named: list[str] = next((side["label_names"] for side in sides if "label_names" in side), [])
    said = [metric.in_words({**side, "label_names": named}) for side in sides]
    documents = len(sides[0]["labels"].split(" "))
    rows = list(map(int, sides[0]["rows"].split(" "))) if "rows" in sides[0] else list(range(documents))
    differing = {
        rows[place]: tuple(words for _, words in by_machine)
        for by_machine in zip(*said, strict=True)
        for place in [by_machine[0][0]]
        if len({words for _, words in by_machine}) > 1
    }
    difference = Difference(documents, differing, answers=len(said[0]), changed=metric.changed)
    if len({side["logits_sha256"] for side in sides}) == 1:
        return replace(difference, logit_difference=0.0)
    if not all("logits" in side for side in sides):
        return difference
    logits = [unpacked_logits(side, documents) for side in sides]
    apart = np.max([np.abs(one - other).max(axis=1) for one, other in combinations(logits, 2)], axis=0)
    return replace(difference, logit_difference=float(apart.max()), logit_row=rows[int(apart.argmax())])


def sentence(difference: Difference) -> str:
    """Return what differs, with the first documents."""
    most, logits = 5, difference.logit_difference
    apart = f"by {logits:.3g} at most (document {difference.logit_row})" if logits else ""
    if not difference.changed:
        return f"outputs differ between machines {apart}" if apart else "the outputs of the machines are equal"
    said = f"{difference.flips} of {difference.answers} {difference.changed} differ between machines"
    if difference.rows:
        said += f" (documents {', '.join(map(str, list(difference.rows)[:most]))}{' …' * (difference.flips > most)})"
    if logits is None:
        return f"{said}; logits were not kept"
    if not logits:
        return f"{said}, all logits are equal" if not difference.flips else said
    return f"{said}, logits {apart}"
