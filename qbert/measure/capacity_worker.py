"""A process that serves: it loads one variant as a service does and classifies texts when capacity.py asks it to."""

import contextlib
import fcntl
import gc
import importlib
import itertools
import math
import mmap
import operator
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert.system import children
from qbert.system.errors import CannotRunError, InputError, sentence
from qbert.variants.artefact import Artefact

if TYPE_CHECKING:
    from qbert.inputs.tokenizer import Encoding

WARM_UP_S = 0.2
# OpenVINO's int8 compiles kernels at the first text of each length, 50 to 100 ms of a MiniLM on an Intel Xeon: if these
# were timed, it would seem to serve 195 texts a second where it serves 349.
LONGER = 1.3  # times as long as the second, a first text did more than its work
ALIKE = 3  # lengths in a row whose first text did not: this runtime does not compile
SETTLE_S = 0.02  # the first texts after a pause find the caches and the clock of others
LONG_S = 0.2  # a text that takes longer is not classified twice if the runtime compiled nothing for a few tokens
FILLER_TOKENS = 32  # at most: all wait for the last filler
RUNNING, FINISHED = 1, 2
"""The stages of a worker in a block, on the board."""


class Board:
    """Memory that the workers share: the stage of each, and the number of the next request.

    It is a file that all of them map, so it is gone with its folder, however they end.
    """

    TICKET = slice(0, 8)

    def __init__(self, path: Path, workers: int = 0) -> None:
        """Map the file `path`; with `workers`, make it for that many."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if workers:
            os.ftruncate(self._file, 8 + workers)
        self._memory = mmap.mmap(self._file, 0)

    def clear(self) -> None:
        """Begin anew: no worker has begun, and the next request is number 0."""
        self._memory[:] = bytes(len(self._memory))

    def set(self, worker: int, stage: int) -> None:
        """Show that `worker` has reached `stage`."""
        self._memory[8 + worker] = stage

    def have(self, stage: int, workers: Sequence[int]) -> bool:
        """Whether all of `workers` have reached `stage`."""
        return all(self.stage(worker) >= stage for worker in workers)

    def stage(self, worker: int) -> int:
        """Return how far `worker` has come; 0 at first."""
        return self._memory[8 + worker]

    def take(self) -> int:
        """Return the number of the next request, which no other worker gets."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            number = int.from_bytes(self._memory[self.TICKET], "little")
            self._memory[self.TICKET] = (number + 1).to_bytes(8, "little")
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return number

    def close(self) -> None:
        """Let go of the file."""
        self._memory.close()
        os.close(self._file)


class Worker:
    """The requests that it answers."""

    def __init__(self) -> None:
        """Start with nothing loaded."""
        self._classify: Callable[..., npt.NDArray[np.float32]] = np.zeros
        self._encode: Callable[..., Encoding] = dict
        self._texts: list[tuple[str, ...]] = []
        self._fillers: Iterator[int] = iter(())
        self._max_length = self._filler_length = self._settling = 0
        self._seen: set[int] = set()
        self._alike = 0
        self._forked = False

    def fork(self, modules: Sequence[str]) -> None:
        """Import `modules` once, and answer from now on in a fork, until `end`; then in this process again.

        What the fork loads is gone with it. If it ends in another way, so does this process.
        """
        for module in modules:
            with contextlib.suppress(Exception):  # to load it tells why
                importlib.import_module(module)
        gc.collect()
        gc.freeze()  # a collection would copy the pages that both have
        if fork := os.fork():
            _, status = os.waitpid(fork, 0)
            if os.WIFSIGNALED(status):
                os.kill(os.getpid(), os.WTERMSIG(status))
            if code := os.waitstatus_to_exitcode(status):
                os._exit(code)
        else:
            self._forked = True

    def end(self) -> None:
        """End this fork; the process that forked answers."""
        os._exit(0)

    def pin(self, processors: list[int]) -> None:
        """Stay on `processors` from now on, with all threads: those there are, and those that will be started.

        Raises:
            InputError: the system refuses.
        """
        if not processors:
            return
        try:
            for task in _tasks():
                os.sched_setaffinity(task, processors)
        except OSError as error:
            raise InputError(f"it cannot be pinned to processor {_listed(processors)} ({error.strerror})") from error

    def load(
        self, variant: Mapping[str, Any], artefact: Mapping[str, Any], max_length: int, texts: Sequence[Sequence[str]]
    ) -> dict[str, Any]:
        """Load the variant with `module.name(folder, **options)` and the tokenizer in `artefact`, then classify a text.

        Returns the classifier's evidence.

        Raises:
            CannotRunError: the runtime cannot run this model.
            InputError: one of its threads runs on other processors than this one.
        """
        self._texts = [tuple(text) for text in texts]
        self._fillers = itertools.cycle(range(len(self._texts)))
        self._max_length, self._filler_length = max_length, min(FILLER_TOKENS, max_length)
        tokenizer = Artefact(**dict(artefact, folder=Path(artefact["folder"])))
        try:
            load = operator.attrgetter(variant["name"])(importlib.import_module(variant["module"]))
            classifier = load(Path(variant["folder"]), **variant["options"])
            self._encode = tokenizer.encoder
            self._classify = lambda *text, max_length=max_length: classifier(self._encode(*text, max_length=max_length))
            self._twice(self._texts[0], self._filler_length)
        except InputError:
            raise
        except Exception as error:  # each runtime raises its own, without a common class
            raise CannotRunError(f"it cannot be loaded and called ({sentence(error)})") from error
        _check_threads()
        gc.collect()
        gc.disable()
        return dict(classifier.evidence)

    def warm_up(self) -> float:
        """Classify texts for WARM_UP_S, one of middle length first; return the median seconds of the later half."""
        middle = sorted(self._texts, key=lambda text: sum(map(len, text)))[len(self._texts) // 2]
        filler_s = self._twice(middle, self._filler_length - 1)  # another length than at first, if it is long enough
        self._settling = math.ceil(SETTLE_S / filler_s)
        texts = itertools.chain([middle], itertools.cycle(self._texts))
        seconds: list[float] = []
        start = time.perf_counter()
        while not seconds or time.perf_counter() - start < WARM_UP_S:
            seconds.append(self._twice(next(texts), self._max_length))
        return float(np.median(seconds[len(seconds) // 2 :]))

    def see_lengths(self, texts: Sequence[int]) -> None:
        """Classify one of each length of `texts`, by number, unless the runtime does not mind which is the first.

        They are the fillers from now on.
        """
        self._fillers = itertools.cycle(texts)
        for number in texts:
            if self._alike >= ALIKE:
                break
            if self._tokens(self._texts[number], self._max_length) not in self._seen:
                self._twice(self._texts[number], self._max_length)

    def _twice(self, text: tuple[str, ...], max_length: int) -> float:
        """Classify `text` twice; return the seconds of the second time, and see whether a new length took longer."""
        first = self._seconds(text, max_length)
        if first >= LONG_S and self._alike:
            self._alike = ALIKE
            return first
        second = self._seconds(text, max_length)
        if (tokens := self._tokens(text, max_length)) not in self._seen:
            self._seen.add(tokens)
            self._alike = self._alike + 1 if first < LONGER * second else 0
        return second

    def _tokens(self, text: tuple[str, ...], max_length: int) -> int:
        return int(self._encode(*text, max_length=max_length)["input_ids"].shape[1])

    def _seconds(self, text: tuple[str, ...], max_length: int) -> float:
        start = time.perf_counter()
        self._classify(*text, max_length=max_length)
        return time.perf_counter() - start

    def block(self, texts: Sequence[int], worker: int, workers: Sequence[int], board: str) -> dict[str, Any]:
        """Classify `texts`, by number, as `worker`, while all `workers` are busy.

        Nobody's clock starts before all are busy, and nobody rests before all have finished: the fillers in between
        are not timed.
        """
        shared = Board(Path(board))
        for _ in range(self._settling):
            self._fill()
        shared.set(worker, RUNNING)
        while not shared.have(RUNNING, workers):
            pass
        seconds, logits = [], []
        begin = time.perf_counter()
        for number in texts:
            start = time.perf_counter()
            logits.append(self._classify(*self._texts[number]))
            seconds.append(time.perf_counter() - start)
        elapsed_s = time.perf_counter() - begin
        shared.set(worker, FINISHED)
        while not shared.have(FINISHED, workers):
            self._fill()
        shared.close()
        return {"seconds": seconds, "elapsed_s": elapsed_s, "logits": [row[0].tolist() for row in logits]}

    def serve(self, texts: Sequence[int], due_s: Sequence[float], start: float, board: str) -> list[list[float]]:
        """Answer requests, each the text of that number and due that many seconds after `start` on the monotonic clock.

        The next request goes to the first worker that is free. Return for each that this worker has answered the
        seconds from when it was due to its answer, and those of the work alone: since it was due and its worker free.
        What is late has waited, whoever was to blame, so a slow answer is not hidden by the requests that it delays.
        """
        shared = Board(Path(board))
        served = []
        while (number := shared.take()) < len(texts):
            due, free = start + due_s[number], time.monotonic()
            if due > free:
                time.sleep(due - free)
            self._classify(*self._texts[texts[number]])
            end = time.monotonic()
            served.append([end - due, end - max(due, free)])
        shared.close()
        return served

    def pss_bytes(self) -> int | None:
        """Return this process's memory, in which a page that n processes share counts as 1/n; None if not known.

        What a fork shares with the process that forked counts as the fork's own, as if it had imported it.
        """
        try:
            own = _memory(os.getpid())["Pss"]
            if self._forked:
                forked = _memory(os.getppid())
                own += forked["Pss"] - forked["Private_Clean"] - forked["Private_Dirty"]
        except OSError:
            return None
        return own

    def _fill(self) -> None:
        """Classify the next filler."""
        self._classify(*self._texts[next(self._fillers)], max_length=self._filler_length)


def _memory(process: int) -> dict[str, int]:
    """Return the bytes of each kind of memory that `process` has."""
    _, *lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return {kind.rstrip(":"): int(size) * 1024 for kind, size, _ in map(str.split, lines)}


def _check_threads() -> None:
    """Raise InputError where a thread of this process may run elsewhere than this one."""
    if not hasattr(os, "sched_getaffinity"):
        return
    own = os.sched_getaffinity(0)
    for task in _tasks():
        try:
            allowed = os.sched_getaffinity(task)
        except ProcessLookupError:  # it has ended
            continue
        if not allowed <= own:
            raise InputError(
                f"it is pinned to processor {_listed(sorted(own))}, and a thread of its runtime runs on "
                f"{_listed(sorted(allowed))}"
            )


def _tasks() -> list[int]:
    """Return the threads of this process, those of libraries too (numpy's OpenBLAS starts some)."""
    return [int(path.name) for path in Path("/proc/self/task").glob("*")] or [0]


def _listed(processors: Sequence[int]) -> str:
    return ", ".join(map(str, processors))


def _report(error: Exception) -> dict[str, Any]:
    return {"error": sentence(error), "cannot": isinstance(error, CannotRunError)}


if __name__ == "__main__":
    children.end_with_parent()
    children.answer_requests(Worker(), _report)
