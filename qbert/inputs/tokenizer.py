"""From a text to the input of a model: arrays of token ids, cut off at a maximum length."""

import itertools
import threading
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert.system import forks
from qbert.system.errors import InputError, reason
from qbert.system.terminal import quiet_transformers

if TYPE_CHECKING:
    from qbert.inputs.dataset import Dataset

TYPES = "token_type_ids"
Encoding = dict[str, npt.NDArray[np.int64]]
"""The tokenizer's output for one text: arrays of shape `(1, length)`."""
ARRAYS = {"input_ids": "ids", TYPES: "type_ids", "attention_mask": "attention_mask"}
"""The names of the arrays in the library tokenizers, by those in transformers."""
MOST_TOKENS = 200
"""Of those that were added to a vocabulary: comparing one takes 0.3 ms."""
TELLING = (
    "The QUICK brown Fox isn't here: naïve café, 12.5% of 3,000 at http://example.org/a_b?c=d#e.",
    "  blanks \t and \n lines,\u00a0others\u3000and\u200bnone  ",
    "体育新闻 ひらがな カタカナ 한국어 ไทย ﬁ ① 😀🇨🇳 A\u030a\u0301",
    "x" * 300 + " antidisestablishmentarianism" * 9,
)
"""Texts that tokenizers treat differently."""


def check_length(model: Path | str, positions: int, special: int, *max_lengths: int) -> None:
    """Raise InputError where one of `max_lengths` is beyond `positions`, or no more than the `special` tokens.

    `positions` is how many tokens `model` takes, `special` how many of them are not the text's.
    """
    for max_length in max_lengths:
        if max_length > positions:
            raise InputError(f"max_length {max_length} is beyond {model}'s {positions} positions: take less")
        if max_length <= special:
            raise InputError(f"max_length {max_length} holds no text beside {special} special tokens: take more")


def read_tokenizer(folder: Path, *, split_special_tokens: bool) -> Any:  # noqa: ANN401  it has no types
    """Return the tokenizer of an artefact: a tokenizers.Tokenizer, and no library has to be imported but that.

    Raises:
        InputError: its file is damaged.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises this class
        raise InputError(f"{path} cannot be read ({reason(error)}): make it again with qbert quantize") from error
    tokenizer.encode_special_tokens = split_special_tokens  # a state that its file does not hold
    return tokenizer


def encode(
    tokenizer: Any,  # noqa: ANN401
    inputs: Iterable[str],
    truncation_side: str,
    text: str,
    text_pair: str | None,
    max_length: int,
) -> Encoding:
    """Return the arrays `inputs` that a tokenizers.Tokenizer gives for one text (or pair), cut off and never padded."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, direction=truncation_side)
    tokens = tokenizer.encode(text, text_pair or None)  # as in transformers, an empty one is none
    return {name: np.array([getattr(tokens, ARRAYS[name])], dtype=np.int64) for name in inputs}


def no_pairs(folder: Path) -> InputError:
    """Return the error of who gives the model in `folder` pairs of texts, whose second texts have a token type."""
    return InputError(
        f"{folder} takes no pairs of texts, since its model has one token type (type_vocab_size in config.json): "
        "give single texts, or a model with two"
    )


class TokenizerWarning(UserWarning):
    """A tokenizer withholds token types that its model knows."""


@dataclass(frozen=True)
class Encoder:
    """Turns one text into the input of a model."""

    folder: Path
    tokenizer: Any
    inputs: tuple[str, ...]
    """The arrays that the tokenizer gives and the model takes."""
    takes_pairs: bool
    """Whether the model has a token type for second texts, or needs none."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path, model: Any) -> "Encoder":  # noqa: ANN401  a torch module
        """Read the tokenizer in `folder` for `model`, a classifier of transformers.

        Warns with TokenizerWarning where the class of the tokenizer withholds token types, as some do.

        Raises:
            InputError: it cannot be read, or gives no input_ids.
        """
        import inspect

        from transformers import AutoTokenizer

        try:
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                length = tokenizer.num_special_tokens_to_add(pair=True) + 2
                pair = tokenizer("a", "a", truncation=True, max_length=length, return_token_type_ids=True)
        except Exception as error:  # the library tokenizers raises this class on a damaged file
            raise InputError(
                f"the tokenizer in {folder} cannot be read ({reason(error)}): save it beside the weights"
            ) from error
        parameters = inspect.signature(model.forward).parameters
        inputs = tuple(name for name in tokenizer.model_input_names if name in parameters)
        if "input_ids" not in inputs:
            raise InputError(f"the tokenizer in {folder} gives no input_ids: save it beside the weights again")
        types = getattr(model.config, "type_vocab_size", None) or 0
        given = max(pair.get("token_type_ids", ()), default=0)
        if given and given < types and TYPES in parameters and TYPES not in inputs:
            warnings.warn(
                f"{folder}: the tokenizer knows a token type for second texts, and its class in tokenizer_config.json "
                "withholds it, so the model takes a pair for one text: if it was trained with token types, add there "
                f'"model_input_names": ["input_ids", "{TYPES}", "attention_mask"]',
                TokenizerWarning,
                stacklevel=2,
            )
        return cls(folder, tokenizer, inputs, takes_pairs=not (TYPES in inputs and given >= types > 0))

    def __call__(self, text: str, text_pair: str | None = None, *, max_length: int) -> Encoding:
        """Return the arrays for one text (or pair), cut off at `max_length` tokens and never padded.

        Raises:
            InputError: it is a pair, and the model takes none.
        """
        if text_pair is not None and not self.takes_pairs:
            raise no_pairs(self.folder)
        with forks.call(), self._lock:  # the length is a state of the tokenizer, which another thread might change
            tokens = self.tokenizer(text, text_pair, truncation=True, max_length=max_length, verbose=False)
        return {name: np.array([tokens[name]], dtype=np.int64) for name in self.inputs}

    def check_pairs(self, dataset: "Dataset") -> None:
        """Raise InputError where the texts of `dataset` are pairs, and the model takes none."""
        if "text_pair" in dataset.test and not self.takes_pairs:
            raise no_pairs(self.folder)

    def check_trainable(self) -> None:
        """Raise InputError where texts of several lengths cannot be padded to a batch."""
        if self.tokenizer.pad_token_id is None:
            raise InputError(
                f"the tokenizer in {self.folder} has no padding token, which training needs: name one (pad_token) in "
                "tokenizer_config.json"
            )

    def check_kept(self, folder: Path) -> None:
        """Raise InputError where the tokenizer that was saved to `folder` encodes otherwise than this one."""
        name = f"{self.folder}: an artefact serves with the library tokenizers"
        remedy = f"it cannot keep this {type(self.tokenizer).__name__}: take a model whose tokenizer.json says it all"
        if not (folder / "tokenizer.json").is_file():
            raise InputError(f"{name}, and tokenizer.json is not written, so {remedy}")
        kept = read_tokenizer(folder, split_special_tokens=self.tokenizer.split_special_tokens)
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values()]
        tokens = list(dict.fromkeys([*self.tokenizer.all_special_tokens, *added]))[:MOST_TOKENS]
        texts = [*TELLING, *(f"a {token} b{token}c {token.upper()} {token.lower()}" for token in tokens)]
        pairs = zip(texts, reversed(texts), strict=True) if self.takes_pairs else ()
        for text, other in [*((text, None) for text in texts), *pairs]:
            for length in (self.tokenizer.num_special_tokens_to_add(pair=True) + 5, 512):
                own = self(text, other, max_length=length)
                theirs = encode(kept, self.inputs, self.tokenizer.truncation_side, text, other, length)
                if any(not np.array_equal(own[array], theirs[array]) for array in self.inputs):
                    raise InputError(f"{name}, which encodes {text[:40]!r} otherwise, so {remedy}")

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
