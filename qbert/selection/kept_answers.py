"""Answers that are kept in the cache, so that nobody waits for one twice: not with another limit, nor after a crash."""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qbert.measure import accuracy
from qbert.measure.cells import Cell
from qbert.system import machine, sources
from qbert.system.cache import cache_dir, locked
from qbert.system.errors import InputError

if TYPE_CHECKING:
    from qbert.selection.evaluation import Workers


def name_of(cell: Cell) -> str:
    """Return a file name of the variant and of all that the answers of `cell` depend on."""
    variant = cell.variant
    ingredients = [
        cell.checkpoint.sha256,
        variant.definition,
        cell.folder.name if variant.export else "",
        sources.sha256(variant.load.__module__, "qbert.inputs.tokenizer"),
        cell.max_length,
        machine.instruction_sets(),
        machine.hidden(),
        machine.versions(*variant.packages),
        # The system may not permit what the processor has.
        cell.classifier.evidence.get("instructions") if variant.runtime == "qbert" else None,
    ]
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]
    return f"{variant.name}-{key}"


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise InputError where `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}): make room, or name another place (QBERT_CACHE names the "
            "cache)"
        ) from error


class KeptAnswers:
    """The logits that one cell gives to texts, each kept in the cache as soon as it is known.

    A line of the file is one answer, so that a killed process loses none and the next one repeats none. Of processes
    that need the same cell's answers at once, one computes, and the others wait and read.
    """

    def __init__(self, cell: Cell, workers: "Workers | None" = None) -> None:
        """Read what earlier calls have kept; the `workers`, where they are given, compute the others."""
        self._cell, self._workers = cell, workers
        self._kept: dict[str, list[float]] = {}
        self._end = 0
        self.classified = 0
        self._path = cache_dir() / "answers" / f"{name_of(cell)}.jsonl"
        self._read()

    def _read(self) -> None:
        """Read the lines that were written since the last call."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):  # cut off, or not yet whole
                    break
                self._end += len(line)
                try:
                    text, logits = json.loads(line)
                    self._kept[text] = [float(logit) for logit in logits]
                except (ValueError, TypeError):  # cut off by a full disk or a crash of the machine
                    continue

    def logits(
        self, rows: Sequence[tuple[str, ...]], advance: Callable[[int], None] = lambda _: None
    ) -> npt.NDArray[np.float32]:
        """Return the logits of `rows`, `(rows, num_labels)`; compute those that are not kept.

        Raises:
            CannotRunError: one is nan or infinite.
            InputError: the cache cannot be written to, or is full; what was computed before is kept.
        """
        keys = [hashlib.sha256("\0".join(row).encode()).hexdigest()[:32] for row in rows]
        if not self._kept.keys() >= set(keys):
            self._complete(dict(zip(keys, rows, strict=True)), advance)
        logits = np.array([self._kept[key] for key in keys], dtype=np.float32)
        accuracy.check_finite(logits, self._cell.name)
        return logits

    def _complete(self, rows: Mapping[str, tuple[str, ...]], advance: Callable[[int], None]) -> None:
        """Compute and keep the answers to those of `rows`, by their keys, that no process has kept."""
        with contextlib.ExitStack() as stack:
            with _writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self._path))
                file = stack.enter_context(self._path.open("ab", buffering=0))
            self._read()
            if not (missing := {key: row for key, row in rows.items() if key not in self._kept}):
                return
            stack.enter_context(machine.one_core())
            self._append(file, b"\n")  # ends a line that was cut off
            for number, (key, answer) in enumerate(self._computed(missing), start=len(rows) - len(missing)):
                logits = [float(logit) for logit in answer]
                self._append(file, f"{json.dumps([key, logits])}\n".encode())
                self._kept[key] = logits
                self.classified += 1
                advance(number)

    def _append(self, file: io.FileIO, line: bytes) -> None:
        """Write the whole `line`: a disk that fills takes a part of it, and tells so at the next write."""
        with _writing(self._path):
            while line:
                line = line[file.write(line) :]

    def _computed(self, rows: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Yield the key and the logits of each of `rows`."""
        if self._workers is None:
            classify = self._cell.text_classifier()
            for key, row in rows.items():
                yield key, classify(*row)[0]
            return
        yield from zip(rows, self._workers.classify(self._cell, list(rows.values()), lambda _: None)[0], strict=True)
