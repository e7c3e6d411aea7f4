"""A process that times cells: it loads classifiers and makes blocks of calls when qbert.measure.latency asks."""

import gc
import importlib
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert.measure import audit
from qbert.measure.latency import WARM_UP_S, time_call
from qbert.system import children
from qbert.system.errors import sentence
from qbert.system.machine import one_core

if TYPE_CHECKING:
    from qbert.inputs.tokenizer import Encoding
    from qbert.variants import Classifier

KEPT = 16  # at most this many answers of a block's timed calls are kept for the audit
TRIES = 20  # attempts to draw a text that has not been used before


class Texts:
    """An endless series of different encodings of one length: first those given, then random mixes of their tokens.

    So no timed call can be answered from memory.
    """

    def __init__(self, encodings: Sequence[Mapping[str, Any]], special: Sequence[int], seed: int) -> None:
        """Start with `encodings`; the tokens `special` keep their positions."""
        self._given: list[Encoding] = [
            {name: np.array(array, dtype=np.int64) for name, array in encoding.items()} for encoding in encodings
        ]
        self._movable = [~np.isin(encoding["input_ids"], special) for encoding in self._given]
        self._tokens = np.concatenate(
            [encoding["input_ids"][movable] for encoding, movable in zip(self._given, self._movable, strict=True)]
        )
        self._generator = np.random.default_rng(seed)
        self._seen: set[bytes] = set()
        self._count = 0

    def __iter__(self) -> "Texts":
        """Return itself."""
        return self

    def __next__(self) -> "Encoding":
        """Return the next encoding."""
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
    """The requests that it answers; a side is `baseline` or `variant`."""

    def __init__(self) -> None:
        """Start with nothing loaded."""
        self._sides: dict[str, tuple[Any, Classifier]] = {}
        self._texts: Texts | None = None
        self._answered: list[tuple[Encoding, npt.NDArray[np.float32]]] = []
        self._generator = np.random.default_rng(0)

    def load(self, **sides: Mapping[str, Any]) -> None:
        """Load each side with `module.name(folder, **options)` unless it is loaded, and drop all other sides."""
        for side in list(self._sides):
            if side not in sides or self._sides[side][0] != sides[side]:
                del self._sides[side]
        gc.collect()
        for side, wanted in sides.items():
            if side not in self._sides:
                load = operator.attrgetter(wanted["name"])(importlib.import_module(wanted["module"]))
                self._sides[side] = wanted, load(Path(wanted["folder"]), **wanted["options"])

    def begin(self, side: str, encodings: Sequence[Mapping[str, Any]], special: Sequence[int], seed: int) -> None:
        """Use texts from `encodings` from now on, and keep answers of `side` for the audit."""
        self._texts, self._answered, self._audited = Texts(encodings, special, seed), [], side

    def warm_up(self, side: str) -> float:
        """Call for WARM_UP_S; return the median seconds of the later half of the calls."""
        calls: list[float] = []
        with one_core():
            while sum(calls) < WARM_UP_S:
                calls.append(time_call(self._sides[side][1], self._next()))
        return float(np.median(calls[len(calls) // 2 :]))

    def block(self, side: str, settling: int, timed: int) -> list[float]:
        """Make `settling` untimed calls, then `timed` ones; return the seconds of each of these."""
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

    def repeat(self, count: int) -> dict[str, Any]:
        """Repeat `count` timed calls in another order; return their seconds and, if answers differ, the first two."""
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
            "differs": [audit.format_logits(answers[row][0]) for row in different[:1] for answers in (first, again)],
        }

    def _next(self) -> "Encoding":
        assert self._texts is not None, "begin comes first"  # noqa: S101  a mistake of the caller, not of the user
        return next(self._texts)


if __name__ == "__main__":
    children.end_with_parent()
    gc.disable()
    children.answer_requests(Timer(), lambda error: {"error": sentence(error)})
