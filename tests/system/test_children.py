"""What a process has started ends with it, however it ends."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset

SLEEPS = "import time; from qbert.system.worker import end_with_parent; end_with_parent(); {before}; time.sleep(600)"


@pytest.fixture
def start(tmp_path: Path) -> Callable[[str], "subprocess.Popen[bytes]"]:
    """Start a Python script with a cache of its own, by which it and what it starts are known."""

    def begin(script: str) -> "subprocess.Popen[bytes]":
        environment = os.environ | {"QBERT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
        return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=environment)

    return begin


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent(
    start: Callable[[str], "subprocess.Popen[bytes]"],
    processes: Callable[[str], list[str]],
    wait_until: Callable[..., None],
    tmp_path: Path,
    how: signal.Signals,
) -> None:
    child = SLEEPS.format(before=f"open({str(tmp_path / 'begun')!r}, 'w')")
    parent = start(f"from qbert.system import children; children.run('-c', {child!r})")
    wait_until((tmp_path / "begun").exists, 30)
    assert len(processes(f"QBERT_CACHE={tmp_path / 'cache'}")) == 2
    parent.send_signal(how)
    parent.wait()
    wait_until(lambda: not processes(f"QBERT_CACHE={tmp_path / 'cache'}"))


def test_a_child_that_leads_a_group_takes_that_with_it(
    start: Callable[[str], "subprocess.Popen[bytes]"],
    processes: Callable[[str], list[str]],
    wait_until: Callable[..., None],
    tmp_path: Path,
) -> None:
    child = SLEEPS.format(before="import subprocess; subprocess.Popen(['sleep', '600'])")
    parent = start(f"from qbert.system import children; children.run('-c', {child!r}, start_new_session=True)")
    wait_until(lambda: len(processes(f"QBERT_CACHE={tmp_path / 'cache'}")) == 3, 30)
    parent.kill()
    parent.wait()
    wait_until(lambda: not processes(f"QBERT_CACHE={tmp_path / 'cache'}"))


def test_a_process_that_nobody_has_tied_stays(tmp_path: Path) -> None:
    script = "import time; from qbert.system import worker; worker.end_with_parent(); time.sleep(0.2); print('here')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "here\n"


def test_the_process_of_a_footprint_ends_with_the_run(
    start: Callable[[str], "subprocess.Popen[bytes]"],
    processes: Callable[[str], list[str]],
    wait_until: Callable[..., None],
    trained: Checkpoint,
    tmp_path: Path,
) -> None:
    (tmp_path / "outside.py").write_text(f"""
import pathlib, time
def load(folder):
    pathlib.Path({str(tmp_path / "begun")!r}).touch()
    time.sleep(600)
""")
    parent = start(f"""
        import pathlib, outside
        from qbert.measure import footprint
        from qbert.variants import Variant
        footprint.measure(Variant("mine", "none", "fp32", outside.load), pathlib.Path({str(trained.folder)!r}), {{}})
    """)
    wait_until((tmp_path / "begun").exists, 60)
    parent.kill()
    parent.wait()
    wait_until(lambda: not processes(f"QBERT_CACHE={tmp_path / 'cache'}"))


@pytest.mark.slow
def test_a_suite_that_is_killed_takes_its_training_with_it_and_the_next_one_succeeds(
    start: Callable[[str], "subprocess.Popen[bytes]"],
    processes: Callable[[str], list[str]],
    wait_until: Callable[..., None],
    trained: Checkpoint,
    news: Dataset,
    tmp_path: Path,
) -> None:
    script = f"""
        from qbert.inputs import dataset
        from qbert.measure.cells import Suite
        suite = Suite(dataset.load({str(news.folder)!r}), [{str(trained.folder)!r}], max_lengths=[16], fine_tune=True)
        assert suite.checkpoint(suite.models["tiny"], 16).trained
    """
    parent = start(script)
    wait_until(lambda: list((tmp_path / "cache").glob("models/*/..*")), 120)  # the training's own stage
    parent.kill()
    parent.wait()
    wait_until(lambda: not processes(f"QBERT_CACHE={tmp_path / 'cache'}"))
    assert start(script).wait() == 0
    (model,) = (tmp_path / "cache" / "models").glob("*")
    assert [path.name for path in model.iterdir()] == ["tiny-16"]
