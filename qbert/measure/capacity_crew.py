"""The workers of one cell: processes that are started, pinned and loaded together, and end together."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from qbert.measure import accuracy
from qbert.measure.capacity_worker import Board
from qbert.system import children
from qbert.system.errors import TRACEBACK, CannotRunError, InputError

if TYPE_CHECKING:
    from qbert.measure.cells import Cell
    from qbert.system.cores import Cores

LOADING_S = (
    900.0  # as in qbert.measure.latency: a worker that sends nothing for this time while it loads is taken to hang,
)
PATIENCE_S = 120.0  # and for this time, beside ten times the expected one, while it classifies
FORKS = sys.platform == "linux"  # elsewhere a fork with libraries that have threads may hang
SLOW_IMPORTS = {
    "torch": ("torch",),
    "transformers": ("transformers.modeling_utils", "transformers.models.auto.modeling_auto"),
}
"""What a package imports only when it is asked for: 5 s of a core for PyTorch's variants."""
SET_MEANWHILE = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR"}
"""Environment variables that pytest and PyTorch set between cells, and that change nothing in a worker."""
_WAITING: dict[str, list[children.Answering]] = {}
"""Those of the last cell, by what they have imported: the next one may be of the same runtime."""


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
        """Start no process yet: entering the context does."""
        self._cell, self._rows, self._cores, self._patience_s = cell, rows, cores, patience_s
        self.workers = workers
        self.threads = int(cell.variant.options.get("threads", 1))
        self.evidence: Mapping[str, Any] = {}
        self.cost_s = 0.0
        """Median seconds of a text while all are busy, of the slowest worker."""
        self._children: list[children.Answering] = []
        self._kind = ""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Start the workers, pin them, load the cell in each, and warm them up.

        Raises:
            CannotRunError: the cell cannot be served.
            InputError: a worker cannot be pinned, dies or hangs, or runs on another number of threads.
        """
        with contextlib.ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qbert-")))
            self._board_path = place / "board"
            self._board = stack.enter_context(contextlib.closing(Board(self._board_path, self.workers)))
            stack.callback(self._end)
            self._start()
            loading = {
                "variant": dict(self._cell.loading),
                "artefact": _artefact(self._cell, place),
                "max_length": self._cell.max_length,
                "texts": self._rows,
            }
            self.evidence = self.ask("load", self._all(**loading), LOADING_S)[0]
            if self.evidence.get("threads", 1) != self.threads:
                raise CannotRunError(
                    f"{self._cell.name}: its runtime says that it runs on {self.evidence['threads']} threads, and "
                    f"{self.threads} were asked for: leave it out"
                )
            self.cost_s = max(self.ask("warm_up", self._all(), self._patience_s).values())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the workers."""
        with self._stack, contextlib.suppress(InputError):  # of one that has ended meanwhile
            if FORKS and kind is None:
                self.ask("end", self._all(), self._patience_s)
                _WAITING[self._kind] = list(self._children)
                self._children.clear()

    def _start(self) -> None:
        """Start and pin the workers, or let those go on that a cell of the same runtime has left; end the others."""
        path = os.pathsep.join(entry for entry in sys.path if entry)
        modules = [name for package in self._cell.variant.to_load for name in SLOW_IMPORTS.get(package, (package,))]
        environment = {name: value for name, value in os.environ.items() if name not in SET_MEANWHILE}
        self._kind = json.dumps([modules, path, environment])
        of_its_kind = [child for child in _WAITING.get(self._kind, []) if not child.has_ended]
        self._children = of_its_kind[: self.workers]
        for child in itertools.chain(*_WAITING.values()):
            if child not in self._children:
                child.end()
        _WAITING.clear()
        stderr = None if os.environ.get(TRACEBACK) else subprocess.DEVNULL
        while len(self._children) < self.workers:
            command = sys.executable, "-m", "qbert.measure.capacity_worker"
            self._children.append(children.Answering(*command, path=path, stderr=stderr))
        # Before they import PyTorch, whose OpenMP has as many threads as there are processors then: on one core they
        # wait for each other, and int8-dynamic of BERT-base took 3.7 s to load instead of 1.3.
        pins = {n: {"processors": self._cores.of_worker(n, self.threads)} for n in range(self.workers)}
        self.ask("pin", pins, LOADING_S)
        if FORKS:
            self.ask("fork", self._all(modules=modules), LOADING_S)

    def _end(self) -> None:
        for child in self._children:
            child.end()
        self._children.clear()

    def block(self, texts: Mapping[int, Sequence[int]]) -> dict[int, Any]:
        """Let the workers that `texts` names classify those of its texts, by number, all of them busy until the end."""
        self._board.clear()
        same = {"workers": list(texts), "board": str(self._board_path)}
        expected_s = self.cost_s * max(map(len, texts.values()))
        wanted = {worker: {"texts": numbers, "worker": worker} | same for worker, numbers in texts.items()}
        answers = self.ask("block", wanted, self._patience_s + 10 * expected_s)
        for answer in answers.values():
            accuracy.check_finite(np.array(answer["logits"], dtype=np.float32), self._cell.name)
        return answers

    def see_lengths(self, texts: Mapping[int, Sequence[int]]) -> None:
        """Let each worker of `texts` classify its texts, by number, as far as a first text of a length takes longer."""
        expected_s = 2 * self.cost_s * max(map(len, texts.values()))
        wanted = {worker: {"texts": list(numbers)} for worker, numbers in texts.items()}
        self.ask("see_lengths", wanted, self._patience_s + 10 * expected_s)

    def serve(self, rate: float, texts: Sequence[int], seed: int = 0) -> npt.NDArray[np.float64]:
        """Let all workers answer requests for `texts`, by number, that arrive at random, `rate` a second on average.

        Return for each request the seconds from when it was due to its answer, and those of the work alone, since it
        was due and its worker free: `(texts, 2)`.
        """
        self._board.clear()
        due_s = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(texts))).tolist()
        wanted = {"texts": list(texts), "due_s": due_s, "board": str(self._board_path)}
        wanted["start"] = time.monotonic() + 0.05 + 1e-5 * len(texts)  # when all have read it
        served = self.ask("serve", self._all(**wanted), self._patience_s + 10 * due_s[-1])
        return np.array([pair for pairs in served.values() for pair in pairs])

    def pss_bytes(self) -> int | None:
        """Return the memory of all workers, shared pages counted once; None where the system does not tell."""
        sizes = self.ask("pss_bytes", self._all(), self._patience_s).values()
        return None if None in sizes else sum(sizes)

    def ask(self, do: str, wanted: Mapping[int, Mapping[str, Any]], timeout_s: float) -> dict[int, Any]:
        """Send a request to each worker of `wanted`, with its arguments, and return their answers by worker.

        Raises:
            InputError: a worker answers with an error, has ended, or says nothing for `timeout_s`.
        """
        waiting = {worker: self._children[worker] for worker in wanted}
        for worker, child in waiting.items():
            child.send(do, **wanted[worker])
        answers: dict[int, Any] = {}
        try:
            for worker, child in children.first_answers(waiting, timeout_s):
                try:
                    reply = child.receive(timeout_s)
                except EOFError as error:
                    raise InputError(f"{self._named(worker)} {error}") from error
                if "error" in reply:
                    kind = CannotRunError if reply["cannot"] else InputError
                    raise kind(f"{self._named(worker)}: {reply['error']}")
                answers[worker] = reply["answer"]
        except TimeoutError as error:
            # In a block all wait for the slowest, so that none has answered.
            late = min((worker for worker in wanted if worker not in answers), key=self._board.stage)
            raise InputError(f"{self._named(late)} has said nothing for {timeout_s:.0f} s") from error
        return {worker: answers[worker] for worker in wanted}

    def _all(self, **arguments: Any) -> dict[int, dict[str, Any]]:  # noqa: ANN401  whatever JSON holds
        """Return the same arguments of a request for every worker."""
        return dict.fromkeys(range(self.workers), arguments)

    def _named(self, worker: int) -> str:
        return f"{self._cell.name}: worker {worker + 1} of {self.workers}"


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
        "truncation_side": tokenizer.truncation_side,
    }
