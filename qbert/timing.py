"""A process that times cells: it loads what it is told to, and makes blocks of calls when qbert.latency asks."""

import gc
import importlib
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert import audit, children
from qbert.errors import sentence
from qbert.latency import WARM_UP_S, time_call
from qbert.machine import one_core

if TYPE_CHECKING:
    from qbert.tokenizer import Encoding
    from qbert.variants import Classifier

KEPT = 16  # answers of timed calls that are asked for again, at most
TRIES = 20  # draws of a text that was not there before


class Texts:
    """Encodings of one length without an end, none like one before: first those given, then others of their tokens.

    So no timed call can be answered from memory.
    """

    def __init__(self, encodings: Sequence[Mapping[str, Any]], special: Sequence[int], seed: int) -> None:
        """Begin with `encodings`; the tokens `special` stay where they are."""
        self._given: list[Encoding] = [
            {name: np.array(array, dtype=np.int64) for name, array in one.items()} for one in encodings
        ]
        self._movable = [~np.isin(one["input_ids"], special) for one in self._given]
        self._tokens = np.concatenate(
            [one["input_ids"][movable] for one, movable in zip(self._given, self._movable, strict=True)]
        )
        self._generator = np.random.default_rng(seed)
        self._seen: set[bytes] = set()
        self._count = 0

    def __iter__(self) -> "Texts":
        """Return itself."""
        return self

    def __next__(self) -> "Encoding":
        """Return the next one."""
        number = self._count % len(self._given)
        given, movable = self._given[number], self._movable[number]
        ids = given["input_ids"]
        if self._count >= len(self._given) or ids.tobytes() in self._seen:
            for _ in range(TRIES):
                ids = ids.copy()
                ids[movable] = self._generator.choice(self._tokens, int(movable.sum()))
                if ids.tobytes() not in self._seen:
                    break
        self._count += 1
        self._seen.add(ids.tobytes())
        return given | {"input_ids": ids}


class Timer:
    """What can be asked for; a side is `baseline` or `variant`."""

    def __init__(self) -> None:
        """Begin without anything loaded."""
        self._sides: dict[str, tuple[Any, Classifier]] = {}
        self._texts: Texts | None = None
        self._answered: list[tuple[Encoding, npt.NDArray[np.float32]]] = []
        self._generator = np.random.default_rng(0)

    def load(self, **sides: Mapping[str, Any]) -> None:
        """Have of each side what `module.name(folder, **options)` loads, and no other side; what is there stays."""
        for side in list(self._sides):
            if side not in sides or self._sides[side][0] != sides[side]:
                del self._sides[side]
        gc.collect()
        for side, wanted in sides.items():
            if side not in self._sides:
                load = operator.attrgetter(wanted["name"])(importlib.import_module(wanted["module"]))
                self._sides[side] = wanted, load(Path(wanted["folder"]), **wanted["options"])

    def begin(self, side: str, encodings: Sequence[Mapping[str, Any]], special: Sequence[int], seed: int) -> None:
        """Take texts of `encodings` from now on, and answers of `side` to hold later ones against."""
        self._texts, self._answered, self._audited = Texts(encodings, special, seed), [], side

    def warm_up(self, side: str) -> float:
        """Call until it is steady; return the median seconds of the later half of the calls."""
        calls: list[float] = []
        with one_core():
            while sum(calls) < WARM_UP_S:
                calls.append(time_call(self._sides[side][1], self._next()))
        return float(np.median(calls[len(calls) // 2 :]))

    def block(self, side: str, settling: int, timed: int) -> list[float]:
        """Return the seconds of each of `timed` calls, after `settling` ones that are not timed."""
        texts = [self._next() for _ in range(settling + timed)]
        classifier, logits = self._sides[side][1], []

        def call(text: "Encoding") -> None:
            logits.append(classifier(text))

        with one_core():
            for text in texts[:settling]:
                classifier(text)
            seconds = [time_call(call, text) for text in texts[settling:]]
        if side == self._audited:
            chosen = self._generator.permutation(timed)[:KEPT]
            self._answered += [(texts[settling + number], np.array(logits[number])) for number in chosen]
        return seconds

    def again(self, count: int) -> dict[str, Any]:
        """Ask `count` of the texts of timed calls again, in another order; return the seconds, and what differs."""
        count = min(count, len(self._answered))
        order = self._generator.permutation(len(self._answered))[:count]
        if (np.diff(order) > 0).all():
            order = order[::-1]
        classifier, again, seconds = self._sides[self._audited][1], [], []

        def call(text: "Encoding") -> None:
            again.append(np.array(classifier(text)))

        with one_core():
            seconds = [time_call(call, self._answered[number][0]) for number in order]
        first = [self._answered[number][1] for number in order]
        different = audit.differing(np.concatenate(first), np.concatenate(again))
        return {
            "seconds": seconds,
            "finite": bool(np.isfinite(np.concatenate([*first, *again])).all()),
            "differs": [audit.told(one[different[0]][0]) for one in (first, again)] if len(different) else [],
        }

    def _next(self) -> "Encoding":
        assert self._texts is not None, "begin comes first"  # noqa: S101  the asker's mistake, no person's
        return next(self._texts)


if __name__ == "__main__":
    children.end_with_parent()
    gc.disable()
    children.answer_requests(Timer(), lambda error: {"error": sentence(error)})
