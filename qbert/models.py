"""What `--model` names: a checkpoint's folder, a model on the hub, or a built-in one, which is made at first use."""

import hashlib
import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbert import children, sources, training
from qbert import dataset as datasets
from qbert.cache import build_kept, cache_dir
from qbert.checkpoint import Checkpoint, locate
from qbert.errors import InputError
from qbert.settings import DEFAULT_MAX_LENGTH
from qbert.terminal import say

if TYPE_CHECKING:
    from qbert.dataset import Dataset
    from qbert.variants import Variant

UNTRAINED = "bert-base"
"""The built-in model of random weights; every other built-in one is trained on the dataset at first use."""


@dataclass(frozen=True)
class Model:
    """What one `--model` names."""

    name: str
    """As it stands in test ids."""
    source: str
    """A key of training.GEOMETRIES, or a checkpoint's folder: to be used as it is, or fine-tuned."""
    trained: bool
    """Whether its head was trained, so that its labels mean something."""
    seed: int = 0
    """Of the training."""
    fine_tune: bool = False
    """Whether its source is a base that is trained on the dataset here."""

    @property
    def is_made_at_first_use(self) -> bool:
        """Whether its checkpoint is made here, and kept in the cache."""
        return self.fine_tune or self.source in training.GEOMETRIES

    def place(self, dataset: "Dataset", max_length: int) -> Path:
        """Return the folder of its checkpoint for this dataset and length, whether or not it was made."""
        if not self.is_made_at_first_use:
            return Path(self.source)
        base = Checkpoint(Path(self.source)).sha256 if self.fine_tune else self.source
        made_of: list[Any] = [dataset.sha256, base, self.seed]
        if self.trained:
            recipe = training.recipe_for(self.source, len(dataset.train))
            made_of += [max_length, asdict(recipe), sources.sha256(training.__name__)]
        key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
        return cache_dir() / "models" / key / (f"{self.name}-{max_length}" if self.trained else self.name)

    def make(self, dataset: "Dataset", max_length: int) -> Checkpoint:
        """Return its checkpoint for this dataset and length, made where it is not there.

        Raises:
            InputError: it cannot be trained, or the cache cannot be written to.
        """
        folder = self.place(dataset, max_length)
        if self.is_made_at_first_use:
            build_kept(folder, lambda stage: self._fill(stage, dataset, max_length))
        return Checkpoint(folder)

    def _fill(self, stage: Path, dataset: "Dataset", max_length: int) -> None:
        if not self.trained:
            training.write_untrained(dataset, self.source, stage, self.seed)
            return
        say(f"training {self.name} at {max_length} tokens on {dataset.name}, once")
        # A process of its own has all cores, and leaves this one's threads and memory as every later run finds them.
        wanted = {"dataset": str(dataset.folder), "base": self.source, "folder": str(stage)}
        arguments = json.dumps(wanted | {"max_length": max_length, "seed": self.seed})
        done = children.run("-m", training.__name__, arguments, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise InputError(f"training {self.name} failed with exit code {done.returncode}: see the message above")


def find(
    source: str, dataset: "Dataset", max_lengths: Sequence[int], *, experiments: int = 1, fine_tune: bool = False
) -> list[Model]:
    """Return what `source` names: a model, or one for each of the `experiments` where it is trained here.

    With `fine_tune` a folder or hub id is a base, to be trained on the dataset.

    Raises:
        InputError: it is no model, its labels are not the dataset's, or one of `max_lengths` is beyond its positions.
    """
    if source in training.GEOMETRIES:
        for max_length in max_lengths:
            training.check_length(source, max_length)
        if source == UNTRAINED:
            return [Model(source, source, trained=False)]
        return [Model(_numbered(source, seed), source, trained=True, seed=seed) for seed in range(experiments)]
    try:
        folder = locate(source)
    except InputError as error:
        raise InputError(f"{error}; built in are {', '.join(training.GEOMETRIES)}") from error
    checkpoint = Checkpoint.open(folder, as_base=fine_tune)
    checkpoint.check_length(*max_lengths)
    name, place = re.sub(r"[^\w.-]", "-", Path(source).resolve().name), str(folder.resolve())
    if fine_tune:
        seeds = range(experiments)
        return [Model(_numbered(name, seed), place, trained=True, seed=seed, fine_tune=True) for seed in seeds]
    if checkpoint.trained:
        checkpoint.check_labels(dataset)
    return [Model(name, place, checkpoint.trained)]


def _numbered(name: str, seed: int) -> str:
    return name if seed == 0 else f"{name}-seed{seed}"


def max_length_of(source: str) -> int:
    """Return at how many tokens texts for the model `source` are cut off where nobody said another number."""
    return DEFAULT_MAX_LENGTH if source in training.GEOMETRIES else Checkpoint.open(locate(source)).max_length


def to_serve(
    source: str, variant: "Variant", dataset: str | None, max_length: int | None
) -> "tuple[Checkpoint, Dataset | None]":
    """Return the checkpoint of the model `source`, and the dataset on which `variant` is calibrated, where it is.

    A built-in model is trained on `dataset`, news_mini unless told, at `max_length` tokens.

    Raises:
        InputError: one of them cannot be used.
    """
    if source not in training.GEOMETRIES:
        seen = datasets.load(dataset) if variant.calibrated and dataset is not None else None
        return Checkpoint.open(locate(source)), seen
    loaded = datasets.load(dataset or datasets.BUILT_IN)
    max_length = max_length or DEFAULT_MAX_LENGTH
    (model,) = find(source, loaded, [max_length])
    return model.make(loaded, max_length), loaded
