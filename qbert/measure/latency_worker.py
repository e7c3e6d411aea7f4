"""A process that times cells: it loads classifiers and makes blocks of calls when qbert.measure.latency asks."""

import gc
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert.measure import audit
from qbert.system import worker
from qbert.system.machine import one_core

if TYPE_CHECKING:
    from qbert.inputs.tokenizer import Encoding
    from qbert.variants import Classifier

    Answers = list[npt.NDArray[np.float32]]

KEPT = 16  # answers of a block's timed calls, at most, that are kept for the audit
TRIES = 20  # attempts to draw a text that has not been used before


def endless_texts(encodings: Sequence[Mapping[str, Any]], special: Sequence[int], seed: int) -> "Iterator[Encoding]":
    """Yield different encodings of one length: first those given, then random mixes of their tokens.

    So no timed call can be answered from memory. The tokens `special` keep their positions.
    """
    given = [{name: np.array(array, dtype=np.int64) for name, array in encoding.items()} for encoding in encodings]
    movable = [~np.isin(encoding["input_ids"], special) for encoding in given]
    tokens = np.concatenate([encoding["input_ids"][moves] for encoding, moves in zip(given, movable, strict=True)])
    generator = np.random.default_rng(seed)
    seen: set[bytes] = set()
    for count in itertools.count():
        encoding, moves = given[count % len(given)], movable[count % len(given)]
        ids = encoding["input_ids"]
        if count >= len(given) or ids.tobytes() in seen:
            for _ in range(TRIES):
                ids = ids.copy()
                ids[moves] = generator.choice(tokens, int(moves.sum()))
                if ids.tobytes() not in seen:
                    break
        seen.add(ids.tobytes())
        yield encoding | {"input_ids": ids}


class Timer:
    """The requests that it answers; a side is `baseline` or `variant`."""

    def __init__(self) -> None:
        """Start with nothing loaded."""
        self._loaded: dict[str, tuple[Mapping[str, Any], Classifier]] = {}
        self._generator = np.random.default_rng(0)

    def load(self, **sides: Mapping[str, Any]) -> None:
        """Load each side unless it is loaded, and drop all other sides."""
        self._loaded = {side: kept for side, kept in self._loaded.items() if kept[0] == sides.get(side)}
        gc.collect()
        for side, loading in sides.items():
            if side not in self._loaded:
                self._loaded[side] = loading, worker.load(**loading)

    def begin(self, side: str, encodings: Sequence[Mapping[str, Any]], special: Sequence[int], seed: int) -> None:
        """Use texts from `encodings` from now on, and keep answers of `side` for the audit."""
        self._texts, self._audited = endless_texts(encodings, special, seed), side
        self._answered: list[tuple[Encoding, npt.NDArray[np.float32]]] = []

    def warm_up(self, side: str) -> float:
        """Return the seconds of a call in the steady state."""
        with one_core():
            return worker.warm_up(lambda: worker.time_call(self._loaded[side][1], next(self._texts)))

    def block(self, side: str, settling: int, timed: int) -> list[float]:
        """Make `settling` untimed calls, then `timed` ones; return the seconds of each of these."""
        texts = list(itertools.islice(self._texts, settling + timed))
        with one_core():
            for text in texts[:settling]:
                self._loaded[side][1](text)
            seconds, logits = self._time(side, texts[settling:])
        if side == self._audited:
            chosen = self._generator.permutation(timed)[:KEPT]
            self._answered += [(texts[settling + number], np.array(logits[number])) for number in chosen]
        return seconds

    def repeat(self, count: int) -> dict[str, Any]:
        """Repeat `count` timed calls, two at least, in another order, with a call with a new text between each two.

        Return how many times faster they were than those, and the first two answers that differ, if any.
        """
        order = self._generator.permutation(len(self._answered))[:count]
        if (np.diff(order) > 0).all():
            order = order[::-1]
        asked = [text for number in order for text in (self._answered[number][0], next(self._texts))][:-1]
        with one_core():
            seconds, logits = self._time(self._audited, asked)
        first = np.concatenate([self._answered[number][1] for number in order])
        second = np.concatenate(logits[::2])
        different = audit.differing(first, second)
        return {
            "faster": float(np.median(seconds[1::2]) / np.median(seconds[::2])),
            "finite": bool(np.isfinite([first, second]).all()),
            "differs": [audit.format_logits(answers[row]) for row in different[:1] for answers in (first, second)],
        }

    def _time(self, side: str, texts: "Sequence[Encoding]") -> "tuple[list[float], Answers]":
        classifier, logits = self._loaded[side][1], []

        def call(text: "Encoding") -> None:
            logits.append(classifier(text))

        return [worker.time_call(call, text) for text in texts], logits


if __name__ == "__main__":
    gc.disable()
    worker.answer_requests(Timer())
