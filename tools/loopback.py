"""A Dask scheduler and its workers as processes on loopback, each worker with a cache of its own."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qbert.cluster import workers as cluster

QUICK = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10 s"}  # after which one that is cut off counts as dead


class Processes:
    """A scheduler and its workers, each with a cache of its own."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self.running: list[subprocess.Popen[bytes]] = []
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.start("distributed.cli.dask_scheduler", f"--host={host}", "--port=0", "--no-dashboard")
        self._wait(self.file.is_file)

    def start(
        self, module: str, *arguments: str, prefix: tuple[str, ...] = (), **variables: str
    ) -> "subprocess.Popen[bytes]":
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", module, f"--scheduler-file={self.file}", *arguments],
                env=os.environ | QUICK | variables,
                stdout=log,
                stderr=log,
            )
        self.running.append(process)
        return process

    def add(self, name: str, *arguments: str, prefix: tuple[str, ...] = (), **variables: str) -> None:
        """Start a worker, by the command `prefix` if it is given."""
        own = self.folder / name
        own.mkdir()
        given = ("--no-nanny", "--no-dashboard", f"--name={name}", f"--local-directory={own}", *arguments)
        if not any(argument.startswith("--nthreads") for argument in arguments):
            given += ("--nthreads=1",)
        variables = {"QBERT_CACHE": str(own / "cache"), "OMP_NUM_THREADS": "1"} | variables
        self.workers[name] = self.start("distributed.cli.dask_worker", *given, prefix=prefix, **variables)

    def end(self) -> None:
        for process in reversed(self.running):
            process.kill()
            process.wait()

    def _wait(self, holds: Callable[[], object]) -> None:
        end = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.05)


@contextlib.contextmanager
def of(folder: Path, *names: str) -> Iterator[Processes]:
    processes = Processes(folder)
    try:
        for name in names:
            processes.add(name)
        yield processes
    finally:
        processes.end()


@contextlib.contextmanager
def client_of(processes: Processes) -> Iterator[Any]:
    with cluster.connect(str(processes.file)) as client:
        client.wait_for_workers(len(processes.workers), timeout=60)
        yield client


def other_tokenizers(folder: Path) -> Path:
    """Return a place for PYTHONPATH, in `folder`, where the library tokenizers seems to be of another version."""
    place = folder / "path" / "tokenizers-0.0.1.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: tokenizers\nVersion: 0.0.1\n")
    return place.parent
