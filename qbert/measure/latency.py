"""Time a cell in three processes, in turns with the baseline, so that both run under the same conditions."""

import gc
import itertools
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qbert.measure import audit
from qbert.system import children
from qbert.system.errors import TRACEBACK, CannotRunError, InputError

if TYPE_CHECKING:
    from qbert.inputs.dataset import Dataset
    from qbert.inputs.tokenizer import Encoder, Encoding
    from qbert.measure.cells import Cell
    from qbert.variants import Classifier

PROCESSES = 3
"""Processes differ by about 2 % in int8 for their whole life, so more processes tell more than more blocks in one."""
MIN_PAIRS = 3  # of blocks in each process: the median ignores a burst during one of them
WARM_UP_S = 0.15  # chooses kernels, touches memory, raises the clock: BERT-tiny is steady after 0.1 s
# After the other side's calls, the first 8 of BERT-tiny are up to 15 % slower (caches, clock; AMD Zen 5). So calls are
# made in blocks, and those in the first 30 ms of a block are not timed.
BLOCK_S = 0.05
SETTLE_S = 0.03
CACHES_FILLED_S = 0.2  # a longer call rereads more memory than caches hold, so what ran before it has no effect
TEXTS = 12  # encodings of real text for the first calls; later calls mix the tokens of these texts
AUDIT_S = 0.1  # approximate time of the audit in each process, which repeats at least two timed calls
LOADING_S = 900.0  # a process that sends nothing for this time while it loads is taken to hang,
PATIENCE_S = 300.0  # and for this time while it makes a block of calls


def time_call(classifier: "Classifier | Callable[[Encoding], Any]", encoding: "Encoding") -> float:
    """Return the seconds of one call, with the garbage collector off."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        classifier(encoding)
        return time.perf_counter() - start
    finally:
        if collecting:
            gc.enable()


def settling_calls(cost_s: float) -> int:
    """Return the number of untimed calls at the start of a block; a call takes `cost_s`."""
    return 0 if cost_s >= CACHES_FILLED_S else math.ceil(SETTLE_S / cost_s)


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

    def __init__(self) -> None:
        """Start at zero."""
        self._now = 0.0

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
        self._children: list[children.Answering] = []
        self._patience_s = patience_s

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.end()
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
            _check_audits(timed, audits)
        except InputError as error:
            raise type(error)(f"{cell.name}: {error}") from error
        return timed

    def _time(self, cell: "Cell", seconds: float, min_rounds: int) -> tuple[Timed, list[Mapping[str, Any]]]:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        stderr = None if os.environ.get(TRACEBACK) else subprocess.DEVNULL
        while len(self._children) < PROCESSES:
            child = children.Answering(sys.executable, "-m", "qbert.measure.latency_worker", path=path, stderr=stderr)
            self._children.append(child)
        sides = {"baseline": cell.baseline_cell.loading}
        if not cell.is_baseline:
            sides["variant"] = cell.loading
        names = list(sides)
        for child in self._children:  # they load at the same time, as this is not timed
            child.send("load", **sides)
        for child in self._children:
            _answer(child, LOADING_S)
        tokens = [
            {name: array.tolist() for name, array in encoding.items()}
            for encoding in texts(cell.encoder, cell.suite.dataset, cell.max_length)
        ]
        for seed, child in enumerate(self._children):
            special = cell.encoder.tokenizer.all_special_ids
            self._ask(child, "begin", side=names[-1], encodings=tokens, special=special, seed=seed)
        costs = [_median(self._ask(child, "warm_up", side=side) for child in self._children) for side in names]
        blocks = [max(1, round(BLOCK_S / cost)) for cost in costs]
        settling = [settling_calls(cost) for cost in costs]
        pair_s = sum(cost * (timed + untimed) for cost, timed, untimed in zip(costs, blocks, settling, strict=True))
        pairs = max(MIN_PAIRS, round(seconds / PROCESSES / pair_s), -(-min_rounds // (PROCESSES * blocks[-1])))
        calls_s: dict[str, list[list[list[float]]]] = {side: [[] for _ in self._children] for side in names}
        for _ in range(pairs):
            for number, child in enumerate(self._children):
                for side, timed, untimed in zip(names, blocks, settling, strict=True):
                    calls_s[side][number].append(self._ask(child, "block", side=side, settling=untimed, timed=timed))
        count = max(2, round(AUDIT_S / costs[-1]))
        audits = [self._ask(child, "repeat", count=count) for child in self._children]
        return Timed(calls_s[names[-1]], [] if cell.is_baseline else calls_s["baseline"]), audits

    def _ask(self, child: children.Answering, do: str, **arguments: Any) -> Any:  # noqa: ANN401  whatever JSON holds
        child.send(do, **arguments)
        return _answer(child, self._patience_s)


def _answer(child: children.Answering, patience_s: float) -> Any:  # noqa: ANN401  whatever JSON holds
    """Return the answer of `child`.

    Raises:
        InputError: it answers with an error, has ended, or sends nothing for `patience_s`.
    """
    try:
        reply = child.receive(patience_s)
    except TimeoutError as error:
        raise InputError(f"a process that times it has said nothing for {patience_s:g} s") from error
    except EOFError as error:
        raise InputError(f"a process that times it {error}") from error
    if "error" in reply:
        raise InputError(reply["error"])
    return reply["answer"]


def _check_audits(timed: Timed, audits: Iterable[Mapping[str, Any]]) -> None:
    """Check each process's audit against its `timed` calls.

    Raises:
        InputError: an answer differs, or is remembered.
    """
    faster = []
    for blocks, audited in zip(timed.variant_s, audits, strict=True):
        if not audited["finite"]:
            raise CannotRunError("it answers with nan or infinity: leave the model or the variant out")
        if audited["differs"]:
            first, second = audited["differs"]
            raise InputError(
                f"it answers a text with {second} when it is asked again in another order, and with {first} in the "
                "timed call: what was timed is not the work"
            )
        faster.append(_median(itertools.chain(*blocks)) / _median(audited["seconds"]))
    if min(faster) > audit.REMEMBERED:
        raise InputError(
            f"it answers a text that it has seen {min(faster):.3g} times faster than a new one: it remembers answers, "
            "which a speedup must not rest on"
        )
