"""Run commands in processes forked from one that has imported the slow packages: real processes that start fast."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
"""Forks a process without threads: the fork of a process with threads hangs as soon as it needs them."""
SERVER.set_forkserver_preload(
    [
        "torch",
        "transformers",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.bert.modeling_bert",
        "pandas",
        "scipy.stats",
        "sklearn.metrics",
        "qbert.cli",
        "qbert.results.page",
        "qbert.measure.cells",
    ]
)
LONGEST_S = 600


def run(
    module: str, *arguments: object, cwd: Path, environment: Mapping[str, str], stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` in the folder `cwd`, with `environment` added to this process's."""
    command = [module, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / name for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(stdin or "", encoding="utf-8")
        child = SERVER.Process(target=_main, args=(command, str(cwd), {**os.environ, **environment}, files))
        child.start()
        child.join(LONGEST_S)
        child.kill()
        child.join()
        outputs = [path.read_text(encoding="utf-8") for path in files[1:]]
    return subprocess.CompletedProcess(command, child.exitcode or 0, *outputs)


def _main(command: Sequence[str], cwd: str, environment: Mapping[str, str], files: Sequence[Path]) -> None:
    for stream, path in enumerate(files):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), stream)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  multiprocessing has closed it
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    here = str(Path(__file__).parent)
    first = [cwd, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:] = [*filter(None, first), *(entry for entry in sys.path if entry != here)]
    sys.argv = list(command)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
