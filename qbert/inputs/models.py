"""What `--model` names: a checkpoint's folder, a model on the hub, or a built-in model, which is made at first use."""

import hashlib
import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbert.inputs import dataset as datasets
from qbert.inputs import training
from qbert.inputs.checkpoint import Checkpoint, locate
from qbert.inputs.settings import DEFAULT_MAX_LENGTH
from qbert.system import children, sources
from qbert.system.cache import build_kept, cache_dir
from qbert.system.errors import InputError
from qbert.system.terminal import say

if TYPE_CHECKING:
    from qbert.inputs.dataset import Dataset
    from qbert.variants import Variant

UNTRAINED = "bert-base"
"""The built-in model of random weights; the others are trained on the dataset at first use."""


@dataclass(frozen=True)
class Model:
    """A model that `--model` names."""

    name: str
    """Its name in test ids."""
    source: str
    """A key of training.GEOMETRIES, or the folder of a checkpoint to use or to fine-tune."""
    trained: bool
    """Whether its head was trained, so that its labels mean something."""
    seed: int = 0
    """The seed of its training."""
    label_order: tuple[int, ...] = ()
    """The dataset's id of each label, where a checkpoint has them."""
    fine_tune: bool = False
    """Whether its source is a base to be fine-tuned on the dataset."""

    @property
    def is_made_at_first_use(self) -> bool:
        """Whether its checkpoint is made here, and kept in the cache."""
        return self.fine_tune or self.source in training.GEOMETRIES

    def place(self, dataset: "Dataset", max_length: int) -> Path:
        """Return the folder of its checkpoint for this dataset and length, which may not exist yet."""
        if not self.is_made_at_first_use:
            return Path(self.source)
        base = Checkpoint(Path(self.source)).sha256 if self.fine_tune else self.source
        ingredients: list[Any] = [dataset.sha256, base, self.seed]
        if self.trained:
            recipe = training.recipe_for(self.source, len(dataset.train), goes_on=self._goes_on(max_length))
            ingredients += [max_length, asdict(recipe), sources.sha256(training.__name__)]
        key = hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:16]
        return cache_dir() / "models" / key / (f"{self.name}-{max_length}" if self.trained else self.name)

    def _goes_on(self, max_length: int) -> bool:
        """Whether its checkpoint for this length is trained from that for training.SHORT tokens."""
        return self.trained and not self.fine_tune and max_length > training.SHORT

    def make(self, dataset: "Dataset", max_length: int) -> Checkpoint:
        """Return its checkpoint for this dataset and length; make it where it does not exist.

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
        shorter = str(self.make(dataset, training.SHORT).folder) if self._goes_on(max_length) else None
        say(f"training {self.name} at {max_length} tokens on {dataset.name}, once")
        # In its own process, training can use all cores and does not change this process's threads and memory.
        request = {"dataset": str(dataset.folder), "base": self.source, "folder": str(stage), "shorter": shorter}
        arguments = json.dumps(request | {"max_length": max_length, "seed": self.seed})
        done = children.run("-m", training.__name__, arguments, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise InputError(f"training {self.name} failed with exit code {done.returncode}: see the message above")


def find(
    source: str, dataset: "Dataset", max_lengths: Sequence[int], *, experiments: int = 1, fine_tune: bool = False
) -> list[Model]:
    """Return the model that `source` names; one for each of the `experiments` (training seeds) if it is trained here.

    With `fine_tune`, a folder or hub id is a base to be trained on the dataset.

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
    checkpoint.encoder.check_pairs(dataset)
    name, place = re.sub(r"[^\w.-]", "-", Path(source).resolve().name), str(folder.resolve())
    if fine_tune:
        seeds = range(experiments)
        return [Model(_numbered(name, seed), place, trained=True, seed=seed, fine_tune=True) for seed in seeds]
    order = checkpoint.label_order(dataset) if checkpoint.trained else ()
    return [Model(name, place, checkpoint.trained, label_order=order)]


def _numbered(name: str, seed: int) -> str:
    return name if seed == 0 else f"{name}-seed{seed}"


def max_length_of(source: str) -> int:
    """Return the default number of tokens at which texts for the model `source` are cut off."""
    return DEFAULT_MAX_LENGTH if source in training.GEOMETRIES else Checkpoint.open(locate(source)).max_length


def to_serve(
    source: str, variant: "Variant", dataset: str | None, max_length: int | None
) -> "tuple[Checkpoint, Dataset | None]":
    """Return the checkpoint of the model `source`, and the dataset on which `variant` is calibrated, if it is.

    A built-in model is trained on `dataset`, by default news_mini, at `max_length` tokens.

    Raises:
        InputError: one of them cannot be used.
    """
    if source not in training.GEOMETRIES:
        calibration = datasets.load(dataset) if variant.calibrated and dataset is not None else None
        return Checkpoint.open(locate(source)), calibration
    loaded = datasets.load(dataset or datasets.BUILT_IN)
    max_length = max_length or DEFAULT_MAX_LENGTH
    (model,) = find(source, loaded, [max_length])
    return model.make(loaded, max_length), loaded
