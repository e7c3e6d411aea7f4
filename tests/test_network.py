"""Nothing looks for a network: neither a conversion, nor a session that is open for long, nor a whole run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qbert import variants
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset

ROOT = Path(__file__).parents[1]
SECONDS = 30  # ONNX Runtime's telemetry looks up its host at once, and after 5 and 14 seconds

CONVERT_AND_CALL = """
import sys, time
from pathlib import Path
from qbert.inputs import dataset
from qbert import variants
from qbert.inputs.checkpoint import Checkpoint

start = time.monotonic()
checkpoint, news, runtimes = Checkpoint.open(Path(sys.argv[1])), dataset.load(sys.argv[2]), sys.argv[3].split(",")
for variant in variants.select("all"):
    if (variant.runtime == "TorchInductor") == ("TorchInductor" in runtimes):
        variants.build(variant, checkpoint, news)(checkpoint.encoder("a", max_length=64))
time.sleep(max(0, float(sys.argv[4]) - (time.monotonic() - start)))
"""


def can_trace() -> bool:
    """Whether strace is there and allowed to trace."""
    strace = shutil.which("strace")
    return bool(strace) and subprocess.run([strace, "-qq", "-o", os.devnull, "true"], check=False).returncode == 0


pytestmark = pytest.mark.skipif(not can_trace(), reason="strace is not installed, or may not trace here")
Traced = Callable[..., list[str]]


@pytest.fixture
def traced(tmp_path: Path) -> Traced:
    """Run Python with arguments in an empty home; return its and its children's calls that name an internet address."""
    home = tmp_path / "home"
    home.mkdir()

    def run(*arguments: object) -> list[str]:
        calls = tmp_path / "calls.txt"
        strace = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", calls]
        done = subprocess.run(
            [*map(str, [*strace, sys.executable, *arguments])],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
            | {"HOME": str(home), "XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT)}
            | {"QBERT_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [line for line in calls.read_text().splitlines() if "AF_INET" in line]

    return run


def kept(folder: Path) -> set[str]:
    """What is in the caches of the empty home afterwards."""
    return {path.name for path in (folder / "home").iterdir()}


def test_the_tracer_sees_a_look_up_of_a_child(traced: Traced) -> None:
    connect = "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('127.0.0.1', 53))"
    seen = traced("-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {connect!r}], check=True)")
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("runtimes", "seconds"),
    [
        pytest.param("others", SECONDS, marks=pytest.mark.slow),
        pytest.param("TorchInductor", 0, marks=pytest.mark.exhaustive),
    ],
    ids=["others", "TorchInductor"],
)
def test_conversions_and_a_long_session_look_for_no_network(
    traced: Traced, trained: Checkpoint, news: Dataset, tmp_path: Path, runtimes: str, seconds: float
) -> None:
    assert traced("-c", CONVERT_AND_CALL, trained.folder, news.folder, runtimes, seconds) == []
    assert "Microsoft" not in kept(tmp_path)


@pytest.mark.slow
def test_a_run_looks_for_no_network(traced: Traced, trained: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    each_runtime = {row.runtime: row.name for row in variants.select("default")}
    subject = ["--model", trained.folder, "--dataset", news.folder, "--max-lengths", 16, "--max-f1-drop", 1]
    subject += ["--variants", ",".join(each_runtime.values())]
    quick = ["--seconds-per-cell", 0.05, "-p", "no:cacheprovider", "-q"]
    assert traced("-m", "pytest", ROOT / "bench", "-c", ROOT / "pyproject.toml", *subject, *quick) == []
    assert "Microsoft" not in kept(tmp_path)


@pytest.mark.slow
def test_a_training_looks_for_no_network(traced: Traced, news: Dataset) -> None:
    short = ["--base", "bert-tiny", "--max-length", 16, "--epochs", 1, "--output", "tiny"]
    assert traced("-m", "qbert", "train", "--dataset", news.folder, *short) == []
