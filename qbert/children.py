"""Processes that end with the one that started them, however that ends: a pipe tells them, which it alone holds open.

The standard library alone is needed: the gate's worker reads this file in trees that do not have it.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
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


class Answering:
    """A child that answers requests, one at a time, each a line of JSON: `answer_requests` is its part.

    It leads a group, so that it ends with all that it started, and the terminal's Ctrl-C is not for it.
    """

    def __init__(self, python: str, *arguments: str, path: str, stderr: int | None = None) -> None:
        """Start the interpreter `python` with `arguments` and the module path `path`.

        Raises:
            OSError: it cannot be started.
        """
        self._process = subprocess.Popen(  # noqa: S603  our own command
            [python, "-P", "-W", "ignore", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            **tied(PYTHONPATH=path),
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin  # noqa: S101  both are pipes
        assert self._process.stdout  # noqa: S101
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._received = b""

    def send(self, do: str, **arguments: Any) -> None:  # noqa: ANN401  whatever JSON holds
        """Send a request; `receive` waits for its answer."""
        unsent = memoryview(json.dumps({"do": do} | arguments).encode() + b"\n")
        with contextlib.suppress(BrokenPipeError):  # receive finds out why
            while unsent:
                unsent = unsent[self._stdin.write(unsent) or 0 :]

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return the answer to the last request: `answer`, or `error` and what else the child tells of it.

        Raises:
            TimeoutError: there is none in time.
            EOFError: it has ended; the message says how.
        """
        end = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(max(0, end - time.monotonic())):
                    raise TimeoutError
                if not (part := os.read(self._stdout.fileno(), 1 << 16)):
                    code = self._process.wait()
                    raise EOFError(f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}")
                self._received += part
        line, _, self._received = self._received.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """Kill what is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stdin.close()
        self._stdout.close()


def answer_requests(answering: object, told: Callable[[Exception], dict[str, Any]]) -> None:
    """Answer the requests on standard input by the methods of `answering` until there are no more.

    What a method raises is answered with what `told` makes of it.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = {"answer": getattr(answering, request.pop("do"))(**request)}
            except Exception as error:  # noqa: BLE001  of any kind, by anybody's code: who asked reports it
                answer = told(error)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


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
