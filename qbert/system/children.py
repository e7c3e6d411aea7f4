"""Child processes that end with their parent, however it ends: a pipe, which the parent alone holds open, then closes.

Those of execnet and of multiprocessing's forkserver outlive a killed parent, and what they have started outlives them.
"""

import contextlib
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
from multiprocessing import Pipe
from typing import Any, Self

from qbert.system.errors import TRACEBACK, CannotRunError, InputError
from qbert.system.worker import LIFELINE

LOADING_S = 900.0
"""A child that sends nothing for this time while it loads a variant is taken to hang."""


_ends: list[int] = []


def _read_end() -> int:
    """Return the children's end of the pipe; the other end stays open, unused, as long as this process lives."""
    if not _ends:
        _ends.extend(os.pipe())
    return _ends[0]


def _leave_ends() -> None:
    """Close what a fork has of its parent's pipe, which has to close with the parent; its own children get another."""
    while _ends:
        os.close(_ends.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_ends)


def tied(**variables: str) -> dict[str, Any]:
    """Return arguments of subprocess for a child that ends with this process; its environment gets `variables` too."""
    return {"pass_fds": (_read_end(),), "env": os.environ | variables | {LIFELINE: str(_read_end())}}


def module_path() -> str:
    """Return the PYTHONPATH with which a child imports what this process can."""
    return os.pathsep.join(entry for entry in sys.path if entry)


def run(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":  # noqa: ANN401
    """Run this interpreter with `arguments` and the same module path, and wait; the child ends with this process."""
    return subprocess.run(  # noqa: S603  our own command
        [sys.executable, "-P", "-W", "ignore", *arguments],
        **tied(PYTHONPATH=module_path()),
        text=True,
        check=False,
        **options,
    )


class ChildError(InputError):
    """A child fails with an error that nobody expected."""


class LostError(ChildError):
    """A child has ended or hangs; the message says which child, and how."""


class Child:
    """A child that answers requests one at a time by worker.answer_requests.

    It leads a process group, so that it ends with all processes that it started, and Ctrl-C in the terminal does not
    reach it. What it prints goes to standard error, if it is `shown`.
    """

    def __init__(
        self,
        name: str,
        *arguments: str,
        python: str = sys.executable,
        path: str | None = None,
        shown: bool | None = None,
        timeout_s: float = LOADING_S,
    ) -> None:
        """Start `python` with `arguments` and the module path `path`; `name` is the child's in messages.

        Raises:
            OSError: it cannot be started.
        """
        self.name, self.timeout_s = name, timeout_s
        self.pipe, theirs = Pipe()
        shown = bool(os.environ.get(TRACEBACK)) if shown is None else shown
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603  our own command
                [python, "-P", "-W", "ignore", *arguments],
                stdin=theirs.fileno(),
                stdout=2 if shown else subprocess.DEVNULL,
                stderr=None if shown else subprocess.DEVNULL,
                **tied(PYTHONPATH=module_path() if path is None else path),
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it."""
        self.close()

    def ask(self, do: str, **arguments: Any) -> Any:  # noqa: ANN401  whatever JSON holds
        """Send a request and return its answer: `receive`."""
        self.send(do, **arguments)
        return self.receive()

    def send(self, do: str, **arguments: Any) -> None:  # noqa: ANN401
        """Send a request; `receive` waits for its answer."""
        self._limit(socket.SO_SNDTIMEO)
        with contextlib.suppress(OSError):  # of a child that has ended or freezes: receive tells how
            self.pipe.send_bytes(json.dumps({"do": do} | arguments).encode())

    def receive(self) -> Any:  # noqa: ANN401
        """Return the answer to the last request.

        Raises:
            LostError: the child has ended, or there is no answer for `timeout_s`.
            CannotRunError, InputError, ChildError: the request fails with one of the first two, or with another error.
        """
        self._limit(socket.SO_RCVTIMEO)
        try:
            if not self.pipe.poll(self.timeout_s):
                raise self.silent()
            reply = json.loads(self.pipe.recv_bytes())
        except BlockingIOError as error:
            raise self.silent() from error
        except (EOFError, ConnectionResetError) as error:
            code = self.process.wait()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise LostError(f"{self.name} {how}") from error
        if "error" in reply:
            kinds = {"CannotRunError": CannotRunError, "InputError": InputError}
            raise kinds.get(reply["kind"], ChildError)(reply["error"])
        return reply["answer"]

    def _limit(self, direction: int) -> None:
        """Let sending or receiving take no longer than `timeout_s`, as of a child that freezes in the middle."""
        with socket.socket(fileno=os.dup(self.pipe.fileno())) as end:
            end.setsockopt(socket.SOL_SOCKET, direction, struct.pack("ll", math.ceil(self.timeout_s), 0))

    def silent(self) -> LostError:
        """Return the error that it does not answer."""
        return LostError(f"{self.name} has said nothing for {self.timeout_s:.0f} s")

    def close(self) -> None:
        """Kill the child and its group."""
        if self.pipe.closed:  # by now the number may be another process's
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.pipe.close()
