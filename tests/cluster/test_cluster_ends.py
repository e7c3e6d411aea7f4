"""What is no cluster, and clusters that end in the middle: a sentence and an exit code, never a traceback."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from loopback import Processes, client_of, of, other_tokenizers

import qbert
from qbert import variants
from qbert.cli import main
from qbert.cluster import folders, judging, trainings
from qbert.cluster import workers as cluster
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset, text_rows
from qbert.measure.cells import Suite
from qbert.system.errors import InputError

pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with of(tmp_path_factory.mktemp("one"), "one") as processes:
        yield processes


@pytest.mark.parametrize(
    ("address", "why"),
    [("http://127.0.0.1:9", "http"), ("", "''"), ("127.0.0.1", "port"), ("tls://127.0.0.1:9", "TLS"), ("list", "list")],
)
def test_what_is_no_scheduler_is_told_with_the_reason(
    address: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_text("[1]")
    with (
        pytest.raises(InputError, match=r"no scheduler of Dask answers there.*such as tcp") as told,
        cluster.connect(address),
    ):
        pass
    assert why in str(told.value)


def test_a_port_that_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match="no scheduler of Dask"), cluster.connect(address):
            pass


def test_a_worker_is_no_scheduler(one: Processes) -> None:
    with client_of(one) as client:
        (worker,) = cluster.workers(client)
        with pytest.raises(InputError, match="a Worker answers"), cluster.connect(worker):
            pass


def test_the_command_says_so_in_one_line_and_at_once(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"key": 1}))
    command = [sys.executable, "-m", "qbert", "evaluate", "--model", "bert-tiny", "--cluster", "settings.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "it has no 'address'" in done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines() if ":" in line][-1] == "Error"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [["evaluate"], ["choose", "--output", "new"], ["reproduce"], ["fleet"]], ids=lambda one: one[0]
)
def test_an_empty_address_is_not_none(command: list[str], trained: Checkpoint, news: Dataset) -> None:
    given = [] if command == ["fleet"] else ["--dataset", str(news.folder)]
    given += ["--model", str(trained.folder)] if command[0] in ("evaluate", "choose") else []
    done = CliRunner().invoke(main, [*command, *given, "--cluster", ""])
    assert done.exit_code == 2
    assert "--cluster ''" in done.output
    with pytest.raises(InputError, match="--cluster ''"):
        qbert.evaluate(trained.folder, news.folder, cluster="")


def test_processes_that_are_killed_while_they_start_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif '--multiprocessing-fork' in sys.orig_argv: os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match="--cluster local:1: its processes did not start"), cluster.connect("local:1"):
        pass


def _end(name: str) -> str:
    if os.environ["NAME"] in name:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


@pytest.mark.slow
def test_a_worker_that_ends_while_it_is_asked_is_left_out(tmp_path: Path) -> None:
    with of(tmp_path) as processes:
        for name in ("one", "other"):
            processes.add(name, NAME=name, PYTHONPATH=os.pathsep.join(sys.path))
        with client_of(processes) as client:
            assert list(cluster.ask(client, _end, "one").values()) == ["alive"]
            with pytest.raises(InputError, match="no worker has answered"):
                cluster.ask(client, _end, "one, other")


@pytest.mark.slow
def test_a_cluster_that_has_lost_all_its_workers_is_given_up(
    tmp_path: Path, trained: Checkpoint, news: Dataset, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    rows = text_rows(news.test)
    told = r"no worker has been there for 1 s, with \d+ (shards?|trainings?) to do: start some, and start again"
    with of(tmp_path, "one") as processes, client_of(processes) as client:
        workers = judging.Workers(client)
        job = workers.job(variants.get("fp32"), trained, news, 64, rows[:5])
        monkeypatch.setattr(cluster, "NO_WORKER_S", 1)  # not before: on a busy machine a worker starts later than that
        processes.workers["one"].kill()
        wait_until(lambda: not cluster.workers(client))
        with pytest.raises(InputError, match=told):
            workers.judge(job, rows)
        suite = Suite(news, [str(trained.folder)], max_lengths=[16], fine_tune=True)
        monkeypatch.setattr(folders, "share", lambda *_: None)
        with pytest.raises(InputError, match=told):
            trainings.run(suite, "int8-dynamic-onednn", str(trained.folder), client)


def test_only_dasks_errors_without_a_number_are_of_a_worker_that_is_gone() -> None:
    from distributed.comm import CommClosedError

    gone = [cluster._is_gone(error) for error in (CommClosedError("closed"), OSError("Timed out"))]  # noqa: SLF001
    there = [cluster._is_gone(error) for error in (FileNotFoundError(2, "none", "size"), ValueError(), 5)]  # noqa: SLF001
    assert (gone, there) == ([True, True], [False, False, False])


def test_a_worker_without_qbert_is_told(tmp_path: Path) -> None:
    (tmp_path / "qbert.py").write_text("raise ModuleNotFoundError('none here')")
    with of(tmp_path) as processes:
        processes.add("odd", PYTHONPATH=str(tmp_path), PYTHONSAFEPATH="1")
        with client_of(processes) as client, pytest.raises(InputError, match=r"tcp.* cannot answer .*needs qbert in"):
            judging.Workers(client)


def _in_the_middle(client: object, trained: Checkpoint, news: Dataset, end: Callable[..., None]) -> None:
    members = judging.Workers(client)  # type: ignore[arg-type]
    rows = text_rows(news.test)
    members.judge(members.job(variants.get("fp32"), trained, news, 64, rows[:5]), rows * 5, end)


def _of_a_choice(client: object, _: Checkpoint, __: Dataset, end: Callable[..., None]) -> None:
    end()
    judging.Workers(client)  # type: ignore[arg-type]


def _of_sending(client: object, trained: Checkpoint, _: Dataset, end: Callable[..., None]) -> None:
    end()
    folders.share(client, folders.weights(trained))  # type: ignore[arg-type]


@pytest.mark.parametrize("do", [pytest.param(_in_the_middle, marks=pytest.mark.slow), _of_a_choice, _of_sending])
def test_a_scheduler_that_ends_is_told(
    do: Callable[..., None], trained: Checkpoint, news: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 3)
    with of(tmp_path, "one") as processes:

        def end(*_: object) -> None:
            processes.running[0].kill()

        told = pytest.raises(InputError, match="the scheduler ended, or was cut off, meanwhile")
        with told, client_of(processes) as client:
            do(client, trained, news, end)


@pytest.mark.slow
def test_the_versions_of_a_worker_are_the_reason_for_its_error(
    trained: Checkpoint, news: Dataset, tmp_path: Path
) -> None:
    with of(tmp_path) as processes:
        processes.add("odd", PYTHONPATH=str(other_tokenizers(tmp_path)))
        with client_of(processes) as client:
            (worker,) = cluster.workers(client)
            with pytest.raises(InputError, match=rf"of the workers, {worker} has tokenizers 0\.0\.1 \(.* here\)"):
                _in_the_middle(client, trained, news, lambda _: None)


PLUGIN = {
    "killed": "import os; os.kill(os.getpid(), 9)",
    "ends with 0": "import os; os._exit(0)",
    "waits": "import pathlib, os, time; pathlib.Path(os.environ['BEGUN']).touch(); time.sleep(600)",
}
IGNORING = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
"""Start a program for which the codes of its children are lost, as some supervisors do."""


def start_fleet(processes: Processes, plugin: str, *prefix: str) -> "subprocess.Popen[str]":
    (processes.folder / "interfering.py").write_text(PLUGIN[plugin])
    variables = {"PYTHONPATH": str(processes.folder), "PYTEST_ADDOPTS": "-p interfering"}
    processes.add("one", prefix=prefix, BEGUN=str(processes.folder / "begun"), **variables)
    return subprocess.Popen(
        [sys.executable, "-m", "qbert", "fleet", "--cluster", str(processes.file), "-o", "home"],
        cwd=processes.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "prefix", "told"),
    [
        ("killed", (), "killed by signal 9"),
        ("killed", (sys.executable, "-c", IGNORING), "no saved run"),
        ("ends with 0", (), "no saved run"),
    ],
)
def test_benchmarks_that_end_without_a_run_have_failed(
    plugin: str, prefix: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    with of(tmp_path) as processes:
        fleet = start_fleet(processes, plugin, *prefix)
        output, _ = fleet.communicate(timeout=120)
    assert fleet.returncode == 1, output
    assert re.search(rf"^127\.0\.0\.1: failed, {told}", output, re.MULTILINE)


@pytest.mark.slow
def test_ctrl_c_ends_a_fleet_and_its_benchmarks_without_a_traceback(
    tmp_path: Path, processes: Callable[[str], list[str]], wait_until: Callable[..., None]
) -> None:
    begun = tmp_path / "begun"
    with of(tmp_path) as cluster_here:
        fleet = start_fleet(cluster_here, "waits")
        wait_until(begun.exists, 90)
        assert len(processes(f"BEGUN={begun}")) == 2  # Dask's worker and the benchmarks
        fleet.send_signal(signal.SIGINT)
        start = time.monotonic()
        output, _ = fleet.communicate(timeout=60)
        assert time.monotonic() - start < 30
        wait_until(lambda: len(processes(f"BEGUN={begun}")) == 1, 20)
    assert fleet.returncode not in (0, 2)
    assert "Traceback" not in output
    assert output.rstrip().endswith("Aborted!")
