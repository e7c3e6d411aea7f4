"""Child processes that end with their parent, however it ends: a pipe, which the parent alone holds open, then closes.

It imports only the standard library: the gate's worker also loads this file in trees that lack it.
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
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

LIFELINE = "QBERT_LIFELINE"
"""The environment variable with the file descriptor of the child's end of the pipe."""


@cache
def _read_end() -> int:
    """Return the children's end of the pipe; the other end stays open, unused, as long as this process lives."""
    return os.pipe()[0]


def tied(**variables: str) -> dict[str, Any]:
    """Return arguments of subprocess for a child that ends with this process; its environment gets `variables` too."""
    return {"pass_fds": (_read_end(),), "env": os.environ | variables | {LIFELINE: str(_read_end())}}


def run(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":  # noqa: ANN401
    """Run this interpreter with `arguments` and the same module path, and wait; the child ends with this process."""
    return subprocess.run(  # noqa: S603  our own command
        [sys.executable, "-P", "-W", "ignore", *arguments],
        **tied(PYTHONPATH=os.pathsep.join(entry for entry in sys.path if entry)),
        text=True,
        check=False,
        **options,
    )


class Answering:
    """A child that answers requests one at a time, each a line of JSON; it runs `answer_requests`.

    It leads a process group, so that it ends with all processes that it started, and Ctrl-C in the terminal does not
    reach it.
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

    def fileno(self) -> int:
        """Return the descriptor on which its answer, or its end, shows."""
        return self._stdout.fileno()

    @property
    def has_ended(self) -> bool:
        """Whether the child runs no more."""
        return self._process.poll() is not None

    def send(self, do: str, **arguments: Any) -> None:  # noqa: ANN401  whatever JSON holds
        """Send a request; `receive` waits for its answer."""
        unsent = memoryview(json.dumps({"do": do} | arguments).encode() + b"\n")
        with contextlib.suppress(BrokenPipeError):  # receive raises the reason
            while unsent:
                unsent = unsent[self._stdin.write(unsent) or 0 :]

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return the answer to the last request: `answer`, or `error` and what else the child reports of it.

        Raises:
            TimeoutError: there is no answer in time.
            EOFError: the child has ended; the message says how.
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
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Kill the child and its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stdin.close()
        self._stdout.close()


def first_answers(waiting: Mapping[Any, Answering], timeout_s: float) -> Iterator[tuple[Any, Answering]]:
    """Yield each of the children `waiting`, with its key, when it has answered or ended: `receive` then does not wait.

    Raises:
        TimeoutError: the next one takes longer than `timeout_s`.
    """
    with selectors.DefaultSelector() as selector:
        for key, child in waiting.items():
            selector.register(child, selectors.EVENT_READ, key)
        while selector.get_map():
            if not (ready := selector.select(timeout_s)):
                raise TimeoutError
            for entry, _ in ready:
                selector.unregister(entry.fileobj)
                yield entry.data, waiting[entry.data]


def answer_requests(handler: object, report: Callable[[Exception], dict[str, Any]]) -> None:
    """Answer the requests on standard input by the methods of `handler` until there are no more.

    Where a method raises, the answer is what `report` returns for the exception.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # so that what libraries print is not taken for an answer
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = {"answer": getattr(handler, request.pop("do"))(**request)}
            except Exception as error:  # noqa: BLE001  of any class; the parent reports it
                answer = report(error)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def end_with_parent() -> None:
    """Make this process, and the group that it leads, end with its parent, if that started it with `tied`."""
    if number := os.environ.pop(LIFELINE, ""):  # so that its own children do not inherit it
        pipe = int(number)
        os.set_inheritable(pipe, False)  # noqa: FBT003  the standard library's
        _watch(pipe)
        os.register_at_fork(after_in_child=lambda: _watch(pipe))  # a fork has no thread but that which forked


def _watch(pipe: int) -> None:
    threading.Thread(target=_end_after, args=(pipe,), daemon=True).start()


def _end_after(pipe: int) -> None:
    """Wait, without processor time, until the parent's end of `pipe` is closed; then end this process."""
    os.read(pipe, 1)
    if os.getpgrp() == os.getpid():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(0, signal.SIGKILL)
    os._exit(1)
