"""A classifier, regressor or ranker of texts: what `qbert.load` returns and `qbert predict` uses."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qbert.inputs import labels
from qbert.system.errors import InputError, untrained
from qbert.variants.artefact import Artefact

if TYPE_CHECKING:
    import numpy.typing as npt

    from qbert.inputs.checkpoint import Checkpoint
    from qbert.inputs.tokenizer import Encoding
    from qbert.variants.base import Classifier

SHOWN = 60
"""How many characters of a text an error quotes."""


TEXTS_AT_ONCE = 256
"""How many texts `many` encodes before it answers them."""


@contextlib.contextmanager
def _numbered(number: int) -> Iterator[None]:
    """Name the text of that number in an error."""
    try:
        yield
    except (InputError, TypeError) as error:  # TypeError: more or fewer than two
        raise InputError(f"text {number} (from 0): {error}") from error


@dataclass(frozen=True)
class Prediction:
    """A classifier's answer to one text."""

    labels: tuple[str, ...]
    """The labels of the text, highest score first: one, of a multi-label model any number, of a regressor none."""
    scores: Mapping[str, float]
    """The score of every label, 0 to 1, highest first: the softmax, or of a multi-label model each sigmoid.

    Of a regressor or ranker, its one output after its activation.
    """

    @property
    def label(self) -> str | None:
        """The first of `labels`; None where a multi-label model gives no label, and of a regressor."""
        return self.labels[0] if self.labels else None

    @property
    def score(self) -> float:
        """The highest score; of a regressor or ranker its output."""
        return next(iter(self.scores.values()))


@dataclass(frozen=True)
class TextClassifier:
    """A loaded model that classifies texts; threads may share it."""

    folder: Path
    variant: str
    """The name of the variant that it runs."""
    labels: tuple[str, ...]
    """The names of its labels, in the order of the logits."""
    problem_type: str
    """`single_label_classification`, `multi_label_classification` with any number of labels a text, or `regression`."""
    activation: str
    """What makes a regressor's output of its logit: `identity`, `sigmoid` or `tanh`."""
    max_length: int
    """Tokens at which a text is cut off."""
    positions: int
    """The greatest `max_length` that it takes."""
    max_characters: int | None
    """The most characters that a text may have; None for any number."""
    versions: Mapping[str, str]
    """The versions of Python and the libraries that made it."""
    _classifier: "Classifier"
    _source: "Artefact | Checkpoint"

    @property
    def is_batched(self) -> bool:
        """Whether `many` classifies several texts in one call."""
        return self._classifier.run_many is not None

    @classmethod
    def of(
        cls,
        source: "Artefact | Checkpoint",
        variant: str,
        classifier: "Classifier",
        *,
        max_length: int | None = None,
        max_characters: int | None = None,
    ) -> "TextClassifier":
        """Return `classifier`, which runs `source` as `variant`, with the tokenizer and the labels of `source`.

        Raises:
            InputError: its head was never trained, or it does not take texts of `max_length` tokens.
        """
        if not source.trained:
            raise untrained(source.folder)
        max_length = source.max_length if max_length is None else max_length
        source.check_length(max_length)
        return cls(
            folder=source.folder,
            variant=variant,
            labels=source.labels,
            problem_type=source.problem_type,
            activation=source.activation,
            max_length=max_length,
            positions=source.positions,
            max_characters=max_characters,
            versions=source.versions if isinstance(source, Artefact) else source.record.get("versions", {}),
            _classifier=classifier,
            _source=source,
        )

    def __call__(self, text: str, text_pair: str | None = None) -> Prediction:
        """Classify one text, or a pair of texts.

        Raises:
            InputError: it is no text, blank or longer than `max_characters`, or the model answers with nan.
        """
        self._check_pair(text, text_pair)
        return self._prediction(text, self._classifier(self._encoding(text, text_pair)))

    def _prediction(self, text: str, logits: "npt.NDArray[np.float32]") -> Prediction:
        """Return the prediction of `text` from its logits, `(1, num_labels)`."""
        if not np.isfinite(logits).all():
            raise InputError(
                f"{self.folder} answers with nan or infinity to {text[:SHOWN]!r}: train or quantize it again"
            )
        if self.problem_type == labels.REGRESSION:
            return Prediction(
                (), {self.labels[0]: float(labels.activated(logits.astype(np.float64), self.activation)[0, 0])}
            )
        scores = labels.scores(logits, self.problem_type)[0]
        predicted = labels.predicted(logits, self.problem_type)[0]
        ranked = scores.argsort(kind="stable")[::-1]
        return Prediction(
            tuple(self.labels[label] for label in ranked if predicted[label]),
            {self.labels[label]: float(scores[label]) for label in ranked},
        )

    def many(self, texts: Iterable[str | tuple[str, ...]]) -> list[Prediction]:
        """Classify `texts`, which are texts or pairs of texts, with the answers of one call each.

        `int8-native` reads its weights once for several texts, up to 512 tokens together; every other variant
        classifies one text after the other.

        Raises:
            InputError: one of them cannot be classified; the message names which.
        """
        if isinstance(texts, str):
            raise InputError(f"{texts[:SHOWN]!r} is one text: call the classifier with it, and `many` with a list")
        predictions: list[Prediction] = []
        numbered = enumerate(texts)
        while together := list(itertools.islice(numbered, TEXTS_AT_ONCE)):
            encodings = []
            for number, text in together:
                with _numbered(number):
                    pair = text if isinstance(text, tuple) else (text,)
                    self._check_pair(*pair)
                    encodings.append(self._encoding(*pair))
            for (number, text), logits in zip(together, self._classifier.many(encodings), strict=True):
                with _numbered(number):
                    predictions.append(self._prediction(text[0] if isinstance(text, tuple) else text, logits[None]))
        return predictions

    def _check_pair(self, text: str, text_pair: str | None = None) -> None:
        self._check(text)
        if text_pair is not None:
            self._check(text_pair)

    def _encoding(self, text: str, text_pair: str | None = None) -> "Encoding":
        return self._source.encoder(text, text_pair, max_length=self.max_length)

    def _check(self, text: str) -> None:
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
