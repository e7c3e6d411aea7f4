"""The workers of a Dask cluster: to connect to them, to ask them, and what is said where they end or differ."""

import asyncio
import contextlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from qbert.system import cores, machine
from qbert.system.cache import check_trusted
from qbert.system.errors import CannotRunError, InputError, pip_install, reason
from qbert.system.terminal import counted, echo

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

CONNECT_S = 10
LOOK_S = 2
"""How often to look whether the worker that a task waits for is still there."""
NO_WORKER_S = 60
"""How long a cluster may be without any worker before it is given up."""
LOST = 5
"""How many workers may die over one shard: more is the shard's fault."""


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
        logging.getLogger(name).setLevel(logging.CRITICAL)  # this module says what matters
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(_processes_here(address)) if address.startswith("local:") else _answering(address)
        client = stack.enter_context(Client(where, timeout=CONNECT_S, set_as_default=False))
        stack.enter_context(client.as_current())
        stack.enter_context(_explaining_losses(client, address, client.scheduler.address))
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
                f"--cluster {address}: its processes did not start ({reason(error)}): is there memory for all?"
            ) from error
        yield stack.enter_context(local)


def _answering(address: str) -> str:
    """Return the address of the scheduler that answers at `address`, or at that in the file `address`.

    It is asked before there is a client: one that finds none waits for it even while it is closed.
    """
    try:
        at = json.loads(Path(address).read_bytes())["address"] if Path(address).is_file() else address
        _check_scheduler(at)
    except Exception as error:  # of any class: what is no scheduler may answer anything
        why = reason(error)
        if isinstance(error, KeyError | TimeoutError):
            why = f"it has no {error}" if isinstance(error, KeyError) else f"not within {CONNECT_S:g} s"
        raise InputError(
            f"--cluster {address or repr(address)}: no scheduler of Dask answers there ({why}): give its address, such "
            "as tcp://10.0.0.1:8786, its file, or local:2"
        ) from error
    return str(at)


def _check_scheduler(at: str) -> None:
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
def _explaining_losses(client: "Client", address: str, at: str) -> Iterator[None]:
    """Raise InputError where the scheduler, which is `at` there, or a worker that was being asked is lost."""
    try:
        yield
    except Exception as error:
        scheduler = client.status != "running"
        if not scheduler and not _is_dasks(error):
            raise
        try:
            _check_scheduler(at)  # the client may not know yet
        except Exception:  # noqa: BLE001  as in _answering
            scheduler = True
        who = "the scheduler" if scheduler else f"a worker ({reason(error)})"
        raise InputError(
            f"--cluster {address}: {who} ended, or was cut off, meanwhile: look at its log, and start again"
        ) from error


def _is_dasks(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] == "distributed"


T = TypeVar("T")


def warn_of_unlike(client: "Client") -> None:
    """Print which workers have another processor or other libraries than this process."""
    for sentence in unlike(client):
        echo(f"not as here: {sentence}", err=True)


def ask(client: "Client", function: Callable[..., T], *arguments: object) -> dict[str, T]:
    """Return what `function` returns on each worker, by the worker's address; one that ends meanwhile is left out.

    Raises:
        InputError: every worker has ended, or one cannot answer.
    """
    answers = client.run(function, *arguments, on_error="return")
    for address, error in sorted(answers.items()):
        if isinstance(error, Exception) and not _is_gone(error):
            raise InputError(
                f"the worker {address} cannot answer ({reason(error)}): it needs qbert in the same version as here"
            ) from error
    if found := {address: answer for address, answer in answers.items() if not _is_gone(answer)}:
        return found
    raise GoneError("no worker has answered, since each ended or was cut off meanwhile: look at their logs")


def _is_gone(answer: object) -> bool:
    """Whether it is Dask's word for a worker that is gone, and not the error of a file, which has a number."""
    return isinstance(answer, OSError) and answer.errno is None


def workers(client: "Client") -> dict[str, Any]:
    """Return what the scheduler knows of each worker, by the worker's address."""
    found: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return found


def unlike(client: "Client", *packages: str) -> list[str]:
    """Return a sentence for each worker whose processor or libraries are not those of this process."""
    here = _described(packages)
    differences = {
        address: [f"{key} {there.get(key)} ({own} here)" for key, own in here.items() if there.get(key) != own]
        for address, there in sorted(ask(client, _described, packages).items())
    }
    return [f"{address} has {', '.join(differing)}" for address, differing in differences.items() if differing]


def _described(packages: Sequence[str]) -> dict[str, str]:
    sets = " ".join(machine.instruction_sets())
    return {"processor": machine.processor(), "instruction sets": sets, **machine.versions(*packages)}


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


def finished(client: "Client", waiting: "Mapping[Future[Any], object]", what: str) -> "Iterator[Future[Any]]":
    """Yield the futures in `waiting` as they end; who takes one removes it, and may add others.

    Raises:
        InputError: there is no worker for NO_WORKER_S; `what` is what a future does.
    """
    from distributed import wait

    since = time.monotonic()
    while waiting:
        try:
            done = wait(list(waiting), timeout=LOOK_S, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            if workers(client):
                since = time.monotonic()
            if time.monotonic() - since > NO_WORKER_S:
                raise InputError(
                    f"no worker has been there for {NO_WORKER_S} s, with {counted(len(waiting), what)} to do: "
                    "start some, and start again"
                ) from None
            continue
        since = time.monotonic()
        yield from done


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
