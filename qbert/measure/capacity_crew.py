"""The workers of one cell: processes that are started, pinned and loaded together, and end together."""

import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from qbert.measure import accuracy
from qbert.measure.capacity_worker import Board
from qbert.system.children import LOADING_S, Child, LostError, module_path
from qbert.system.errors import CannotRunError, InputError

if TYPE_CHECKING:
    from qbert.measure.cells import Cell
    from qbert.system.cores import Cores

PATIENCE_S = 120.0  # beside ten times the expected time: a worker that says nothing for so long is taken to hang
FORKS = sys.platform == "linux"  # elsewhere a fork with libraries that have threads may hang
SET_MEANWHILE = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR"}
"""Environment variables that pytest and PyTorch set between cells, and that change nothing in a worker."""
_WAITING: dict[str, list[Child]] = {}
"""Those of the last cell, by what they have imported: the next one may be of the same runtime.

multiprocessing's forkserver would keep the modules, cores and environment of its first cell for all others.
"""


class Crew:
    """The workers of one cell; leaving the context ends them."""

    def __init__(
        self,
        cell: "Cell",
        rows: Sequence[tuple[str, ...]],
        workers: int,
        cores: "Cores",
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Start the workers, pin them, load the cell in each, and warm them up.

        Raises:
            CannotRunError: the cell cannot be served.
            InputError: a worker cannot be pinned, dies or hangs, or runs on another number of threads.
        """
        self.workers, self._cell, self._patience_s = workers, cell, patience_s
        self.threads = int(cell.variant.options.get("threads", 1))
        self.batch = int(cell.variant.options.get("batch", 1))
        self.children: list[Child] = []
        self._place = tempfile.TemporaryDirectory(prefix="qbert-")
        board = Path(self._place.name) / "board"
        self._board = Board(board, workers)
        try:
            self._start(cores)
            self.evidence = self._load(rows, board)
            self.cost_s = max(self._ask_all("warm_up", patience_s))
            """Median seconds of a call while all are busy, of the slowest worker."""
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the workers."""
        with contextlib.closing(self), contextlib.suppress(InputError):  # of one that has ended meanwhile
            if FORKS and kind is None:
                self._ask_all("end", self._patience_s)
                _WAITING[self._kind], self.children = self.children, []

    def close(self) -> None:
        """End the workers."""
        for child in self.children:
            child.close()
        self._board.close()
        self._place.cleanup()

    def _start(self, cores: "Cores") -> None:
        """Start and pin the workers, or let those go on that a cell of the same runtime has left; end the others."""
        modules = self._cell.variant.modules
        environment = {name: value for name, value in os.environ.items() if name not in SET_MEANWHILE}
        self._kind = json.dumps([modules, module_path(), environment])
        of_its_kind = [child for child in _WAITING.get(self._kind, []) if child.process.poll() is None]
        self.children = of_its_kind[: self.workers]
        for child in itertools.chain(*_WAITING.values()):
            if child not in self.children:
                child.close()
        _WAITING.clear()
        while len(self.children) < self.workers:
            self.children.append(Child("", "-m", "qbert.measure.capacity_worker"))
        for number, child in enumerate(self.children):
            child.name = f"{self._cell.name}: worker {number + 1} of {self.workers}"
        # Before they import PyTorch, whose OpenMP has as many threads as there are processors then: on one core they
        # wait for each other, and int8-dynamic of BERT-base took 3.7 s to load instead of 1.3.
        pins = {n: {"processors": cores.of_worker(n, self.threads)} for n in range(self.workers)}
        self._ask("pin", LOADING_S, pins)
        if FORKS:
            self._ask_all("fork", LOADING_S, modules=modules)

    def _load(self, rows: Sequence[tuple[str, ...]], board: Path) -> Mapping[str, Any]:
        """Load the cell in all workers; return its evidence."""
        artefact = _artefact(self._cell, board.parent)
        loading = {"variant": dict(self._cell.loading), "artefact": artefact, "max_length": self._cell.max_length}
        loading |= {"texts": rows, "board": str(board), "batch": self.batch}
        evidence: Mapping[str, Any] = self._ask_all("load", LOADING_S, **loading)[0]
        if evidence.get("threads", 1) != self.threads:
            raise CannotRunError(
                f"{self._cell.name}: its runtime says that it runs on {evidence['threads']} threads, and "
                f"{self.threads} were asked for: leave it out"
            )
        return evidence

    def block(self, texts: Mapping[int, Sequence[int]]) -> dict[int, Any]:
        """Let the workers that `texts` names classify those of its texts, by number, all of them busy until the end."""
        self._board.clear()
        expected_s = self.cost_s * max(map(len, texts.values()))
        wanted = {own: {"texts": numbers, "own": own, "numbers": list(texts)} for own, numbers in texts.items()}
        answers = self._ask("block", self._patience_s + 10 * expected_s, wanted)
        for answer in answers.values():
            accuracy.check_finite(np.array(answer["logits"], dtype=np.float32), self._cell.name)
        return answers

    def see_lengths(self, texts: Mapping[int, Sequence[int]]) -> None:
        """Let each worker of `texts` classify its texts, by number, as far as a first text of a length takes longer."""
        expected_s = 2 * self.cost_s * max(map(len, texts.values()))
        wanted = {worker: {"texts": list(numbers)} for worker, numbers in texts.items()}
        self._ask("see_lengths", self._patience_s + 10 * expected_s, wanted)

    def serve(self, rate: float, texts: Sequence[int], seed: int = 0) -> npt.NDArray[np.float64]:
        """Let all workers answer requests for `texts`, by number, that arrive at random, `rate` a second on average.

        Return for each request the seconds from when it was due to its answer, and those of the work alone, since it
        was due and its worker free: `(texts, 2)`.
        """
        self._board.clear()
        due_s = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(texts))).tolist()
        start = time.monotonic() + 0.05 + 1e-5 * len(texts)  # when all have read it
        served = self._ask_all("serve", self._patience_s + 10 * due_s[-1], texts=list(texts), due_s=due_s, start=start)
        return np.array(list(itertools.chain(*served)))

    def pss_bytes(self) -> int | None:
        """Return the memory of all workers, shared pages counted once; None where the system does not tell."""
        sizes = self._ask_all("pss_bytes", self._patience_s)
        return None if None in sizes else sum(sizes)

    def _ask_all(self, do: str, timeout_s: float, **arguments: Any) -> list[Any]:  # noqa: ANN401  whatever JSON holds
        """Send the same request to every worker, and return their answers."""
        return list(self._ask(do, timeout_s, dict.fromkeys(range(self.workers), arguments)).values())

    def _ask(self, do: str, timeout_s: float, wanted: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
        """Send a request to each worker of `wanted`, with its arguments, and return their answers by worker.

        Raises:
            InputError: a worker answers with an error, has ended, or says nothing for `timeout_s`.
        """
        waiting = {self.children[worker]: worker for worker in wanted}
        for child, worker in waiting.items():
            child.timeout_s = timeout_s
            child.send(do, **wanted[worker])
        answers: dict[int, Any] = {}
        while waiting:  # for the first: where one is lost, the others wait for it
            ready = connection.wait([child.pipe for child in waiting], timeout_s)
            if not ready:  # in a block all wait for the slowest, so that none has answered
                raise min(waiting, key=lambda child: self._board.stage(waiting[child])).silent()
            for child in [child for child in waiting if child.pipe in ready]:
                try:
                    answers[waiting.pop(child)] = child.receive()
                except LostError:
                    raise
                except InputError as error:
                    raise type(error)(f"{child.name}: {error}") from error
        return {worker: answers[worker] for worker in wanted}


def _artefact(cell: "Cell", place: Path) -> dict[str, Any]:
    """Write the tokenizer of `cell` as services load it into the folder `place`; return the fields of its Artefact.

    Raises:
        CannotRunError: it cannot be written so.
    """
    tokenizer = cell.encoder.tokenizer
    tokenizer.save_pretrained(place)
    if not (place / "tokenizer.json").exists():
        raise CannotRunError(f"{cell.name}: its tokenizer has no form that is served (tokenizer.json): leave it out")
    return {
        "folder": str(place),
        "variant": cell.variant.name,
        "inputs": cell.encoder.inputs,
        "labels": cell.checkpoint.labels,
        "max_length": cell.max_length,
        "positions": cell.checkpoint.positions,
        "split_special_tokens": tokenizer.split_special_tokens,
        "truncation_side": tokenizer.truncation_side,
    }
