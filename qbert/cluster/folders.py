"""Files that each worker of a cluster has, or is sent, by their hash.

Dask moves everything. What is sent are texts, arrays, the bytes of files, and the paths and hashes by which a worker
knows whether it has them; never a pickled model.
"""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qbert.cluster.workers import GoneError, result, workers
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.system.cache import build_folder, cache_dir
from qbert.system.errors import InputError
from qbert.system.record import RECORD

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class Folder:
    """Files that every worker finds, or is sent, by their hash."""

    name: str
    sha256: str
    path: str
    """Where they are for the process that named them, and may be for others on its machine."""
    files: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, files: Sequence[Path] | None = None) -> "Folder":
        """Return the `files` in `folder`; without names, all files."""
        paths = sorted(files or (path for path in folder.rglob("*") if path.is_file()))
        names = tuple(path.relative_to(folder).as_posix() for path in paths)
        return cls(folder.name, _digest(folder, names), str(folder.resolve()), names)

    @property
    def kept(self) -> Path:
        """Where a worker keeps them that was sent them."""
        return cache_dir() / "cluster" / self.sha256[:32] / self.name

    def find(self) -> Path | None:
        """Return the folder of this machine that has them, unchanged; None where there is none."""
        return _found(self, cache_dir())

    def required(self) -> Path:
        """Return what find does.

        Raises:
            InputError: this machine has none.
        """
        if (place := self.find()) is None:
            raise InputError(f"{self.name} ({self.sha256[:12]}) is not on {os.uname().nodename}: start again")
        return place

    def is_at(self, place: Path) -> bool:
        """Whether the folder `place` has them, unchanged."""
        with contextlib.suppress(OSError):
            return _digest(place, self.files) == self.sha256
        return False


def weights(checkpoint: Checkpoint) -> Folder:
    """Return the files of `checkpoint`, with the record of its training."""
    folder = checkpoint.folder.resolve()
    record = folder / RECORD
    files = [folder / path.relative_to(checkpoint.folder) for path in checkpoint.files]
    return Folder.of(folder, [*files, *([record] if record.is_file() else [])])


def splits(dataset: Dataset) -> Folder:
    """Return the files of `dataset`."""
    return Folder.of(dataset.folder, [dataset.folder / name for name in dataset.files])


@cache
def _found(folder: Folder, _: Path) -> Path | None:
    return next((place for place in (Path(folder.path), folder.kept) if folder.is_at(place)), None)


def _digest(folder: Path, names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def lacks(folder: Folder) -> bool:
    """Whether this machine has no folder with these files now, whatever it had before."""
    _found.cache_clear()
    return folder.find() is None


def contents(folder: Folder) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the bytes of each file, for others to `keep`.

    Raises:
        InputError: they were changed meanwhile.
    """
    if (place := folder.find()) is None:
        raise InputError(f"{folder.path} was changed meanwhile: start again")
    return {name: np.fromfile(place / name, np.uint8) for name in folder.files}


def keep(folder: Folder, files: Mapping[str, npt.NDArray[np.uint8]]) -> None:
    """Write the `files` that were sent, once a machine, and check that they have the hash.

    Raises:
        InputError: they have not.
    """

    def fill(stage: Path) -> None:
        for name, content in files.items():
            path = stage / name
            if not path.resolve().is_relative_to(stage.resolve()):
                raise InputError(f"{name} is no file below {folder.name}: nothing was written")
            path.parent.mkdir(parents=True, exist_ok=True)
            content.tofile(path)
        if not folder.is_at(stage):
            raise InputError(f"{folder.name} arrived damaged: its hash is not {folder.sha256[:12]}")

    build_folder(folder.kept, fill, intact=folder.is_at)
    _found.cache_clear()


def share(client: "Client", folder: Folder, *, to: Sequence[str] | None = None) -> None:
    """Send `folder` to the workers that lack it, all or those in `to`: from a worker that has it, or from here."""
    lacking = client.run(lacks, folder, on_error="ignore")  # one that is cut off has not answered
    receivers = [address for address in lacking if lacking[address] and (to is None or address in to)]
    if not receivers:
        return
    source = next((address for address in lacking if not lacking[address]), "")
    if source:
        sent = client.submit(contents, folder, workers=[source], pure=False)
    else:
        source = receivers[0]
        (sent,) = client.scatter([contents(folder)], workers=[source], hash=False)
    kept = {address: client.submit(keep, folder, sent, workers=[address], pure=False) for address in receivers}
    for address, future in kept.items():
        try:
            result(client, future, address, source)
        except GoneError:
            if source not in workers(client):
                raise
