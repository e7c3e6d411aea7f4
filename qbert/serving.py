"""A classifier that answers texts with labels: what `qbert.load` returns, and `qbert predict` asks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qbert import labels
from qbert.artefact import Artefact
from qbert.errors import InputError

if TYPE_CHECKING:
    from qbert.checkpoint import Checkpoint
    from qbert.variants.base import Classifier

SHOWN = 60
"""Characters of a text that an error quotes."""


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one text."""

    labels: tuple[str, ...]
    """The labels that the text has, highest score first: one; of a multi-label model any number."""
    scores: Mapping[str, float]
    """The score of every label from 0 to 1, highest first: softmax; of a multi-label model each label's sigmoid."""

    @property
    def label(self) -> str | None:
        """The first of `labels`; None where a multi-label model gives the text none."""
        return self.labels[0] if self.labels else None

    @property
    def score(self) -> float:
        """The highest score."""
        return next(iter(self.scores.values()))


@dataclass(frozen=True)
class TextClassifier:
    """A loaded model that classifies texts; threads may share it."""

    folder: Path
    variant: str
    """The name of the variant that it runs as."""
    labels: tuple[str, ...]
    """The names of its labels, in the order of the logits."""
    problem_type: str
    """`single_label_classification`, or `multi_label_classification`, where a text has any number of labels."""
    max_length: int
    """Tokens at which a text is cut off."""
    positions: int
    """The greatest `max_length` that it takes."""
    max_characters: int | None
    """The longest text that it takes; None for any."""
    versions: Mapping[str, str]
    """Of Python and the libraries that made it."""
    _classifier: "Classifier"
    _opened: "Artefact | Checkpoint"

    @classmethod
    def of(
        cls,
        opened: "Artefact | Checkpoint",
        variant: str,
        classifier: "Classifier",
        *,
        max_length: int | None = None,
        max_characters: int | None = None,
    ) -> "TextClassifier":
        """Return `classifier`, which runs `opened` as `variant`, with the tokenizer and the labels of `opened`.

        Raises:
            InputError: its head was never trained, or it does not take texts of `max_length` tokens.
        """
        if not opened.trained:
            raise InputError(
                f"{opened.folder} has no trained classification head, so its labels would be random: train it first"
            )
        max_length = opened.max_length if max_length is None else max_length
        opened.check_length(max_length)
        return cls(
            folder=opened.folder,
            variant=variant,
            labels=opened.labels,
            problem_type=opened.problem_type,
            max_length=max_length,
            positions=opened.positions,
            max_characters=max_characters,
            versions=opened.versions if isinstance(opened, Artefact) else opened.record.get("versions", {}),
            _classifier=classifier,
            _opened=opened,
        )

    def __call__(self, text: str, text_pair: str | None = None) -> Prediction:
        """Classify one text, or a pair of texts.

        Raises:
            InputError: it is no text, blank or longer than `max_characters`, or the model answers with nan.
        """
        self._check(text)
        if text_pair is not None:
            self._check(text_pair)
        logits = self._classifier(self._opened.encoder(text, text_pair, max_length=self.max_length))
        if not np.isfinite(logits).all():
            raise InputError(
                f"{self.folder} answers with nan or infinity to {text[:SHOWN]!r}: train or quantize it again"
            )
        scores = labels.scores(logits, self.problem_type)[0]
        found = labels.predicted(logits, self.problem_type)[0]
        ranked = scores.argsort(kind="stable")[::-1]
        return Prediction(
            tuple(self.labels[label] for label in ranked if found[label]),
            {self.labels[label]: float(scores[label]) for label in ranked},
        )

    def many(self, texts: Iterable[str | tuple[str, str]]) -> list[Prediction]:
        """Classify each of `texts`, which are texts or pairs of texts, one after the other.

        Raises:
            InputError: as for one text; which of them is said.
        """
        if isinstance(texts, str):
            raise InputError(f"{texts[:SHOWN]!r} is one text: call the classifier with it, and `many` with a list")
        found = []
        for number, text in enumerate(texts):
            try:
                found.append(self(*text) if isinstance(text, tuple) else self(text))
            except (InputError, TypeError) as error:  # TypeError: more or fewer than two
                raise InputError(f"text {number} (from 0): {error}") from error
        return found

    def _check(self, text: str) -> None:
        """Raise InputError where `text` cannot be classified."""
        if not isinstance(text, str):
            raise InputError(f"{text!r:.60} is a {type(text).__name__}: give a text (str), or a pair of texts")
        if not text.strip():
            raise InputError("the text is blank: give one that says something")
        if self.max_characters is not None and len(text) > self.max_characters:
            raise InputError(f"the text has {len(text):,} characters: give at most {self.max_characters:,}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text has half a character at {error.start} ({text[error.start]!r}): decode it as what it is"
            ) from error
