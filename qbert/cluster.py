"""A cluster of Dask: its workers, and files that each of them has, or is sent, by their hash.

Dask moves everything. What is sent are texts, arrays, the bytes of files, and the paths and hashes by which a worker
knows whether it has them; never a pickled model.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from qbert import cores, machine
from qbert.cache import build_folder, cache_dir, check_trusted
from qbert.checkpoint import Checkpoint
from qbert.dataset import FILES, Dataset
from qbert.errors import InputError, pip_install
from qbert.record import RECORD

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_S = 10
LOOK_S = 2
"""How often to look whether the worker that a task waits for is still there."""
NO_WORKER_S = 60
"""A cluster without any worker for so long is given up."""
LOST = 5
"""So many workers may die over one shard: more is the shard's fault."""


class GoneError(InputError):
    """A worker has ended."""


@contextlib.contextmanager
def connect(address: str) -> "Iterator[Client]":
    """Yield a client of the cluster at `address`: a scheduler's address or file, or `local:N` for N processes here.

    Raises:
        InputError: there is no such scheduler, it has no workers, or one of them has several threads.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise InputError(f"--cluster needs Dask: {pip_install('cluster')}") from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is told by this module
    with contextlib.ExitStack() as stack:
        if address.startswith("local:"):
            count = address.removeprefix("local:")
            if not count.isdecimal() or int(count) < 1:
                raise InputError(f"--cluster {address}: give a number of worker processes, such as local:2")
            stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": LOST}))
            place = stack.enter_context(tempfile.TemporaryDirectory())
            local = LocalCluster(
                n_workers=int(count),
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",  # None is port 8787, or a warning
                memory_limit=None,
                local_directory=place,
                silence_logs=logging.CRITICAL,
            )
            where: dict[str, Any] = {"address": stack.enter_context(local)}
        elif Path(address).is_file():
            where = {"scheduler_file": address}
        else:
            where = {"address": address}
        try:
            client = stack.enter_context(Client(**where, timeout=CONNECT_S, set_as_default=False))
            stack.enter_context(client.as_current())
            client.wait_for_workers(1, timeout=NO_WORKER_S)
        except (OSError, TimeoutError, ValueError, TypeError) as error:
            raise InputError(
                f"--cluster {address}: no scheduler with workers answers there ({type(error).__name__}): give its "
                "address, such as tcp://10.0.0.1:8786, its file, or local:2"
            ) from error
        several = [name for name, info in workers(client).items() if info["nthreads"] > 1]
        if several:
            raise InputError(
                f"{', '.join(several)} would run several texts at once in one process: start workers with --nthreads 1 "
                "(and more of them)"
            )
        yield client


def workers(client: "Client") -> dict[str, Any]:
    """Return what the scheduler knows of each worker, by the worker's address."""
    found: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return found


def unlike(client: "Client", *packages: str) -> list[str]:
    """Return a sentence for each worker whose processor or libraries are not those of this process."""
    here = _described(packages)
    told = []
    for address, there in sorted(client.run(_described, packages).items()):
        differing = [f"{key} {there.get(key)} ({own} here)" for key, own in here.items() if there.get(key) != own]
        if differing:
            told.append(f"{address} has {', '.join(differing)}")
    return told


def _described(packages: Sequence[str]) -> dict[str, str]:
    sets = " ".join(machine.instruction_sets())
    return {"processor": machine.processor(), "instruction sets": sets, **machine.versions(*packages)}


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

    def required(self) -> Path:
        """Return what find does.

        Raises:
            InputError: this machine has none.
        """
        if (place := self.find()) is None:
            raise InputError(f"{self.name} ({self.sha256[:12]}) is not on {os.uname().nodename}: start again")
        return place

    def find(self) -> Path | None:
        """Return the folder of this machine that has them, unchanged; None where there is none."""
        return _found(self, cache_dir())


def weights(checkpoint: Checkpoint) -> Folder:
    """Return the files of `checkpoint`, with the record of its training."""
    folder = checkpoint.folder.resolve()
    record = folder / RECORD
    files = [folder / path.relative_to(checkpoint.folder) for path in checkpoint.files]
    return Folder.of(folder, [*files, *([record] if record.is_file() else [])])


def splits(dataset: Dataset) -> Folder:
    """Return the files of `dataset`."""
    return Folder.of(dataset.folder, [dataset.folder / name for name in FILES])


@cache
def _found(folder: Folder, _: Path) -> Path | None:
    for place in (Path(folder.path), folder.kept):
        with contextlib.suppress(OSError):
            if _digest(place, folder.files) == folder.sha256:
                return place
    return None


def _digest(folder: Path, names: Sequence[str]) -> str:
    """Return the hash of the names and contents of the files `names` in `folder`."""
    digest = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def lacks(folder: Folder) -> bool:
    """Whether this machine has no folder with these files."""
    if folder.find() is not None:
        return False
    _found.cache_clear()  # what is absent may come
    return True


def contents(folder: Folder) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the bytes of each file, for others to `keep`.

    Raises:
        InputError: they were changed meanwhile.
    """
    place = folder.find()
    if place is None:
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
        if _digest(stage, folder.files) != folder.sha256:
            raise InputError(f"{folder.name} arrived damaged: its hash is not {folder.sha256[:12]}")

    def intact(target: Path) -> bool:
        with contextlib.suppress(OSError):
            return _digest(target, folder.files) == folder.sha256
        return False

    build_folder(folder.kept, fill, intact=intact)
    _found.cache_clear()


def share(client: "Client", folder: Folder, *, to: Sequence[str] | None = None) -> None:
    """Send `folder` to the workers that lack it, all or those in `to`: from a worker that has it, or from here."""
    told = client.run(lacks, folder, on_error="ignore")  # one that is cut off has not answered
    lacking = [address for address, is_so in told.items() if is_so and (to is None or address in to)]
    if not lacking:
        return
    source = next((address for address, is_so in told.items() if not is_so), "")
    if source:
        sent = client.submit(contents, folder, workers=[source], pure=False)
    else:
        source = lacking[0]
        (sent,) = client.scatter([contents(folder)], workers=[source], hash=False)
    kept = {address: client.submit(keep, folder, sent, workers=[address], pure=False) for address in lacking}
    for address, future in kept.items():
        try:
            result(client, future, address, source)
        except GoneError:
            if source not in workers(client):
                raise


def result(client: "Client", future: "Future[Any]", *needed: str) -> Any:  # noqa: ANN401  whatever the task returns
    """Return the result of `future`, which can run only while the workers `needed` are there.

    Raises:
        GoneError: one of them has ended: Dask would wait for it to come back.
    """
    while True:
        try:
            return future.result(timeout=LOOK_S)
        except TimeoutError:
            if future.done():
                raise  # the task's own
            if gone := set(needed) - set(workers(client)):
                future.cancel()
                raise GoneError(f"the worker {' and '.join(sorted(gone))} ended meanwhile: start it again") from None


@contextlib.contextmanager
def one_process_a_core() -> Iterator[None]:
    """Keep this thread on a core on which no other worker of this user is, where there is one."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    # Not in the cache: workers of one machine may have one each. Nobody else can put a link to another file there.
    locks = Path(tempfile.gettempdir()) / f"qbert-{os.getuid()}"
    locks.mkdir(mode=0o700, exist_ok=True)
    check_trusted(locks)
    with contextlib.ExitStack() as stack:
        for core in cores.here().order:
            try:
                stack.enter_context(FileLock(locks / f"core-{core}").acquire(timeout=0))
            except Timeout:
                continue
            os.sched_setaffinity(0, {core})
            stack.callback(os.sched_setaffinity, 0, allowed)
            break
        yield
