"""A process that serves: it loads one variant as a service does and classifies texts when capacity_crew.py asks."""

import contextlib
import fcntl
import gc
import itertools
import math
import mmap
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert.system import worker
from qbert.system.errors import CannotRunError, InputError, sentence
from qbert.variants.artefact import Artefact

if TYPE_CHECKING:
    from qbert.variants import Classifier

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
    """Memory that the workers share: the number of the next request, in 8 bytes, and the stage of each.

    It is a file that all of them map, so it is gone with its folder, however they end.
    """

    def __init__(self, path: Path, workers: int = 0) -> None:
        """Map the file `path`; with `workers`, make it for that number."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if workers:
            os.ftruncate(self._file, 8 + workers)
        self._memory = mmap.mmap(self._file, 0)

    def clear(self) -> None:
        """Begin anew: no worker has begun, and the next request is number 0."""
        self._memory[:] = bytes(len(self._memory))

    def set(self, number: int, stage: int) -> None:
        """Show that the worker `number` has reached `stage`."""
        self._memory[8 + number] = stage

    def stage(self, number: int) -> int:
        """Return how far the worker `number` has come; 0 at first."""
        return self._memory[8 + number]

    def have(self, stage: int, numbers: Sequence[int]) -> bool:
        """Whether all these workers have reached `stage`."""
        return all(self.stage(number) >= stage for number in numbers)

    def take(self) -> int:
        """Return the number of the next request, which no other worker gets."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        number = int.from_bytes(self._memory[:8], "little")
        self._memory[:8] = (number + 1).to_bytes(8, "little")
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return number

    def close(self) -> None:
        """Let go of the file."""
        self._memory.close()
        os.close(self._file)


def batches(texts: Sequence[Sequence[str]], batch: int) -> list[list[int]]:
    """Return for each of `texts` the numbers of the `batch` texts of a call for it: itself, and the next in length."""
    by_length = sorted(range(len(texts)), key=lambda number: sum(map(len, texts[number])))
    found: list[list[int]] = [[] for _ in texts]
    for place, number in enumerate(by_length):
        found[number] = [by_length[(place + other) % len(texts)] for other in range(batch)]
    return found


class Worker:
    """The requests that it answers; texts are named by their numbers in those that `load` was given."""

    _seen: frozenset[int] = frozenset()
    """The numbers of tokens that were classified."""
    _alike = 0
    """How many lengths in a row took no longer at first."""
    _forked = False

    def fork(self, modules: Sequence[str]) -> None:
        """Import `modules` once, and answer from now on in a fork, until `end`; then in this process again.

        What the fork loads is gone with it. If it ends in another way, so does this process.
        """
        worker.import_modules(modules)
        gc.collect()
        gc.freeze()  # a collection would copy the pages that both have
        if fork := os.fork():
            code = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
            if code < 0:
                os.kill(os.getpid(), -code)
            if code:
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
        try:
            for task in _tasks() if processors else ():
                os.sched_setaffinity(task, processors)
        except OSError as error:
            raise InputError(f"it cannot be pinned to processor {_listed(processors)} ({error.strerror})") from error

    def load(
        self,
        variant: Mapping[str, Any],
        artefact: Mapping[str, Any],
        max_length: int,
        texts: Sequence[Sequence[str]],
        board: str,
        batch: int = 1,
    ) -> dict[str, Any]:
        """Load the variant and the tokenizer in `artefact`, then classify a text; return the classifier's evidence.

        A call classifies `batch` texts: see batches.

        Raises:
            CannotRunError: the runtime cannot run this model.
            InputError: one of its threads runs on other processors than this one.
        """
        self._texts, self._batches = [tuple(text) for text in texts], batches(texts, batch)
        self._fillers: Iterator[int] = itertools.cycle(range(len(texts)))
        self._max_length, self._filler_length = max_length, min(FILLER_TOKENS, max_length)
        self._encode = Artefact(**dict(artefact, folder=Path(artefact["folder"]))).encoder
        self._board = Board(Path(board))
        try:
            self._classifier: Classifier = worker.load(**variant)
            self._twice(0, self._filler_length)
        except InputError:
            raise
        except Exception as error:  # each runtime raises its own, without a common class
            raise CannotRunError(f"it cannot be loaded and called ({sentence(error)})") from error
        _check_threads()
        gc.collect()
        gc.disable()
        return dict(self._classifier.evidence)

    def warm_up(self) -> float:
        """Classify texts for WARM_UP_S, one of middle length first; return the median seconds of the later half."""
        numbers = range(len(self._texts))
        middle = sorted(numbers, key=lambda number: sum(map(len, self._texts[number])))[len(numbers) // 2]
        filler_s = self._twice(middle, self._filler_length - 1)  # another length than at first, if it is long enough
        self._settling = math.ceil(SETTLE_S / filler_s)
        texts = itertools.chain([middle], itertools.cycle(numbers))
        return worker.warm_up(lambda: self._twice(next(texts), self._max_length), WARM_UP_S)

    def see_lengths(self, texts: Sequence[int]) -> None:
        """Classify one of each length of `texts`, unless the runtime does not mind which is the first.

        They are the fillers from now on.
        """
        self._fillers = itertools.cycle(texts)
        for number in texts:
            if self._alike >= ALIKE:
                break
            if self._tokens(number, self._max_length) not in self._seen:
                self._twice(number, self._max_length)

    def _twice(self, number: int, max_length: int) -> float:
        """Classify the text `number` twice; return the second time's seconds, and see if a new length took longer."""
        first = worker.time_call(self._classify, number, max_length)
        if first >= LONG_S and self._alike:
            self._alike = ALIKE
            return first
        second = worker.time_call(self._classify, number, max_length)
        if (tokens := self._tokens(number, max_length)) not in self._seen:
            self._seen |= {tokens}
            self._alike = self._alike + 1 if first < LONGER * second else 0
        return second

    def _classify(self, number: int, max_length: int) -> npt.NDArray[np.float32]:
        """Return the logits of a call for the text `number`, `(batch, num_labels)`."""
        encodings = [self._encode(*self._texts[one], max_length=max_length) for one in self._batches[number]]
        return self._classifier(encodings[0]) if len(encodings) == 1 else self._classifier.many(encodings)

    def _tokens(self, number: int, max_length: int) -> int:
        return int(self._encode(*self._texts[number], max_length=max_length)["input_ids"].shape[1])

    def _fill(self) -> None:
        """Classify the next filler."""
        self._classify(next(self._fillers), self._filler_length)

    def block(self, texts: Sequence[int], own: int, numbers: Sequence[int]) -> dict[str, Any]:
        """Classify `texts` as the worker `own`, while all workers of these `numbers` are busy.

        Nobody's clock starts before all are busy, and nobody rests before all have finished: the fillers in between
        are not timed.
        """
        for _ in range(self._settling):
            self._fill()
        self._board.set(own, RUNNING)
        while not self._board.have(RUNNING, numbers):
            pass
        seconds, logits = [], []
        begin = time.perf_counter()
        for number in texts:
            start = time.perf_counter()
            logits.append(self._classify(number, self._max_length))
            seconds.append(time.perf_counter() - start)
        elapsed_s = time.perf_counter() - begin
        self._board.set(own, FINISHED)
        while not self._board.have(FINISHED, numbers):
            self._fill()
        return {"seconds": seconds, "elapsed_s": elapsed_s, "logits": [rows.tolist() for rows in logits]}

    def serve(self, texts: Sequence[int], due_s: Sequence[float], start: float) -> list[list[float]]:
        """Answer requests, each for the text of that number and due `due_s` after `start` by the monotonic clock.

        The next request goes to the first worker that is free. Return for each that this worker has answered the
        seconds from when it was due to its answer, and those of the work alone: since it was due and its worker free.
        What is late has waited, whoever was to blame, so a slow answer is not hidden by the requests that it delays.
        """
        served = []
        while (number := self._board.take()) < len(texts):
            due, free = start + due_s[number], time.monotonic()
            if due > free:
                time.sleep(due - free)
            self._classify(texts[number], self._max_length)
            end = time.monotonic()
            served.append([end - due, end - max(due, free)])
        return served

    def pss_bytes(self) -> int | None:
        """Return this process's memory, in which a page that n processes share counts as 1/n; None if not known.

        What a fork shares with the process that forked counts as the fork's own, as if it had imported it.
        """
        try:
            own = _memory(os.getpid())["Pss"]
            forked = _memory(os.getppid()) if self._forked else {}
        except OSError:
            return None
        return own + forked.get("Pss", 0) - forked.get("Private_Clean", 0) - forked.get("Private_Dirty", 0)


def _memory(process: int) -> dict[str, int]:
    """Return the bytes of each kind of memory that `process` has."""
    _, *lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return {kind.rstrip(":"): int(size) * 1024 for kind, size, _ in map(str.split, lines)}


def _check_threads() -> None:
    """Raise InputError where a thread of this process may run elsewhere than this one."""
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    for task in _tasks() if own else ():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            if not (allowed := os.sched_getaffinity(task)) <= own:
                raise InputError(
                    f"it is pinned to processor {_listed(sorted(own))}, and a thread of its runtime runs on "
                    f"{_listed(sorted(allowed))}"
                )


def _tasks() -> list[int]:
    """Return the threads of this process, those of libraries too (numpy's OpenBLAS starts some)."""
    return [int(path.name) for path in Path("/proc/self/task").glob("*")] or [0]


def _listed(processors: Sequence[int]) -> str:
    return ", ".join(map(str, processors))


if __name__ == "__main__":
    worker.answer_requests(Worker())
