"""Find, check and read Hugging Face checkpoints: a folder on disk, or a model on the hub."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from msgspec import Struct

from qbert.inputs import configuration
from qbert.inputs.configuration import OUTPUTS, SENTENCE_TRANSFORMERS, Configuration
from qbert.inputs.labels import IDENTITY, MULTI_LABEL, REGRESSION, SINGLE_LABEL, matched
from qbert.inputs.tensors import Fit, Tensor, read_headers
from qbert.inputs.tokenizer import Encoder, check_length
from qbert.system.errors import InputError, reason, untrained
from qbert.system.parse import check_name, read_json
from qbert.system.record import RECORD, Rows
from qbert.system.terminal import echo, quiet_transformers

if TYPE_CHECKING:
    from qbert.inputs.dataset import Dataset

MOST_NAMED = 8
"""Labels that a sentence names: more hide what it says."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)


class Index(Struct):
    """The contents of model.safetensors.index.json: the file of each tensor."""

    weight_map: dict[str, str]


class Record(TypedDict, total=False):
    """The keys of qbert.json that are read again."""

    variant: str
    untrained: bool
    max_length: Rows
    metrics: dict[str, float]
    recipe: dict[str, float]
    dataset_sha256: str
    seed: int
    versions: dict[str, str]


def is_path(source: str) -> bool:
    """Whether `source` names a file or folder, which may not exist, and no model on the hub."""
    return Path(source).exists() or source.startswith((".", "/", "~")) or source.count("/") > 1


def locate(source: str) -> Path:
    """Return the folder of a checkpoint: `source` itself, or where the hub's model `source` was downloaded to.

    Raises:
        InputError: it is neither a folder nor a model on the hub that can be downloaded.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    problem = f"model {source!r} is no folder here"
    if is_path(source):
        raise InputError(f"{problem}: give a checkpoint's folder (with config.json and model.safetensors) or a hub id")
    from huggingface_hub import snapshot_download

    try:
        # No code and no pickles are downloaded.
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as error:  # the hub's client raises the exceptions of its HTTP library, without a common class
        raise InputError(
            f"{problem}, and the Hugging Face hub did not give it ({reason(error)}): check the path or the hub id"
        ) from error


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder with the configuration, weights and tokenizer of a text classifier."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, *, as_base: bool = False) -> "Checkpoint":
        """Return the checkpoint in `folder` after checking that it can be used; `as_base`, that it can be fine-tuned.

        A base may have a head of any kind, since fine-tuning replaces it.

        Raises:
            InputError: configuration, weights or tokenizer are missing or damaged, or it is no text classifier.
        """
        _check_files(folder)
        for needed, remedy in (
            (("config.json",), "give the folder that save_pretrained wrote"),
            (("model.safetensors", "model.safetensors.index.json"), "save the weights as safetensors"),
            (("tokenizer.json", "vocab.txt", "vocab.json"), "save the tokenizer beside the weights"),
        ):
            if not any((folder / name).is_file() for name in needed):
                raise InputError(f"{folder} is no checkpoint, it has no {needed[0]}: {remedy}")
        checkpoint = cls(folder)
        if not as_base:
            checkpoint.configuration.check_head(folder)
            _ = checkpoint.activation
        # The properties below raise on damage: better here than in the middle of a run.
        checkpoint._check_size()
        checkpoint.fit.check(new_head=as_base or not checkpoint.trained)
        if checkpoint.fit.said:
            _say_once(f"{folder}: {checkpoint.fit.said}")
        tokens = max(checkpoint.encoder.tokenizer.get_vocab().values(), default=0) + 1
        known = getattr(checkpoint.config, "vocab_size", tokens)  # models of characters have none
        if tokens > known:
            raise InputError(
                f"{folder}: the tokenizer has {tokens} tokens and the model {known}: save the one it was trained with"
            )
        checkpoint.check_length(checkpoint.max_length)
        if as_base:
            checkpoint.encoder.check_trainable()
        return checkpoint

    def _check_size(self) -> None:
        """Raise InputError where config.json is of a far larger model than the weights: memory might not suffice."""
        needed = sum(parameter.numel() for parameter in self.skeleton.parameters())
        stored = sum(math.prod(shape) for shape in self.weights.values())
        if needed > 2 * stored:  # an untrained head adds less than its body has
            raise InputError(
                f"{self.folder}: weights and config.json do not fit ({stored:,} numbers, where {needed:,} are needed): "
                "save both again"
            )

    @cached_property
    def configuration(self) -> Configuration:
        """The checked keys of config.json."""
        return configuration.read(self.folder)

    @cached_property
    def config(self) -> Any:  # noqa: ANN401  transformers has one class an architecture
        """The configuration, as transformers reads it; no code from the folder is run."""
        _ = self.configuration  # checks its sizes
        return configuration.read_whole(self.folder)

    @cached_property
    def stored(self) -> dict[str, Tensor]:
        """Every tensor in the safetensors files by its name, read from their headers."""
        return read_headers(self.weight_files)

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor in the safetensors files."""
        return {name: tensor.shape for name, tensor in self.stored.items()}

    @cached_property
    def fit(self) -> Fit:
        """How the tensors in the files become the weights of the classifier."""
        return Fit(self.folder, self.stored, self.skeleton)

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files, in the order of their names."""
        index, single = self.folder / "model.safetensors.index.json", self.folder / "model.safetensors"
        if single.is_file() or not index.is_file():  # transformers looks in this order
            return [single]
        names = sorted(set(read_json(index, Index, "copy or download it again").weight_map.values()))
        for name in names:
            if Path(name).name != name or not (self.folder / name).is_file():
                raise InputError(f"{index} names {name!r}, which is no file beside it: copy or download both again")
        return [self.folder / name for name in names]

    @cached_property
    def skeleton(self) -> Any:  # noqa: ANN401  a torch module, and torch is not imported here for its name alone
        """The classifier of this configuration without its weights (on torch's meta device)."""
        config = self.config
        import torch

        try:
            with torch.device("meta"), quiet_transformers():
                from transformers import AutoModelForSequenceClassification

                return AutoModelForSequenceClassification.from_config(config)
        except InputError:
            raise
        except Exception as error:  # each architecture raises its own
            raise InputError(
                f"{self.folder / 'config.json'}: no text classifier can be made of it ({reason(error)})"
            ) from error

    @property
    def trained(self) -> bool:
        """Whether the classification head was trained; else its weights are missing or random."""
        without_head = any(not name.startswith(self.fit.body) for name in self.fit.lacking)
        return not without_head and not self.record.get("untrained", False)

    def check_trained(self, name: str) -> None:
        """Raise InputError where the head was not trained; the message calls the model `name`."""
        if not self.trained:
            raise untrained(name)

    @property
    def problem_type(self) -> str:
        """Whether a text has one label, any number of them or a number: SINGLE_LABEL, MULTI_LABEL or REGRESSION."""
        return self.configuration.problem_type or (REGRESSION if self.num_labels == 1 else SINGLE_LABEL)

    @cached_property
    def activation(self) -> str:
        """What makes the output of the logit, where there is one: a key of labels.ACTIVATIONS.

        Raises:
            InputError: the folder names another function.
        """
        return configuration.activation_of(self.folder, self.configuration) if self.num_labels == 1 else IDENTITY

    @property
    def num_labels(self) -> int:
        """How many labels the head has."""
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
            # RoBERTa's positions start after the padding token's id.
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                return positions - int(module.padding_idx) - 1
        return positions

    @cached_property
    def record(self) -> Record:
        """The record (`qbert.json`) of how this folder was made; empty where qbert did not make it."""
        path = self.folder / RECORD
        return read_json(path, Record, "copy it again, or remove it") if path.exists() else {}

    @cached_property
    def sha256(self) -> str:
        """The hash of configuration, weights and tokenizer."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @property
    def files(self) -> list[Path]:
        """The files of configuration, weights and tokenizer, without others in the folder."""
        others = [*TOKENIZER_FILES, *([SENTENCE_TRANSFORMERS] if self.num_labels == 1 else [])]
        paths = (self.folder / "config.json", *self.weight_files, *(self.folder / name for name in others))
        return [path for path in paths if path.is_file()]

    @cached_property
    def encoder(self) -> Encoder:
        """The tokenizer of this checkpoint, with the arrays that its model takes."""
        return Encoder.open(self.folder, self.skeleton)

    @property
    def max_length(self) -> int:
        """The length at which it was trained; where its record lacks it, 384, or its positions if fewer."""
        return self.record.get("max_length", min(384, self.positions))

    def load(self, *, seed: int = 0, **options: Any) -> Any:  # noqa: ANN401
        """Return the model in evaluation mode, in float32 unless `options` (of from_pretrained) say otherwise.

        Weights of a head that the file lacks are random, by `seed`.

        Raises:
            InputError: the weights do not fit the configuration, or some are nan or infinite.
        """
        import torch

        new_head = "num_labels" in options
        self.fit.check(new_head=new_head or not self.trained)
        torch.manual_seed(seed)
        arguments = {
            "key_mapping": self.fit.renamed or None,
            "dtype": torch.float32,
            "use_safetensors": True,
            "local_files_only": True,
            "trust_remote_code": False,
            **OUTPUTS,
            "ignore_mismatched_sizes": True,  # fit.check_loaded reports them by name
        }
        try:
            with quiet_transformers():
                from transformers import AutoModelForSequenceClassification

                model, report = AutoModelForSequenceClassification.from_pretrained(
                    self.folder, output_loading_info=True, **arguments | options
                )
        except InputError:
            raise
        except Exception as error:  # what transformers and safetensors raise depends on the files
            raise InputError(
                f"{self.folder}: weights and config.json do not fit ({reason(error)}): save both again"
            ) from error
        self.fit.check_loaded(report, new_head=new_head or not self.trained, other_shape=new_head)
        for name, tensor in model.state_dict().items():
            # Minimum and maximum are nan where one of the numbers is: twice as fast as testing each number.
            if tensor.is_floating_point() and not all(math.isfinite(end) for end in torch.aminmax(tensor)):
                raise InputError(f"{self.folder}: {name} has weights that are nan or infinite: train or save it again")
        return model.eval()

    def label_order(self, dataset: "Dataset") -> tuple[int, ...]:
        """Return the dataset's id of each label of this checkpoint, by their names; what is not obvious is printed.

        Nothing where it gives numbers.

        Raises:
            InputError: the labels are not the dataset's, or it is not clear which is which; or it gives numbers and the
                dataset labels, or the other way round.
        """
        if (self.problem_type == REGRESSION) == bool(dataset.label_names):
            gives, has = ("numbers", "labels") if dataset.label_names else ("labels", "numbers (no label.json)")
            raise InputError(f"{self.folder} gives {gives} and the dataset {dataset.name} has {has}: give another one")
        if not dataset.label_names:
            return ()
        if dataset.multi_label and self.problem_type != MULTI_LABEL:
            raise InputError(
                f"{self.folder} gives a text one label and the dataset {dataset.name} any number (column 'labels'): "
                f'give a model whose config.json has "problem_type": "{MULTI_LABEL}"'
            )
        if self.num_labels != len(dataset.label_names):
            raise InputError(
                f"{self.folder} tells {self.num_labels} labels apart and the dataset {dataset.name} has "
                f"{len(dataset.label_names)}: give the dataset it was trained on"
            )
        order = matched(self.labels, dataset.label_names)
        if order is None:
            raise InputError(
                f"{self.folder} has the labels {_listed(self.labels)} and the dataset {dataset.name} has "
                f"{_listed(dataset.label_names)}: give them the same names, in config.json or label.json"
            )
        named = [dataset.label_names[label] for label in order]
        if order != tuple(range(len(order))) or list(self.labels) != named:
            pairs = [f"{own} is {name}" for own, name in zip(self.labels, named, strict=True)]
            _say_once(f"{self.folder}: its labels are read as the dataset {dataset.name}'s: {_listed(pairs)}")
        return order

    def check_length(self, *max_lengths: int) -> None:
        """Raise InputError where one of `max_lengths` is beyond the model's positions or leaves no room for text."""
        check_length(self.folder, self.positions, self.encoder.tokenizer.num_special_tokens_to_add(), *max_lengths)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (" and so on" if len(names) > MOST_NAMED else "")


@cache
def _say_once(text: str) -> None:
    """Print `text` to standard error, though a command opens the same checkpoint again."""
    echo(text, err=True)


def _check_files(folder: Path) -> None:
    """Raise InputError where `folder` has a name that is no UTF-8, or a pipe or a device: reading might never end."""
    check_name(folder.resolve())
    for path in folder.glob("*"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is a pipe or a device: a checkpoint is a folder of files")
