"""What different machines answer to the same documents: labels that differ, and how far the logits lie apart."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from qbert.inputs.labels import unpacked_logits

Answers = Mapping[str, Any]
"""What a saved run holds of a cell's answers: saved_run.Answers."""


@dataclass(frozen=True)
class Difference:
    """How the answers of some machines differ."""

    documents: int
    rows: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Of each document whose label is not the same everywhere, by its row in the test split: the label by machine."""
    logit_difference: float | None = None
    """The greatest difference of a logit between two machines; None where a run has kept no logits."""
    logit_row: int | None = None
    """The document that has it."""

    @property
    def flips(self) -> int:
        """How many documents are labelled differently."""
        return len(self.rows)


def compare(answers: Mapping[str, Answers]) -> Difference | None:
    """Compare the `answers` of machines, by their names; None where they are not of the same documents."""
    sides = list(answers.values())
    if len({(side["labels"], side.get("rows", "")) for side in sides}) > 1:
        return None
    predicted = [side["predicted"].split(" ") for side in sides]
    documents = len(predicted[0])
    rows = list(map(int, sides[0]["rows"].split(" "))) if "rows" in sides[0] else list(range(documents))
    names: list[str] = next((side["label_names"] for side in sides if "label_names" in side), [])
    differing = {
        row: tuple(_named(ids, names) for ids in labels)
        for row, *labels in zip(rows, *predicted, strict=True)
        if len(set(labels)) > 1
    }
    if len({side["logits_sha256"] for side in sides}) == 1:
        return Difference(documents, differing, 0.0)
    if not all("logits" in side for side in sides):
        return Difference(documents, differing)
    logits = [unpacked_logits(side, documents) for side in sides]
    apart = np.max([np.abs(one - other).max(axis=1) for one, other in combinations(logits, 2)], axis=0)
    return Difference(documents, differing, float(apart.max()), rows[int(apart.argmax())])


def _named(ids: str, names: list[str]) -> str:
    """Return the label `ids`, as labels.packed writes them, by name where the names are known."""
    known = [names[int(one)] if one != "-" and int(one) < len(names) else one for one in ids.split(",")]
    return "|".join(known) if known != ["-"] else "none"


def sentence(difference: Difference) -> str:
    """Return what differs, with the first documents."""
    most = 5
    said = f"{difference.flips} of {difference.documents} labels differ between machines"
    if difference.rows:
        said += f" (documents {', '.join(map(str, list(difference.rows)[:most]))}{' …' * (difference.flips > most)})"
    if difference.logit_difference is None:
        return f"{said}; logits were not kept"
    if not difference.logit_difference:
        return f"{said}, all logits are equal" if not difference.flips else said
    return f"{said}, logits by {difference.logit_difference:.3g} at most (document {difference.logit_row})"
