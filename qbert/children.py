"""Processes that end with the one that started them, however that ends: a pipe tells them, which it alone holds open.

The standard library alone is needed: the gate's worker reads this file in trees that do not have it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from functools import cache
from typing import Any

LIFELINE = "QBERT_LIFELINE"
"""The environment variable that gives a child the number of its end of the pipe."""


@cache
def _read_end() -> int:
    """Return the end of the pipe for children; the other stays open, unread and unwritten, while this process lives."""
    return os.pipe()[0]


def tied(**variables: str) -> dict[str, Any]:
    """Return what subprocess takes to start a child that ends with this process; `variables` go to its environment."""
    return {"pass_fds": (_read_end(),), "env": os.environ | variables | {LIFELINE: str(_read_end())}}


def run(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":  # noqa: ANN401
    """Run this interpreter with `arguments` and this process's module path, and wait; it ends with this process."""
    return subprocess.run(  # noqa: S603  our own command
        [sys.executable, "-P", "-W", "ignore", *arguments],
        **tied(PYTHONPATH=os.pathsep.join(entry for entry in sys.path if entry)),
        text=True,
        check=False,
        **options,
    )


def end_with_parent() -> None:
    """Have this process, and its group where it leads one, end with its parent, if that has tied it."""
    if number := os.environ.pop(LIFELINE, ""):  # whom this process starts has no such pipe
        threading.Thread(target=_end_after, args=(int(number),), daemon=True).start()


def _end_after(pipe: int) -> None:
    """Wait, without taking processor time, until the parent's end of `pipe` is closed; then end."""
    os.set_inheritable(pipe, False)  # noqa: FBT003  the standard library's
    os.read(pipe, 1)
    if os.getpgrp() == os.getpid():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(0, signal.SIGKILL)
    os._exit(1)
