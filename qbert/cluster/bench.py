"""The benchmarks on every machine of a cluster, each in a process of its own beside Dask's worker."""

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbert.cluster import folders
from qbert.cluster import workers as cluster
from qbert.cluster.folders import Folder
from qbert.inputs import dataset as datasets
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.options import OPTIONS
from qbert.inputs.settings import DEFAULTS, Settings
from qbert.results import history
from qbert.system import children, machine
from qbert.system.cache import lock_of, write_file
from qbert.system.errors import InputError, sentence

if TYPE_CHECKING:
    from distributed import Client, Future

FOLDERS: dict[str, Callable[[Path], Folder]] = {
    "--model": lambda place: folders.weights(Checkpoint.open(place)),
    "--dataset": lambda place: folders.splits(datasets.load(place)),
}
"""The options whose folders are sent, and what of a folder."""
NAME = re.compile(r"--(?:qbert-)?machine-name(=|$)")


@dataclass(frozen=True)
class Host:
    """A machine of the cluster."""

    name: str
    """Its address, as Dask says."""
    worker: str
    """The worker beside which the benchmarks run."""
    boot: str
    """The boot of its kernel: addresses of one boot are one machine."""
    description: str
    """What saved runs call it: history.machine_name."""


@dataclass(frozen=True)
class Ran:
    """What the benchmarks left on a machine."""

    code: int
    """pytest's exit code."""
    run: bytes
    """The saved run; empty if there is none."""
    log: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Result:
    """A machine's outcome, brought home."""

    host: Host
    run: Path | None
    """The saved run."""
    log: Path | None
    failed: str
    """Why it failed; empty if it did not."""


def hosts(client: "Client") -> list[Host]:
    """Return a worker for each machine of the cluster."""
    described = cluster.ask(client, _describe)
    first: dict[str, str] = {}
    for address, info in sorted(cluster.workers(client).items()):
        if address in described:
            first.setdefault(info["host"], address)
    return [Host(name, address, *described[address]) for name, address in first.items()]


def _describe() -> tuple[str, str]:
    return machine.boot(), history.machine_name(machine.identity())


def busy(client: "Client") -> list[str]:
    """Return the workers that have something to do: what runs beside a benchmark is timed with it."""
    return sorted(address for address, keys in client.processing().items() if keys)


def run(
    client: "Client", arguments: Sequence[str], output: Path, advance: Callable[[int], None] = lambda _: None
) -> list[Result]:
    """Run `qbert bench` with `arguments` once on each machine, and bring its saved run and log home to `output`.

    Machines run at the same time, addresses of one machine after one another.

    Raises:
        InputError: a worker is busy, or a folder in `arguments` cannot be used.
    """
    if working := busy(client):
        raise InputError(f"{', '.join(working)} has something to do, which would be timed too: wait until it is done")
    output.mkdir(parents=True, exist_ok=True)
    found = hosts(client)
    wanted = _shared(client, arguments, [host.worker for host in found])
    by_machine: dict[str, list[Host]] = {}
    for host in found:
        by_machine.setdefault(host.boot or host.name, []).append(host)
    results: list[Result] = []
    waiting: dict[Future[Any], Host] = {}

    def begin(own: list[Host]) -> None:
        if own:
            arguments = [*_name(own[0], found, wanted), *wanted]
            future = client.submit(bench, arguments, workers=[own[0].worker], retries=0, pure=False)
            waiting[future] = own.pop(0)

    try:
        for own in by_machine.values():
            begin(own)
        while waiting:
            for future in _finished(client, waiting):
                host = waiting.pop(future)
                results.append(_bring_home(client, future, host, output))
                advance(len(results))
                begin(by_machine[host.boot or host.name])
    finally:
        if waiting:  # Ctrl-C
            client.cancel(list(waiting))
            client.run(end_benches, workers=[host.worker for host in waiting.values()], on_error="ignore")
    return sorted(results, key=lambda result: result.host.name)


def _finished(client: "Client", waiting: "Mapping[Future[Any], Host]") -> "list[Future[Any]]":
    """Return those of `waiting` that are done, or whose worker has ended, after LOOK_S at most."""
    from distributed import wait

    with contextlib.suppress(TimeoutError):
        wait(list(waiting), timeout=cluster.LOOK_S, return_when="FIRST_COMPLETED")
    there = cluster.workers(client)
    return [future for future, host in waiting.items() if future.done() or host.worker not in there]


def _name(host: Host, found: Sequence[Host], wanted: Sequence[str | Folder]) -> list[str]:
    """Return the option that names `host`, where a run's own description would not tell it from others."""
    named = any(isinstance(argument, str) and NAME.match(argument) for argument in wanted)
    alike = sum(other.description == host.description for other in found) > 1
    return [f"--machine-name={host.name}"] if alike and not named else []


def _bring_home(client: "Client", future: "Future[Any]", host: Host, output: Path) -> Result:
    stem = re.sub(r"[^\w.-]", "-", host.name)
    log = output / f"{stem}.log"
    try:
        ran: Ran = cluster.result(client, future, host.worker)
    except Exception as error:  # noqa: BLE001  of any class: the other machines go on
        return Result(host, None, None, sentence(error))
    write_file(log, lambda place: place.write_text(ran.log, encoding="utf-8"))
    saved = output / f"{stem}.json"
    if ran.run:
        write_file(saved, lambda place: place.write_bytes(ran.run))
    lines = [line.strip() for line in ran.log.splitlines() if line.strip()]
    how = f"killed by signal {-ran.code}" if ran.code < 0 else f"exit code {ran.code}" if ran.code else "no saved run"
    # Where a worker's signals of ended children are ignored, the code of one that was killed is 0.
    failed = f"{how}: {lines[-1] if lines else 'no word'} ({log})" if ran.code or not ran.run else ""
    return Result(host, saved if ran.run else None, log, failed)


_running: set["subprocess.Popen[str]"] = set()
"""The benchmarks that this worker runs."""


def end_benches() -> None:
    """End the benchmarks that this worker runs."""
    for process in list(_running):
        process.kill()


def bench(wanted: Sequence[str | Folder]) -> Ran:
    """Run the benchmarks here, in a process of its own, when no other run of a fleet is under way on this machine."""
    arguments = [str(argument.required()) if isinstance(argument, Folder) else argument for argument in wanted]
    with lock_of("fleet"), tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "run.json"
        environment = children.tied()
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_"):
            environment["env"].pop(name, None)  # Dask's, for its workers
        process = subprocess.Popen(  # noqa: S603  our own command
            [sys.executable, "-m", "qbert", "bench", *arguments, f"--benchmark-json={saved}"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            **environment,
        )
        _running.add(process)
        log, _ = process.communicate()
        _running.discard(process)
        content = saved.read_bytes() if saved.is_file() else b""
    return Ran(process.returncode, content, log, machine.versions())


def _shared(client: "Client", arguments: Sequence[str], to: Sequence[str]) -> list[str | Folder]:
    """Return `arguments` with the folders of models and datasets as those that the workers `to` have."""
    wanted: list[str | Folder] = []
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if (folder_of := FOLDERS.get(option.replace("--qbert-", "--"))) is None:
            wanted.append(argument)
            continue
        value = value if equals else next(rest, "")
        wanted.append(option)
        if Path(value).is_dir():
            folder = folder_of(Path(value))
            folders.share(client, folder, to=to)
            wanted.append(folder)
        elif value:
            wanted.append(value)
    return wanted


def with_settings(arguments: Sequence[str], settings: Settings) -> list[str]:
    """Return `arguments` with what `settings`, of the user's pyproject.toml, say and they do not: it stays at home."""
    given = {argument.partition("=")[0].replace("--qbert-", "--") for argument in arguments}
    said: list[str] = []
    for option in OPTIONS.values():
        if not option.key or option.of_machine or given & {f"--{name}" for name in option.names}:
            continue
        value = getattr(settings, option.key)
        if value != getattr(DEFAULTS, option.key):
            values = value if isinstance(value, tuple) else (value,)
            listed = values if option.repeatable else (",".join(map(str, values)),)
            said += [f"--{option.name}={one}" for one in listed]
    return [*said, *arguments]
