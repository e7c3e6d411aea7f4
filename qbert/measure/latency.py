"""Time a cell in three processes, in turns with the baseline, so that both run under the same conditions."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qbert.measure import audit
from qbert.system.children import LOADING_S, Child
from qbert.system.errors import CannotRunError, InputError
from qbert.system.worker import Turn, time_call

if TYPE_CHECKING:
    from qbert.inputs.dataset import Dataset
    from qbert.inputs.tokenizer import Encoder, Encoding
    from qbert.measure.cells import Cell

__all__ = ["Replay", "Timed", "Timers", "replayed", "settling_calls", "texts", "time_call"]

PROCESSES = 3
"""Processes differ by about 2 % in int8 for their whole life, so more processes tell more than more blocks in one."""
MIN_PAIRS = 3  # of blocks in each process: the median ignores a burst during one of them
TURN = Turn(block_s=0.05, settle_s=0.03, caches_filled_s=0.2)
"""After the other side's calls, the first 8 of BERT-tiny are up to 15 % slower (caches, clock; AMD Zen 5)."""
settling_calls = TURN.settling_calls
TEXTS = 12  # encodings of real text for the first calls; later calls mix the tokens of these texts
AUDIT_S = 0.1  # approximate time of the audit in each process, which repeats at least two timed calls
PATIENCE_S = 300.0  # a process that sends nothing for this time while it makes a block of calls is taken to hang


def texts(encoder: "Encoder", dataset: "Dataset", max_length: int) -> "list[Encoding]":
    """Return encodings of exactly `max_length` tokens, each filled with text from a different test document on."""
    import pandas as pd

    test = dataset.test
    starts = dict.fromkeys(number * len(test) // TEXTS for number in range(TEXTS))
    rolled = (replace(dataset, test=pd.concat([test.iloc[start:], test.iloc[:start]])) for start in starts)
    return [encoder.fill(rotated, max_length) for rotated in rolled]


class Replay:
    """A timer for pytest-benchmark that replays the seconds another process has measured."""

    __name__ = "replayed"  # its name in saved runs
    _now = 0.0

    def __call__(self) -> float:
        """Return the seconds of the round so far."""
        return self._now

    def reset(self) -> None:
        """Start a round."""
        self._now = 0.0

    def take(self, seconds: float | None) -> float | None:
        """Advance by `seconds`, and return them."""
        self._now += seconds or 0.0
        return seconds


replayed = Replay()


@dataclass(frozen=True)
class Timed:
    """The seconds of each call, by process, block and call."""

    variant_s: list[list[list[float]]]
    baseline_s: list[list[list[float]]]
    """The same number of blocks, each made before the variant's; empty if the cell is the baseline."""

    @property
    def rounds(self) -> list[float]:
        """The seconds of the variant's calls, in order of time."""
        turns = zip(*self.variant_s, strict=True)
        return [seconds for turn in turns for block in turn for seconds in block]

    def figures(self) -> dict[str, Any]:
        """Return the figures for a saved run.

        `speedup` is the geometric mean of `process_speedups`, each the median of (baseline's median / variant's median)
        over a process's pairs of blocks. `process_p50_s` is the median of each process's calls.
        """
        figures: dict[str, Any] = {
            "speedup": 1.0,
            "process_p50_s": [_median(itertools.chain(*blocks)) for blocks in self.variant_s],
            "pairs": sum(map(len, self.variant_s)),
        }
        if self.baseline_s:
            speedups = [
                _median(_median(before) / _median(after) for before, after in zip(*process, strict=True))
                for process in zip(self.baseline_s, self.variant_s, strict=True)
            ]
            figures["speedup"] = math.exp(sum(map(math.log, speedups)) / len(speedups))
            figures["process_speedups"] = speedups
            figures["baseline_p50_s"] = _median(itertools.chain(*itertools.chain(*self.baseline_s)))
        return figures


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


class Timers:
    """The processes that time the cells of a run; the first cell starts them."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        """Start no process yet; one that sends nothing for `patience_s` is taken to hang."""
        self._children: list[Child] = []
        self._patience_s = patience_s

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.close()
        self._children.clear()

    def time(self, cell: "Cell", *, seconds: float, min_rounds: int = 1) -> Timed:
        """Time `cell` for about `seconds` in all, in pairs of blocks, one process after the other.

        Raises:
            InputError: a process fails, dies or hangs, or the variant does not do the work that is timed.
        """
        try:
            try:
                timed, audits = self._time(cell, seconds, min_rounds)
            except BaseException:  # a process is lost or interrupted: the state of the others is unknown
                self.close()
                raise
            _check_audits(audits)
        except InputError as error:
            raise type(error)(f"{cell.name}: {error}") from error
        return timed

    def _time(self, cell: "Cell", seconds: float, min_rounds: int) -> tuple[Timed, list[Mapping[str, Any]]]:
        sides = {"baseline": cell.baseline_cell.loading} | ({} if cell.is_baseline else {"variant": cell.loading})
        names = list(sides)
        self._load(sides)
        encodings = [
            {name: array.tolist() for name, array in encoding.items()}
            for encoding in texts(cell.encoder, cell.suite.dataset, cell.max_length)
        ]
        for seed, child in enumerate(self._children):
            special = cell.encoder.tokenizer.all_special_ids
            child.timeout_s = self._patience_s
            child.ask("begin", side=names[-1], encodings=encodings, special=special, seed=seed)
        costs = [_median(child.ask("warm_up", side=side) for child in self._children) for side in names]
        turns = [{"settling": settling_calls(cost), "timed": TURN.timed_calls(cost)} for cost in costs]
        pair_s = sum(cost * sum(turn.values()) for cost, turn in zip(costs, turns, strict=True))
        least = -(-min_rounds // (PROCESSES * turns[-1]["timed"]))
        calls_s: dict[str, list[list[list[float]]]] = {side: [[] for _ in self._children] for side in names}
        for _ in range(max(MIN_PAIRS, round(seconds / PROCESSES / pair_s), least)):
            for number, child in enumerate(self._children):
                for side, turn in zip(names, turns, strict=True):
                    calls_s[side][number].append(child.ask("block", side=side, **turn))
        count = max(2, round(AUDIT_S / costs[-1]))
        audits = [child.ask("repeat", count=count) for child in self._children]
        return Timed(calls_s[names[-1]], [] if cell.is_baseline else calls_s["baseline"]), audits

    def _load(self, sides: Mapping[str, Mapping[str, Any]]) -> None:
        """Load them in all processes at the same time, as this is not timed."""
        while len(self._children) < PROCESSES:
            self._children.append(Child("a process that times it", "-m", "qbert.measure.latency_worker"))
        for child in self._children:
            child.timeout_s = LOADING_S
            child.send("load", **sides)
        for child in self._children:
            child.receive()


def _check_audits(audits: Sequence[Mapping[str, Any]]) -> None:
    """Check the audit of each process.

    Raises:
        InputError: an answer differs, or is remembered.
    """
    for audited in audits:
        if not audited["finite"]:
            raise CannotRunError("it answers with nan or infinity: leave the model or the variant out")
        if audited["differs"]:
            first, second = audited["differs"]
            raise InputError(
                f"it answers a text with {second} when it is asked again in another order, and with {first} in the "
                "timed call: what was timed is not the work"
            )
    faster = min(audited["faster"] for audited in audits)
    if faster > audit.REMEMBERED:
        raise InputError(
            f"it answers a text that it has seen {faster:.3g} times faster than a new one: it remembers answers, "
            "which a speedup must not rest on"
        )
