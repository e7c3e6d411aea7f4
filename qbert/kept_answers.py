"""Answers that are kept in the cache, so that nobody waits for one twice: not with another limit, nor after a crash."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qbert import accuracy, machine, sources
from qbert.cache import cache_dir
from qbert.suite import Cell

if TYPE_CHECKING:
    from qbert.team import Job, Team


class KeptAnswers:
    """The logits that one cell gives to texts, each kept in the cache as soon as it is known.

    A line of the file is one answer, so that a killed process loses none and the next one repeats none.
    """

    def __init__(self, cell: Cell, team: "Team | None" = None) -> None:
        """Read what earlier calls have kept; the workers of `team`, if given, compute the others."""
        self._cell, self._team = cell, team
        self._job: Job | None = None
        self._kept: dict[str, list[float]] = {}
        self.classified = 0
        variant = cell.variant
        ingredients = [
            cell.checkpoint.sha256,
            variant.definition,
            cell.folder.name if variant.export else "",
            sources.sha256(variant.load.__module__, "qbert.tokenizer"),
            cell.max_length,
            machine.instruction_sets(),
            machine.hidden(),
            machine.versions(*variant.packages),
        ]
        key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]
        self._path = cache_dir() / "answers" / f"{variant.name}-{key}.jsonl"
        lines = self._path.read_bytes().splitlines() if self._path.is_file() else []
        for line in lines:
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
        """
        keys = [hashlib.sha256("\0".join(row).encode()).hexdigest()[:32] for row in rows]
        if not self._kept.keys() >= set(keys):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._kept}
            with self._path.open("ab", buffering=0) as file, machine.one_core():
                file.write(b"\n")  # ends a line that was cut off
                for number, (key, answer) in enumerate(self._computed(missing), start=len(keys) - len(missing)):
                    self._kept[key] = [float(logit) for logit in answer]
                    file.write(f"{json.dumps([key, self._kept[key]])}\n".encode())
                    self.classified += 1
                    advance(number)
        logits = np.array([self._kept[key] for key in keys], dtype=np.float32)
        accuracy.check_finite(logits, self._cell.name)
        return logits

    def _computed(self, rows: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Yield the key and the logits of each of `rows`."""
        if self._team is None:
            classify = self._cell.text_classifier()
            for key, row in rows.items():
                yield key, classify(*row)[0]
            return
        cell, texts = self._cell, list(rows.values())
        if self._job is None:
            trial = texts[: accuracy.WARM_UP_DOCUMENTS]
            self._job = self._team.job(cell.variant, cell.checkpoint, cell.suite.dataset, cell.max_length, trial)
        yield from zip(rows, self._team.judge(self._job, texts)[0], strict=True)
