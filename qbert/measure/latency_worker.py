"""A process that times cells: it loads classifiers and makes blocks of calls when qbert.measure.latency asks."""

import contextlib
import ctypes
import gc
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import qbert.variants  # noqa: F401  before import_modules: it turns OpenVINO's telemetry off
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
    """The requests that it answers, each of a variant by its name."""

    def __init__(self) -> None:
        """Start with nothing loaded."""
        self._loaded: dict[str, Classifier] = {}
        self._generator = np.random.default_rng(0)

    def import_modules(self, modules: Sequence[str]) -> None:
        """Import what the variants will need."""
        worker.import_modules(modules)

    def load(self, variant: str, loading: Mapping[str, Any]) -> dict[str, Any]:
        """Load a variant; return its evidence."""
        self._loaded[variant] = worker.load(**loading)
        _free()
        return dict(self._loaded[variant].evidence)

    def drop(self) -> None:
        """Drop all that is loaded."""
        self._loaded.clear()
        _free()

    def begin(self, encodings: Sequence[Mapping[str, Any]], special: Sequence[int], seed: int) -> None:
        """Use texts from `encodings` from now on, and keep answers for the audit."""
        self._texts = endless_texts(encodings, special, seed)
        self._answered: dict[str, list[tuple[Encoding, npt.NDArray[np.float32]]]] = {}

    def warm_up(self, variant: str) -> float:
        """Return the seconds of a call in the steady state."""
        with one_core():
            return worker.warm_up(lambda: worker.time_call(self._loaded[variant], next(self._texts)))

    def block(self, variant: str, settling: int, timed: int) -> list[float]:
        """Make `settling` untimed calls, then `timed` ones; return the seconds of each of these."""
        texts = list(itertools.islice(self._texts, settling + timed))
        with one_core():
            for text in texts[:settling]:
                self._loaded[variant](text)
            seconds, logits = self._time(variant, texts[settling:])
        answered = self._answered.setdefault(variant, [])
        for number in self._generator.permutation(timed)[:KEPT]:
            answered.append((texts[settling + number], np.array(logits[number])))
        return seconds

    def repeat(self, variant: str, count: int) -> dict[str, Any]:
        """Repeat `count` timed calls, two at least, in another order, with a call with a new text between each two.

        Return how many times faster they were than those, and the first two answers that differ, if any.
        """
        answered = self._answered[variant]
        order = self._generator.permutation(len(answered))[:count]
        if (np.diff(order) > 0).all():
            order = order[::-1]
        asked = [text for number in order for text in (answered[number][0], next(self._texts))][:-1]
        with one_core():
            seconds, logits = self._time(variant, asked)
        first = np.concatenate([answered[number][1] for number in order])
        second = np.concatenate(logits[::2])
        different = audit.differing(first, second)
        return {
            "faster": float(np.median(seconds[1::2]) / np.median(seconds[::2])),
            "finite": bool(np.isfinite([first, second]).all()),
            "differs": [audit.format_logits(answers[row]) for row in different[:1] for answers in (first, second)],
        }

    def _time(self, variant: str, texts: "Sequence[Encoding]") -> "tuple[list[float], Answers]":
        classifier, logits = self._loaded[variant], []

        def call(text: "Encoding") -> None:
            logits.append(classifier(text))

        return [worker.time_call(call, text) for text in texts], logits


def _free() -> None:
    """Give back to the system what is no longer needed: glibc keeps 0.6 GB of what int8-dynamic of BERT-base loads."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    gc.disable()
    worker.answer_requests(Timer())
