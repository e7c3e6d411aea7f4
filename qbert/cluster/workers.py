"""A cluster of Dask: its workers, and files that each of them has, or is sent, by their hash.

Dask moves everything. What is sent are texts, arrays, the bytes of files, and the paths and hashes by which a worker
knows whether it has them; never a pickled model.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import FILES, Dataset
from qbert.system import cores, machine
from qbert.system.cache import build_folder, cache_dir, check_trusted
from qbert.system.errors import CannotRunError, InputError, pip_install, reason
from qbert.system.record import RECORD

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

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
        InputError: there is no such scheduler, it has no workers, or one of them has several threads; it, or a worker
            that is needed, ends meanwhile.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError(f"--cluster needs Dask: {pip_install('cluster')}") from error
    for name in ("distributed", "distributed.client", "tornado.application", "asyncio"):  # Dask gives each a level
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is told by this module
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(_processes_here(address)) if address.startswith("local:") else _answering(address)
        client = stack.enter_context(Client(where, timeout=CONNECT_S, set_as_default=False))
        stack.enter_context(client.as_current())
        stack.enter_context(_losses_told(client, address, where if isinstance(where, str) else where.scheduler_address))
        try:
            client.wait_for_workers(1, timeout=NO_WORKER_S)
        except TimeoutError as error:
            raise InputError(f"--cluster {address}: its scheduler has had no worker for {NO_WORKER_S} s") from error
        several = [name for name, info in workers(client).items() if info["nthreads"] > 1]
        if several:
            raise InputError(
                f"{', '.join(several)} would run several texts at once in one process: start workers with --nthreads 1 "
                "(and more of them)"
            )
        yield client


@contextlib.contextmanager
def _processes_here(address: str) -> "Iterator[LocalCluster]":
    """Yield as many workers on this machine as `address` says.

    Raises:
        InputError: it says no number, or they do not start.
    """
    import dask
    from distributed import LocalCluster

    count = address.removeprefix("local:")
    if not count.isdecimal() or int(count) < 1:
        raise InputError(f"--cluster {address}: give a number of worker processes, such as local:2")
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": LOST}))
        place = stack.enter_context(tempfile.TemporaryDirectory())
        try:
            local = LocalCluster(
                n_workers=int(count),
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",  # None is port 8787, or a warning
                memory_limit=None,
                local_directory=place,
                silence_logs=logging.CRITICAL,
            )
        except Exception as error:
            raise InputError(
                f"--cluster {address}: its processes did not start ({reason(error)}): is there memory for so many?"
            ) from error
        yield stack.enter_context(local)


def _answering(address: str) -> str:
    """Return the address of the scheduler that answers at `address`, or at that in the file `address`.

    It is asked before there is a client: one that finds none waits for it even while it is closed.

    Raises:
        InputError: none does.
    """
    try:
        at = json.loads(Path(address).read_bytes())["address"] if Path(address).is_file() else address
        _look(at)
    except Exception as error:  # of any class: what is no scheduler may answer anything
        why = reason(error)
        if isinstance(error, KeyError | TimeoutError):
            why = f"it has no {error}" if isinstance(error, KeyError) else f"not within {CONNECT_S:g} s"
        raise InputError(
            f"--cluster {address or repr(address)}: no scheduler of Dask answers there ({why}): give its address, such "
            "as tcp://10.0.0.1:8786, its file, or local:2"
        ) from error
    return str(at)


def _look(at: str) -> None:
    """Raise any exception unless a scheduler answers at `at`."""
    from distributed.core import rpc
    from distributed.security import Security
    from distributed.utils import LoopRunner

    async def look() -> None:
        options = Security().get_connection_args("client")
        async with rpc(at, timeout=CONNECT_S, connection_args=options) as scheduler:
            answer = await asyncio.wait_for(scheduler.identity(), CONNECT_S)
        if answer["type"] != "Scheduler":
            raise ValueError(f"a {answer['type']} answers")

    LoopRunner().run_sync(look)


@contextlib.contextmanager
def _losses_told(client: "Client", address: str, at: str) -> Iterator[None]:
    """Raise InputError where the scheduler, which is `at` there, or a worker that was being asked is lost."""
    try:
        yield
    except Exception as error:
        scheduler = client.status != "running"
        if not scheduler and not _is_dasks(error):
            raise
        try:
            _look(at)  # the client may not know yet
        except Exception:  # noqa: BLE001  as in _answering
            scheduler = True
        who = "the scheduler" if scheduler else f"a worker ({reason(error)})"
        raise InputError(
            f"--cluster {address}: {who} ended, or was cut off, meanwhile: look at its log, and start again"
        ) from error


def _is_dasks(error: Exception) -> bool:
    """Whether `error` is of a class of Dask, such as a closed connection or a cancelled task."""
    return type(error).__module__.partition(".")[0] == "distributed"


T = TypeVar("T")


def ask(client: "Client", function: Callable[..., T], *arguments: object) -> dict[str, T]:
    """Return what `function` returns on each worker, by the worker's address; one that ends meanwhile is left out.

    Raises:
        InputError: every worker has ended, or one cannot answer.
    """
    answers = client.run(function, *arguments, on_error="return")
    for address, error in sorted(answers.items()):
        if isinstance(error, Exception) and not isinstance(error, OSError):
            raise InputError(
                f"the worker {address} cannot answer ({reason(error)}): it needs qbert in the same version as here"
            ) from error
    if found := {address: answer for address, answer in answers.items() if not isinstance(answer, OSError)}:
        return found
    raise GoneError("no worker has answered, since each ended or was cut off meanwhile: look at their logs")


def workers(client: "Client") -> dict[str, Any]:
    """Return what the scheduler knows of each worker, by the worker's address."""
    found: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return found


def unlike(client: "Client", *packages: str) -> list[str]:
    """Return a sentence for each worker whose processor or libraries are not those of this process."""
    here = _described(packages)
    told = []
    for address, there in sorted(ask(client, _described, packages).items()):
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
            with likely_reason(client):
                return future.result(timeout=LOOK_S)
        except TimeoutError:
            if future.done():
                raise  # the task's own
            if gone := set(needed) - set(workers(client)):
                future.cancel()
                raise GoneError(f"the worker {' and '.join(sorted(gone))} ended meanwhile: start it again") from None


@contextlib.contextmanager
def likely_reason(client: "Client") -> Iterator[None]:
    """Add to the error of a worker's task which workers have other libraries than this process, if any have."""
    try:
        yield
    except (TimeoutError, GoneError):
        raise
    except Exception as error:
        if _is_dasks(error) or not (others := unlike(client)):
            raise
        kind = CannotRunError if isinstance(error, CannotRunError) else InputError
        why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {reason(error)}"
        raise kind(f"{why}; of the workers, {'; '.join(others)}: install the same versions everywhere") from error


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
