"""Read a folder that `qbert quantize` wrote, for serving: without torch and transformers."""

import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct, structs

from qbert.inputs.labels import IDENTITY, REGRESSION, SINGLE_LABEL, ProblemType
from qbert.inputs.tokenizer import TYPES, Encoding, check_length, encode, no_pairs, read_tokenizer
from qbert.system import forks
from qbert.system.errors import InputError
from qbert.system.parse import check_name, read_json
from qbert.system.record import RECORD, Rows

if TYPE_CHECKING:
    from qbert.variants import Classifier


class Record(Struct):
    """The keys of an artefact's qbert.json that serving needs."""

    variant: str
    inputs: tuple[Literal["input_ids", "token_type_ids", "attention_mask"], ...]
    labels: tuple[str, ...]
    max_length: Rows
    positions: Rows
    truncation_side: Literal["left", "right"]
    problem_type: ProblemType = SINGLE_LABEL
    """Artefacts from before qbert supported several labels lack it."""
    activation: Literal["identity", "sigmoid", "tanh"] = "identity"
    """Of a regressor's or ranker's output."""
    split_special_tokens: bool = False
    untrained: bool = False
    versions: dict[str, str] = {}


class Configuration(Struct):
    """The key of an artefact's config.json that serving needs."""

    type_vocab_size: int | None = None


def is_artefact(folder: Path) -> bool:
    """Whether the record in `folder` names a variant, as `qbert quantize` writes it."""
    path = folder / RECORD
    return path.exists() and "variant" in read_json(path, dict[str, Any], "copy it again, or remove it")


@dataclass(frozen=True)
class Artefact:
    """A variant's files, its tokenizer, and the record of how they were made."""

    folder: Path
    variant: str
    inputs: tuple[str, ...]
    """The arrays of an encoding that the model takes."""
    labels: tuple[str, ...]
    max_length: int
    """The length at which the model was trained, in tokens."""
    positions: int
    """The greatest length that it takes, in tokens."""
    truncation_side: str
    """Where too long a text is cut off: `right` or `left`."""
    split_special_tokens: bool = False
    """Whether `[SEP]` in a text is cut into tokens like other text; tokenizer.json does not say it."""
    problem_type: str = SINGLE_LABEL
    """Whether a text has one label, any number of them, or a number."""
    activation: str = IDENTITY
    """What makes a number of its logit: a key of labels.ACTIVATIONS."""
    trained: bool = True
    """Whether its head was trained, so that its labels mean something."""
    versions: dict[str, str] = field(default_factory=dict)
    """The versions of Python and the libraries that made it."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path) -> "Artefact":
        """Read the record in `folder`.

        Raises:
            InputError: there is no record, or it is a checkpoint's.
        """
        check_name(folder.resolve())
        path = folder / RECORD
        record = read_json(path, Record, f"is {folder} a quantized artefact? qbert quantize makes them")
        if not record.labels or (len(record.labels) == 1) != (record.problem_type == REGRESSION):
            raise InputError(f"{path} names {len(record.labels)} labels: make it again with qbert quantize")
        values = structs.asdict(record)
        return cls(folder, trained=not values.pop("untrained"), **values)

    @cached_property
    def tokenizer(self) -> Any:  # noqa: ANN401  a tokenizers.Tokenizer, which has no types
        """The tokenizer, of the library `tokenizers`."""
        return read_tokenizer(self.folder, split_special_tokens=self.split_special_tokens)

    @cached_property
    def takes_pairs(self) -> bool:
        """Whether the model has a token type for second texts, or needs none."""
        path = self.folder / "config.json"
        if TYPES not in self.inputs or not path.exists():
            return True
        types = read_json(path, Configuration, "make it again with qbert quantize").type_vocab_size or 0
        return not max(self.tokenizer.encode("a", "a").type_ids, default=0) >= types > 0

    def encoder(self, text: str, text_pair: str | None = None, *, max_length: int) -> Encoding:
        """Return the arrays for one text (or pair), cut off at `max_length` tokens and never padded.

        Raises:
            InputError: it is a pair, and the model takes none.
        """
        if text_pair is not None and not self.takes_pairs:
            raise no_pairs(self.folder)
        with forks.call(), self._lock:  # the length is a state of the tokenizer, which another thread might change
            return encode(self.tokenizer, self.inputs, self.truncation_side, text, text_pair, max_length)

    def check_length(self, max_length: int) -> None:
        """Raise InputError where `max_length` is beyond the model's positions or leaves no room for text."""
        special = self.tokenizer.num_special_tokens_to_add(is_pair=False)
        check_length(self.folder, self.positions, special, max_length)

    def load(self, *, verify: bool = True) -> "Classifier":
        """Return the classifier; unless `verify` is false, the checksums of its files are checked first.

        Raises:
            InputError: its files are damaged, or its variant is defined differently now.
        """
        from qbert import variants

        return variants.load_artefact(self.folder, verify=verify)[1]
