"""The two sides of `qbert gate`: where code, libraries and models of each come from, and the process that runs it."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from qbert import InputError

CELL = ("model", "max_length", "variant")


class SideError(Exception):
    """A side could not run; the message says which, and why."""


@dataclass(frozen=True)
class Side:
    """Where one side's code, libraries and models come from."""

    name: str
    """`base` or `head`."""
    python: str
    tree: Path | None
    """Comes first on the module path; without one, qbert is what the interpreter has installed."""
    models: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """What both sides run."""

    dataset: str
    max_lengths: tuple[int, ...]
    variants: str
    documents: int | None = None
    plugins: tuple[str, ...] = ()


class Worker:
    """A side's process; leaving the context kills it and all that it started."""

    def __init__(self, side: Side, subject: Subject, *, timeout_s: float, shown: bool = False) -> None:
        """Start it; `shown` lets what it says while building through to standard error.

        Raises:
            SideError: it cannot be started.
        """
        self.side, self._timeout_s, self._subject = side, timeout_s, subject
        path = [str(side.tree)] if side.tree else []
        path += [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        try:
            self._process = subprocess.Popen(  # noqa: S603  the interpreter that the person named
                [side.python, "-P", "-W", "ignore", str(Path(__file__).with_name("worker.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if shown else subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
                start_new_session=True,  # it is killed as a group, and never by the terminal's Ctrl-C
                bufsize=0,
            )
        except OSError as error:
            raise SideError(f"{side.name} could not run: {side.python}: {error.strerror}") from error
        assert self._process.stdin  # noqa: S101  both are pipes
        assert self._process.stdout  # noqa: S101
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._received = b""
        self._doing = ""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stdin.close()
        self._stdout.close()

    def send_open(self) -> None:
        """Have it make its suite; the answer is `models`, their names in order, and the names of the `variants`."""
        asked = asdict(self._subject)
        del asked["documents"]
        self.send("open", **asked, models=self.side.models, lenient=self.side.name == "base")

    def ask(self, do: str, **arguments: Any) -> Any:  # noqa: ANN401
        """Send a request and return its answer."""
        self.send(do, **arguments)
        return self.receive()

    def send(self, do: str, **arguments: Any) -> None:  # noqa: ANN401
        """Send a request; `receive` waits for its answer."""
        self._doing = " ".join([do, *(str(arguments[name]) for name in CELL if name in arguments)])
        with contextlib.suppress(BrokenPipeError):  # receive finds out why
            self._stdin.write(json.dumps({"do": do} | arguments).encode() + b"\n")

    def receive(self) -> Any:  # noqa: ANN401
        """Return the answer to the last request.

        Raises:
            InputError: head finds a mistake in what the person asked for.
            SideError: the side failed, ended, or did not answer in time.
        """
        end = time.monotonic() + self._timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(max(0, end - time.monotonic())):
                    raise self._failed(f"no answer in {self._timeout_s:g} s to '{self._doing}'")
                if not (part := os.read(self._stdout.fileno(), 1 << 16)):
                    code = self._process.wait()
                    ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                    raise self._failed(f"its process {ended} during '{self._doing}'")
                self._received += part
        line, _, self._received = self._received.partition(b"\n")
        answer = json.loads(line)
        if "error" not in answer:
            return answer["answer"]
        if answer["mistake"] and self.side.name == "head" and self._doing == "open":
            raise InputError(answer["error"])
        raise self._failed(f"{answer['error']} ('{self._doing}')")

    def _failed(self, why: str) -> SideError:
        return SideError(f"{self.side.name} could not run: {why}")


@contextlib.contextmanager
def worktree(ref: str) -> Iterator[Path]:
    """Check `ref` of the repository here out into a folder of its own, and remove that at the end.

    Raises:
        InputError: there is no repository, or no such commit.
    """
    if not _git("rev-parse", "--is-inside-work-tree"):
        raise InputError("--base-ref needs a git repository, and there is none here")
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if not commit:
        raise InputError(f"--base-ref {ref} is no commit of this repository: fetch it, or name another")
    with tempfile.TemporaryDirectory(prefix="qbert-base-") as place:
        tree = Path(place).resolve() / "tree"
        try:
            if _git("worktree", "add", "--detach", str(tree), commit) is None:
                raise InputError(f"git cannot check {ref} out into {tree}")
            yield tree
        finally:
            _git("worktree", "remove", "--force", "--force", str(tree))


def _git(*arguments: str) -> str | None:
    """Return what git prints; None where it fails."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def tree_here(*, of_repository: bool) -> Path | None:
    """Return head's tree: the repository's, or that of this qbert; None where qbert is installed as a package."""
    if of_repository:
        return Path(_git("rev-parse", "--show-toplevel") or ".").resolve()
    source = Path(__file__).resolve().parents[1]
    return source if (source / "pyproject.toml").is_file() else None
