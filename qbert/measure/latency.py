"""Time the variants of a model in three processes, by turns, so that all of them run under the same conditions."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from qbert.measure import audit
from qbert.system.children import LOADING_S, Child, ChildError, LostError
from qbert.system.errors import CannotRunError, InputError
from qbert.system.worker import Turn, time_call
from qbert.variants import BASELINE, check_evidence

if TYPE_CHECKING:
    from qbert.inputs.dataset import Dataset
    from qbert.inputs.tokenizer import Encoder, Encoding
    from qbert.measure.cells import Cell

__all__ = ["Plan", "Replay", "Timed", "Timers", "parts", "replayed", "settling_calls", "texts", "time_call"]

PROCESSES = 3
"""Processes differ by about 2 % in int8 for their whole life, so more processes tell more than more blocks in one."""
MIN_PAIRS = 4  # rounds in each process, at least: the median ignores a burst during one of them
TURN = Turn(block_s=0.05, settle_s=0.03, caches_filled_s=0.2)
"""After another variant's calls, the first 8 of BERT-tiny are up to 15 % slower (caches, clock; AMD Zen 5)."""
settling_calls = TURN.settling_calls
TEXTS = 12  # encodings of real text for the first calls; later calls mix the tokens of these texts
AUDIT_S = 0.1  # approximate time of a variant's audit, which repeats at least two timed calls of the first process
HELD = 2  # times as many bytes as its files have, or less, a variant holds in memory
PART_BYTES = 1_500_000_000
"""Of what takes turns in one process, beside fp32: with it a run of BERT-base's default variants needs 3 GB in all."""
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
    """The same number of blocks, each made in the same round as the variant's; empty if the cell is the baseline."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """That of the classifier that was timed."""

    @property
    def rounds(self) -> list[float]:
        """The seconds of the variant's calls, in order of time."""
        return [seconds for process in self.variant_s for block in process for seconds in block]

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


@dataclass(frozen=True)
class Plan:
    """What each process makes of a group."""

    turns: Mapping[str, Mapping[str, int]]
    """The calls of each variant in a round, `settling` and `timed`."""
    rounds: int

    @classmethod
    def of(cls, costs: Mapping[str, float], seconds: float, min_rounds: int) -> "Plan":
        """Return the plan for variants whose calls take `costs` seconds: about `seconds` in all processes together."""
        turns = {
            name: {"settling": settling_calls(cost), "timed": TURN.timed_calls(cost)} for name, cost in costs.items()
        }
        round_s = sum(costs[name] * sum(turn.values()) for name, turn in turns.items())
        least = max(-(-min_rounds // (PROCESSES * turn["timed"])) for turn in turns.values())
        return cls(turns, max(MIN_PAIRS, round(seconds / PROCESSES / round_s), least))

    def orders(self, seed: int) -> Iterator[list[str]]:
        """Yield for each round the variants in a random order."""
        generator = np.random.default_rng(seed)
        for _ in range(self.rounds):
            yield generator.permutation(list(self.turns)).tolist()


class _VariantError(Exception):
    """A request about one variant of a group fails."""

    def __init__(self, variant: str, error: InputError) -> None:
        super().__init__(str(error))
        self.variant, self.error = variant, error


class Timers:
    """The processes that time the cells of a run; the first group starts them.

    One after the other holds the variants that take turns, so that only one needs the memory for them.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        """Start no process yet; one that sends nothing for `patience_s` is taken to hang."""
        self._children: list[Child] = []
        self._patience_s = patience_s
        self._outcomes: dict[str, Timed | InputError] = {}
        self._timed: set[str] = set()
        self._imported: set[str] = set()
        self._importing: list[Child] = []
        self._imports = True

    def start(self, modules: Iterable[str]) -> None:
        """Start the processes, and let them import `modules` while this one does something else."""
        wanted = [module for module in dict.fromkeys(modules) if module not in self._imported]
        while len(self._children) < PROCESSES:
            self._children.append(Child("a process that times it", "-m", "qbert.measure.latency_worker"))
        for child in self._children if wanted and self._imports else ():
            child.timeout_s = LOADING_S
            child.send("import_modules", modules=wanted)
            self._importing.append(child)
        self._imported.update(wanted)

    def _started(self) -> list[Child]:
        """Return the processes when all have imported what they were asked to.

        Where that ends one, new ones import nothing before they load a variant: so it is told of the right one.
        """
        try:
            while self._importing:
                self._importing.pop(0).receive()
            lost = any(child.process.poll() is not None for child in self._children)
        except LostError:
            self._imports, lost = False, True
        if lost:
            self.close()
            self.start(())
        return self._children

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.close()
        for known in (self._children, self._importing, self._imported):
            known.clear()

    def time(
        self,
        cell: "Cell",
        *,
        seconds: float,
        min_rounds: int = 1,
        group: "Iterable[Cell]" = (),
        advance: Callable[[int], None] = lambda _percent: None,
    ) -> Timed:
        """Return the times of `cell`, measured for about `seconds`.

        The first cell of a `group`, some of one model and length, is timed by turns with the others of it, as many as
        memory is meant to hold; what came of these is kept until each is asked for. `advance` is called with the
        percentage done.

        Raises:
            InputError: a process fails, dies or hangs, or the variant does not do the work that is timed.
        """
        if cell.name not in self._outcomes:
            others = [one for one in group if one.name not in self._timed | self._outcomes.keys()]
            cells = {one.variant.name: one for one in (cell, *others)}
            try:
                together = parts(cells)
                for number, part in enumerate(together):
                    share = partial(_advance, advance, number, len(together))
                    self._outcomes |= self._time(part, seconds, min_rounds, share)
            except InputError as error:
                self.close()
                raise type(error)(f"{cell.name}: {error}") from error
            except BaseException:  # interrupted: the state of the processes is unknown
                self.close()
                raise
        outcome = self._outcomes.pop(cell.name)
        self._timed.add(cell.name)
        if isinstance(outcome, InputError):
            raise outcome
        return outcome

    def _time(
        self, cells: "dict[str, Cell]", seconds: float, min_rounds: int, advance: Callable[[int], None]
    ) -> dict[str, Timed | InputError]:
        """Return what came of each of the `cells` of one group, by its name; those that fail are left out."""
        outcomes: dict[str, Timed | InputError] = {}
        baseline = next(iter(cells.values())).baseline_cell
        while cells:
            try:
                outcomes |= self._attempt({BASELINE: baseline} | cells, cells, seconds, min_rounds, advance)
                break
            except _VariantError as failed:
                if isinstance(failed.error, LostError):
                    self.close()
                if failed.variant == BASELINE:  # which has to run: no variant is left out for it
                    why = InputError(f"{baseline.name}: {failed.error}")
                    return outcomes | {cell.name: why for cell in cells.values()}
                cell = cells.pop(failed.variant)
                outcomes[cell.name] = type(failed.error)(f"{cell.name}: {failed.error}")
        return outcomes

    def _attempt(
        self,
        sides: "Mapping[str, Cell]",
        cells: "Mapping[str, Cell]",
        seconds: float,
        min_rounds: int,
        advance: Callable[[int], None],
    ) -> dict[str, Timed | InputError]:
        """Time all `sides` in one process after the other; return what came of the `cells` among them, by name.

        Raises:
            _VariantError: a process fails, dies or hangs in what it does with a variant.
        """
        self.start(module for cell in sides.values() for module in cell.variant.modules)
        baseline = sides[BASELINE]
        encodings = [
            {name: array.tolist() for name, array in encoding.items()}
            for encoding in texts(baseline.encoder, baseline.suite.dataset, baseline.max_length)
        ]
        special = baseline.encoder.tokenizer.all_special_ids
        plan: Plan | None = None
        calls_s: dict[str, list[list[list[float]]]] = {name: [] for name in sides}
        for number, child in enumerate(self._started()):
            child.timeout_s = LOADING_S
            child.ask("drop")  # what an attempt has left that was ended by an error
            evidence = {name: _load(child, cell) for name, cell in sides.items()}
            child.timeout_s = self._patience_s
            child.ask("begin", encodings=encodings, special=special, seed=number)
            costs = {name: _ask(child, "warm_up", name) for name in sides}
            plan = plan or Plan.of(costs, seconds * len(cells), min_rounds)
            blocks: dict[str, list[list[float]]] = {name: [] for name in sides}
            for made, order in enumerate(plan.orders(number), 1):
                for name in order:
                    blocks[name].append(_ask(child, "block", name, **plan.turns[name]))
                advance(round(100 * (number + made / plan.rounds) / PROCESSES))
            for name in sides:
                calls_s[name].append(blocks[name])
            if number == 0:
                self._audit(child, cells, costs)
            child.ask("drop")
        return {
            cell.name: Timed(calls_s[name], [] if cell.is_baseline else calls_s[BASELINE], evidence[name])
            for name, cell in cells.items()
        }

    def _audit(self, child: Child, cells: "Iterable[str]", costs: Mapping[str, float]) -> None:
        """Check the answers of the `cells`' variants: what does not do the work need not be timed further."""
        for name in cells:
            audited = _ask(child, "repeat", name, count=max(2, round(AUDIT_S / costs[name])))
            try:
                _check_audit(audited)
            except InputError as error:
                raise _VariantError(name, error) from error


def parts(cells: "dict[str, Cell]") -> "list[dict[str, Cell]]":
    """Return the `cells` of one group, by variant, in their order and in few parts, of which each is timed together."""
    found: list[dict[str, Cell]] = [{}]
    held = 0
    for name, cell in cells.items():
        needed = 0 if cell.is_baseline else HELD * cell.disk_bytes
        if held and needed and held + needed > PART_BYTES:
            found.append({})
            held = 0
        found[-1][name] = cell
        held += needed
    return found


def _advance(advance: Callable[[int], None], number: int, parts: int, percent: int) -> None:
    advance((100 * number + percent) // parts)


def _ask(child: Child, do: str, variant: str, **arguments: Any) -> Any:  # noqa: ANN401  whatever JSON holds
    try:
        return child.ask(do, variant=variant, **arguments)
    except InputError as error:
        if type(error) is ChildError:  # each runtime raises its own, without a common class
            raise _VariantError(variant, CannotRunError(f"it cannot be loaded and called ({error})")) from error
        raise _VariantError(variant, error) from error


def _load(child: Child, cell: "Cell") -> Mapping[str, Any]:
    """Load `cell`, and return its evidence."""
    evidence: Mapping[str, Any] = _ask(child, "load", cell.variant.name, loading=cell.loading)
    try:
        check_evidence(cell.variant, evidence)
    except InputError as error:
        raise _VariantError(cell.variant.name, error) from error
    return evidence


def _check_audit(audited: Mapping[str, Any]) -> None:
    """Check what latency_worker.Timer.repeat has returned.

    Raises:
        InputError: an answer differs, or is remembered.
    """
    if not audited["finite"]:
        raise CannotRunError("it answers with nan or infinity: leave the model or the variant out")
    if audited["differs"]:
        first, second = audited["differs"]
        raise InputError(
            f"it answers a text with {second} when it is asked again in another order, and with {first} in the "
            "timed call: what was timed is not the work"
        )
    if audited["faster"] > audit.REMEMBERED:
        raise InputError(
            f"it answers a text that it has seen {audited['faster']:.3g} times faster than a new one: it remembers "
            "answers, which a speedup must not rest on"
        )
