"""Find, check and read Hugging Face checkpoints: a folder on disk, or a model on the hub."""

import contextlib
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert import InputError, reason
from qbert.terminal import quiet

if TYPE_CHECKING:
    from qbert.dataset import Dataset

Encoding = dict[str, npt.NDArray[np.int64]]
"""The tokenizer's output for one text: arrays of shape `(1, length)`."""

RECORD = "qbert.json"
"""What made a folder of ours: beside a checkpoint's or an artefact's own files."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep from the terminal what transformers, and what it imports, report while loading."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        if bars:
            logging.enable_progress_bar()


def locate(source: str) -> Path:
    """Return the folder of a checkpoint: `source` itself, or where the hub's model `source` was downloaded to.

    Raises:
        InputError: it is neither a folder nor a model that the hub gives.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    wanted = f"model {source!r} is no folder here"
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(f"{wanted}: give a checkpoint's folder (with config.json and model.safetensors) or a hub id")
    from huggingface_hub import snapshot_download

    try:
        # Nothing that would run code or unpickle is downloaded.
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as error:  # the hub's client passes on whatever its HTTP library raises, without a common class
        raise InputError(
            f"{wanted}, and the Hugging Face hub did not give it ({reason(error)}): check the path or the hub id"
        ) from error


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder with the configuration, weights and tokenizer of a text classifier."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Check that `folder` holds a checkpoint that can be used.

        Raises:
            InputError: configuration, weights or tokenizer are missing or damaged, or the architecture is unknown.
        """
        for needed, remedy in (
            (("config.json",), "give the folder that save_pretrained wrote"),
            (("model.safetensors", "model.safetensors.index.json"), "save the weights as safetensors"),
            (("tokenizer.json", "vocab.txt", "vocab.json"), "save the tokenizer beside the weights"),
        ):
            if not any((folder / name).is_file() for name in needed):
                raise InputError(f"{folder} is no checkpoint, it has no {needed[0]}: {remedy}")
        checkpoint = cls(folder)
        # Damage is found here, not in the middle of a run.
        _ = checkpoint.expected_weights, checkpoint.weights, checkpoint.encoder
        return checkpoint

    @cached_property
    def config(self) -> Any:  # noqa: ANN401  transformers has one class an architecture
        """The configuration, as transformers reads it; no code from the folder is run."""
        from transformers import AutoConfig

        try:
            with quiet_transformers():
                return AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{self.folder / 'config.json'} cannot be used ({reason(error)}): is it a BERT-like model's?"
            ) from error

    @cached_property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor in the safetensors files, read from their headers."""
        from safetensors import SafetensorError, safe_open

        shapes: dict[str, tuple[int, ...]] = {}
        for path in self.weight_files:
            try:
                with safe_open(path, framework="numpy") as file:
                    shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise InputError(f"{path} is damaged ({error}): copy or download it again") from error
        return shapes

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files, in the order of their names."""
        index, single = self.folder / "model.safetensors.index.json", self.folder / "model.safetensors"
        if single.is_file() or not index.is_file():  # transformers looks in this order
            return [single]
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{index} is damaged ({error!r}): copy or download it again") from error
        return [self.folder / Path(name).name for name in sorted(names)]

    @cached_property
    def skeleton(self) -> Any:  # noqa: ANN401  a torch module, and torch is not imported here for its name alone
        """The classifier of this configuration without its weights (on torch's meta device)."""
        import torch

        try:
            with torch.device("meta"), quiet_transformers():
                from transformers import AutoModelForSequenceClassification

                return AutoModelForSequenceClassification.from_config(self.config)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{self.folder / 'config.json'}: no text classifier can be made of it ({reason(error)})"
            ) from error

    @cached_property
    def expected_weights(self) -> set[str]:
        """Names of the weights that a classifier of this configuration has."""
        return {name for name, _ in self.skeleton.named_parameters()}

    @property
    def trained(self) -> bool:
        """Whether the file has weights for the classification head; else the head would be random."""
        body = self.skeleton.base_model_prefix + "."
        head = {name for name in self.expected_weights if not name.startswith(body)}
        return head <= set(self.weights) and not self.record.get("untrained", False)

    @property
    def num_labels(self) -> int:
        """How many labels the head tells apart."""
        return int(self.config.num_labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels' names, in the order of the logits."""
        return tuple(str(self.config.id2label[label]) for label in range(self.num_labels))

    @property
    def positions(self) -> int:
        """The greatest length that the model takes, in tokens."""
        positions = int(getattr(self.config, "max_position_embeddings", 512))
        for name, module in self.skeleton.named_modules():
            # RoBERTa counts its positions from the padding token's id on.
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                return positions - int(module.padding_idx) - 1
        return positions

    @cached_property
    def record(self) -> dict[str, Any]:
        """What made this folder, where this project did (`qbert.json`); else empty."""
        try:
            record = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    @cached_property
    def sha256(self) -> str:
        """Of configuration, weights and tokenizer."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @property
    def files(self) -> list[Path]:
        """Configuration, weights and tokenizer, without what else may lie beside them."""
        tokenizer = (self.folder / name for name in TOKENIZER_FILES)
        return [path for path in (self.folder / "config.json", *self.weight_files, *tokenizer) if path.is_file()]

    @cached_property
    def encoder(self) -> "Encoder":
        """The tokenizer of this checkpoint, giving what its model takes."""
        return Encoder.open(self.folder, self.skeleton.forward)

    @property
    def max_length(self) -> int:
        """The length that it was trained at, where its record tells; else 384, or its positions if fewer."""
        return int(self.record.get("max_length") or min(384, self.positions))

    def load(self, *, seed: int = 0, **options: Any) -> Any:  # noqa: ANN401
        """Return the model in evaluation mode, float32 unless `options` (of from_pretrained) say otherwise.

        Weights of a head that the file lacks are drawn at random by `seed`.

        Raises:
            InputError: the weights do not fit the configuration.
        """
        import torch

        torch.manual_seed(seed)
        wanted = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
        try:
            with quiet_transformers():
                from transformers import AutoModelForSequenceClassification

                model, report = AutoModelForSequenceClassification.from_pretrained(
                    self.folder, output_loading_info=True, **wanted | options
                )
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.folder}: weights and config.json do not fit ({reason(error)}): save both again"
            ) from error
        if self.trained and report["missing_keys"] and "num_labels" not in options:
            lacking = min(report["missing_keys"])
            raise InputError(f"{self.folder}: the weights lack {lacking}, which config.json has: save both again")
        return model.eval()

    def check_labels(self, dataset: "Dataset") -> None:
        """Raise InputError where the labels that this checkpoint tells apart are not the dataset's."""
        if self.num_labels != len(dataset.label_names):
            raise InputError(
                f"{self.folder} tells {self.num_labels} labels apart and the dataset {dataset.name} has "
                f"{len(dataset.label_names)}: give the dataset it was trained on"
            )
        ours = {str(name): int(label) for label, name in (self.config.id2label or {}).items()}
        theirs = {name: label for label, name in enumerate(dataset.label_names)}
        if ours.keys() == theirs.keys() and ours != theirs:
            raise InputError(
                f"{self.folder} and the dataset {dataset.name} number the same labels differently "
                f"({ours} and {theirs}): change label.json or config.json"
            )

    def check_length(self, *max_lengths: int) -> None:
        """Raise InputError where one of `max_lengths` is beyond the model's positions or leaves no room for text."""
        check_length(self.folder, self.positions, self.encoder.tokenizer.num_special_tokens_to_add(), *max_lengths)


def check_length(folder: Path, positions: int, special: int, *max_lengths: int) -> None:
    """Do so for the model in `folder`, which takes `positions` tokens, `special` of them beside the text's own."""
    for max_length in max_lengths:
        if max_length > positions:
            raise InputError(f"max_length {max_length} is beyond {folder}'s {positions} positions: take less")
        if max_length <= special:
            raise InputError(f"max_length {max_length} holds no text beside {special} special tokens: take more")


@dataclass(frozen=True)
class Encoder:
    """Turns one text into what the model takes."""

    tokenizer: Any
    inputs: tuple[str, ...]
    """The arrays that both the tokenizer gives and the model takes."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path, forward: Any) -> "Encoder":  # noqa: ANN401
        """Read the tokenizer in `folder` for a model whose method `forward` is given."""
        import inspect

        from transformers import AutoTokenizer

        try:
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises no more than that on a damaged file
            raise InputError(
                f"the tokenizer in {folder} cannot be read ({reason(error)}): save it beside the weights"
            ) from error
        taken = inspect.signature(forward).parameters
        return cls(tokenizer, tuple(name for name in tokenizer.model_input_names if name in taken))

    def __call__(self, text: str, text_pair: str | None = None, *, max_length: int) -> Encoding:
        """Return the arrays for one text (or pair), cut off at `max_length` tokens and never padded."""
        with self._lock:  # the length is the tokenizer's own, which another thread would change
            tokens = self.tokenizer(text, text_pair, truncation=True, max_length=max_length, verbose=False)
        return {name: np.array([tokens[name]], dtype=np.int64) for name in self.inputs}

    def fill(self, dataset: "Dataset", max_length: int) -> Encoding:
        """Return an encoding of exactly `max_length` tokens: test documents joined until they fill it.

        Raises:
            InputError: the tokenizer leaves nothing of the texts.
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


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write what made `folder` into it."""
    text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
    (folder / RECORD).write_text(text + os.linesep, encoding="utf-8")
