"""From a text to the input of a model: arrays of token ids, cut off at a maximum length."""

import itertools
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert import forks
from qbert.errors import InputError, reason
from qbert.terminal import quiet_transformers

if TYPE_CHECKING:
    from qbert.dataset import Dataset

Encoding = dict[str, npt.NDArray[np.int64]]
"""The tokenizer's output for one text: arrays of shape `(1, length)`."""


def check_length(folder: Path, positions: int, special: int, *max_lengths: int) -> None:
    """Raise InputError where one of `max_lengths` is beyond `positions`, or no more than the `special` tokens.

    `positions` is how many tokens the model in `folder` takes, `special` how many of them are not the text's.
    """
    for max_length in max_lengths:
        if max_length > positions:
            raise InputError(f"max_length {max_length} is beyond {folder}'s {positions} positions: take less")
        if max_length <= special:
            raise InputError(f"max_length {max_length} holds no text beside {special} special tokens: take more")


@dataclass(frozen=True)
class Encoder:
    """Turns one text into the input of a model."""

    tokenizer: Any
    inputs: tuple[str, ...]
    """The arrays that the tokenizer gives and the model takes."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path, forward: Any) -> "Encoder":  # noqa: ANN401
        """Read the tokenizer in `folder` for the model whose method `forward` is given."""
        import inspect

        from transformers import AutoTokenizer

        try:
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                tokenizer("a", "a", truncation=True, max_length=tokenizer.num_special_tokens_to_add(pair=True) + 2)
        except Exception as error:  # the library tokenizers raises this class on a damaged file
            raise InputError(
                f"the tokenizer in {folder} cannot be read ({reason(error)}): save it beside the weights"
            ) from error
        parameters = inspect.signature(forward).parameters
        inputs = tuple(name for name in tokenizer.model_input_names if name in parameters)
        if "input_ids" not in inputs:
            raise InputError(f"the tokenizer in {folder} gives no input_ids: save it beside the weights again")
        return cls(tokenizer, inputs)

    def __call__(self, text: str, text_pair: str | None = None, *, max_length: int) -> Encoding:
        """Return the arrays for one text (or pair), cut off at `max_length` tokens and never padded."""
        with forks.call(), self._lock:  # the length is a state of the tokenizer, which another thread might change
            tokens = self.tokenizer(text, text_pair, truncation=True, max_length=max_length, verbose=False)
        return {name: np.array([tokens[name]], dtype=np.int64) for name in self.inputs}

    def fill(self, dataset: "Dataset", max_length: int) -> Encoding:
        """Return an encoding of exactly `max_length` tokens, filled with test documents.

        Raises:
            InputError: the tokenizer makes no tokens of the texts.
        """
        columns = [dataset.test[name] for name in ("text", "text_pair") if name in dataset.test]
        count = 1
        while count <= 2 * max_length + len(dataset.test):
            joined = [" ".join(itertools.islice(itertools.cycle(column), count)) for column in columns]
            encoding = self(*joined, max_length=max_length)
            if encoding["input_ids"].shape[1] == max_length:
                return encoding
            count *= 2
        raise InputError(f"the tokenizer leaves nothing of the texts of {dataset.name}: is it the right one?")
