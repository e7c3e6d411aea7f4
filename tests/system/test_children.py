"""What a process has started ends with it, however it ends, and answers it."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.system.children import Child, ChildError, LostError
from qbert.system.errors import CannotRunError, InputError

SLEEPS = "import time; from qbert.system.worker import end_with_parent; end_with_parent(); {before}; time.sleep(600)"
Start = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a Python script with a cache of its own, by which it and what it starts are known."""

    def begin(script: str) -> "subprocess.Popen[bytes]":
        environment = os.environ | {"QBERT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
        return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=environment)

    return begin


@pytest.fixture
def running(tmp_path: Path, processes: Callable[[str], list[str]]) -> Callable[[], list[str]]:
    """Find what `start` has started."""
    return lambda: processes(f"QBERT_CACHE={tmp_path / 'cache'}")


@pytest.fixture
def all_end(running: Callable[[], list[str]], wait_until: Callable[..., None]) -> Callable[..., None]:
    """End a script, by default by SIGKILL, and wait for the end of what it has started."""

    def end(parent: "subprocess.Popen[bytes]", how: signal.Signals = signal.SIGKILL) -> None:
        parent.send_signal(how)
        parent.wait()
        wait_until(lambda: not running())

    return end


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent(
    start: Start,
    running: Callable[[], list[str]],
    all_end: Callable[..., None],
    wait_until: Callable[..., None],
    tmp_path: Path,
    how: signal.Signals,
) -> None:
    child = SLEEPS.format(before=f"open({str(tmp_path / 'begun')!r}, 'w')")
    parent = start(f"from qbert.system import children; children.run('-c', {child!r})")
    wait_until((tmp_path / "begun").exists, 30)
    assert len(running()) == 2
    all_end(parent, how)


def test_a_child_that_leads_a_group_takes_that_with_it(
    start: Start, running: Callable[[], list[str]], all_end: Callable[..., None], wait_until: Callable[..., None]
) -> None:
    child = SLEEPS.format(before="import subprocess; subprocess.Popen(['sleep', '600'])")
    parent = start(f"from qbert.system import children; children.run('-c', {child!r}, start_new_session=True)")
    wait_until(lambda: len(running()) == 3, 30)
    all_end(parent)


def test_a_process_that_nobody_has_tied_stays(tmp_path: Path) -> None:
    script = "import time; from qbert.system import worker; worker.end_with_parent(); time.sleep(0.2); print('here')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "here\n"


ANSWERS = """
import os, subprocess, time
from qbert.system import errors, worker
class Handler:
    def double(self, number):
        print("not an answer")
        return 2 * number
    def sleep(self):
        time.sleep(600)
    def start(self):
        return subprocess.Popen(["sleep", "600"]).pid
    def end(self, code):
        os._exit(code)
    def kill(self):
        os.kill(os.getpid(), 9)
    def fail(self, kind):
        raise {**vars(errors), "ValueError": ValueError}[kind]("it is broken\\nwholly")
worker.answer_requests(Handler())
"""


@pytest.fixture
def child() -> Iterator[Child]:
    with Child("the child", "-c", ANSWERS) as started:
        yield started


@pytest.mark.parametrize(
    ("request_", "error", "told"),
    [
        ({"do": "sleep"}, LostError, "the child has said nothing for 5 s"),
        ({"do": "end", "code": 7}, LostError, "the child ended with exit code 7"),
        ({"do": "kill"}, LostError, "the child was killed by signal 9"),
        ({"do": "fail", "kind": "InputError"}, InputError, "it is broken"),
        ({"do": "fail", "kind": "CannotRunError"}, CannotRunError, "it is broken"),
        ({"do": "fail", "kind": "ValueError"}, ChildError, "ValueError: it is broken"),
    ],
)
def test_a_child_answers_or_an_error_says_why_not(
    child: Child, request_: dict[str, object], error: type[Exception], told: str
) -> None:
    assert child.ask("double", number=21) == 42
    child.timeout_s = 5
    with pytest.raises(InputError) as raised:
        child.ask(**request_)
    assert (type(raised.value), str(raised.value)) == (error, told)


def test_a_child_that_freezes_in_the_middle_of_an_answer_is_told() -> None:
    with Child("the child", "-c", "import os, time; os.write(0, bytes([0, 0, 1, 0, 7])); time.sleep(600)") as child:
        child.timeout_s = 2
        with pytest.raises(LostError, match="the child has said nothing for 2 s"):
            child.receive()


def test_a_child_that_reads_nothing_is_told() -> None:
    with Child("the child", "-c", "import time; time.sleep(600)") as child:
        child.timeout_s = 1
        with pytest.raises(LostError, match="the child has said nothing for 1 s"):
            child.ask("anything", text="more than a socket holds" * 100_000)


def test_the_child_of_a_fork_ends_with_the_fork(
    start: Start, running: Callable[[], list[str]], wait_until: Callable[..., None], tmp_path: Path
) -> None:
    child = SLEEPS.format(before=f"open({str(tmp_path / 'begun')!r}, 'w')")
    parent = start(f"""
        import os, pathlib, time
        from qbert.system import children
        children.run("-c", "pass")
        if fork := os.fork():
            while not pathlib.Path({str(tmp_path / "begun")!r}).exists():
                time.sleep(0.1)
            os.kill(fork, 9)
            os.waitpid(fork, 0)
            time.sleep(600)
        children.run("-c", {child!r})
    """)
    wait_until((tmp_path / "begun").exists, 30)
    wait_until(lambda: len(running()) == 1)
    parent.kill()
    parent.wait()


def test_a_child_that_is_ended_takes_what_it_started_with_it(child: Child, wait_until: Callable[..., None]) -> None:
    started = child.ask("start")
    child.close()
    wait_until(lambda: not Path(f"/proc/{started}").exists())


def test_the_process_of_a_footprint_ends_with_the_run(
    start: Start, all_end: Callable[..., None], wait_until: Callable[..., None], trained: Checkpoint, tmp_path: Path
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
    all_end(parent)


@pytest.mark.slow
def test_a_suite_that_is_killed_takes_its_training_with_it_and_the_next_one_succeeds(
    start: Start,
    all_end: Callable[..., None],
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
    all_end(parent)
    assert start(script).wait() == 0
    (model,) = (tmp_path / "cache" / "models").glob("*")
    assert [path.name for path in model.iterdir()] == ["tiny-16"]
