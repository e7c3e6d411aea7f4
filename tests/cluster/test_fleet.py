"""The benchmarks on each machine of a real cluster, and trainings side by side."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from loopback import client_of, of

from qbert.cli import main
from qbert.cluster import bench as fleet
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.inputs.settings import DEFAULTS
from qbert.results import history

pytest.importorskip("distributed")


@pytest.mark.slow
def test_every_machine_is_measured_and_one_that_fails_is_named(
    tmp_path: Path, trained: Checkpoint, news: Dataset
) -> None:
    arguments = ["--model", str(trained.folder), f"--dataset={news.folder}", "--variants=fp32", "--max-lengths=32"]
    quick = [
        "-k",
        "latency or accuracy",
        "--seconds-per-cell=0.1",
        "--benchmark-min-rounds=5",
        "-p",
        "no:cacheprovider",
    ]
    home = tmp_path / "home"
    with of(tmp_path) as processes:
        for name, host in (("one", 1), ("beside", 1), ("other", 2)):
            processes.add(name, f"--host=127.0.0.{host}")
        processes.add("wrong", "--host=127.0.0.3", PYTEST_ADDOPTS="--no-such-option")
        with client_of(processes) as client:
            assert [host.name for host in fleet.hosts(client)] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
            assert fleet.busy(client) == []
        command = ["fleet", "--cluster", str(processes.file), "-o", str(home), "--", *arguments, *quick]
        done = CliRunner().invoke(main, command)
    assert done.exit_code == 1, done.output
    assert "127.0.0.3: failed, exit code 4" in done.output
    assert "--no-such-option" in (home / "127.0.0.3.log").read_text()
    runs = history.load(sorted(home.glob("*.json")))
    assert list(dict.fromkeys(name.partition(",")[0] for name in runs["machine"])) == ["127.0.0.1", "127.0.0.2"]
    assert "agree in every answer" in done.output
    assert "Machines side by side" in (home / "report.html").read_text()
    assert "passed" in (home / "127.0.0.2.log").read_text()


def test_settings_that_stay_at_home_are_given_to_the_machines() -> None:
    settings = DEFAULTS.but(models=("m",), max_lengths=(64, 128), drop_guard="interval")
    assert fleet.with_settings(["--model=x", "-k", "int8"], settings) == [
        *("--max-lengths=64,128", "--drop-guard=interval"),
        *("--model=x", "-k", "int8"),
    ]
    assert fleet.with_settings([], DEFAULTS) == []


@pytest.mark.slow
def test_trainings_are_shared(tmp_path: Path, trained: Checkpoint, news: Dataset) -> None:
    table = tmp_path / "table.json"
    command = ["reproduce", "--dataset", str(news.folder), "--base", str(trained.folder), "--max-lengths", "32,16"]
    command += ["--trainings", "1", "--variant", "int8-dynamic-onednn", "--cluster", "local:2", "--json", str(table)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert [training["max_length"] for training in json.loads(table.read_text())] == [32, 16]
