"""Time one encoding at a time beside the baseline, so that both see the same machine at the same moment."""

import contextlib
import gc
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from qbert import CONFIDENCE

if TYPE_CHECKING:
    from qbert.checkpoint import Encoding
    from qbert.variants import Classifier

MIN_PAIRS = 6  # the least from which the sign test gives a 95 % interval
WARM_UP_S = 0.15  # kernels chosen, memory touched, clock raised: BERT-tiny is steady after 0.1 s
# After the other side's calls, the first 8 of BERT-tiny are up to 15 % slow (caches, clock; AMD Zen 5). So calls are
# timed in blocks, and those of a block's first 30 ms are made and not timed.
BLOCK_S = 0.1
SETTLE_S = 0.03
CACHES_FILLED_S = 0.2  # a longer call rereads more memory than caches hold: what ran before it no longer shows


@dataclass(frozen=True)
class Speedup:
    """How many times faster than the baseline, with its 95 % interval over the pairs of blocks."""

    speedup: float
    speedup_low: float
    speedup_high: float
    pairs: int


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread on the last core that it may use, where the system lets it choose."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})  # the first core is where most interrupts go
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def time_call(classifier: "Classifier", encoding: "Encoding") -> float:
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


class Interleaved:
    """The plan of one cell: blocks of the variant's rounds, and before each a block of the baseline's.

    Call `before_round` before each of `rounds` rounds.
    """

    def __init__(
        self,
        classifier: "Classifier",
        baseline: "Classifier | None",
        encoding: "Encoding",
        *,
        seconds: float,
        min_rounds: int = MIN_PAIRS,
    ) -> None:
        """Warm both up and plan rounds that take about `seconds` in all; without a baseline, for one side."""
        self._classifier, self._baseline, self._encoding = classifier, baseline, encoding
        sides = [classifier] if baseline is None else [classifier, baseline]
        costs = [_warm_up(side, encoding) for side in sides]
        self.blocks = [1 if baseline is None else max(1, round(BLOCK_S / cost)) for cost in costs]
        self._settling = [_settling_calls(cost) if baseline else 0 for cost in costs]
        pair_s = sum(
            cost * (block + settling) for cost, block, settling in zip(costs, self.blocks, self._settling, strict=True)
        )
        self.rounds = self.blocks[0] * max(round(seconds / pair_s), MIN_PAIRS, -(-min_rounds // self.blocks[0]))
        self.baseline_s: list[float] = []
        self._done = 0

    def before_round(self) -> None:
        """Make and time the baseline's calls where a block begins."""
        if self._baseline is not None and self._done % self.blocks[0] == 0:
            variant_settling, baseline_settling = self._settling
            for _ in range(baseline_settling):
                self._baseline(self._encoding)
            self.baseline_s += [time_call(self._baseline, self._encoding) for _ in range(self.blocks[1])]
            for _ in range(variant_settling):
                self._classifier(self._encoding)
        self._done += 1

    def result(self, variant_s: Sequence[float]) -> dict[str, float]:
        """Return how the rounds `variant_s` compare with the baseline's calls between them."""
        if self._baseline is None:
            return {"speedup": 1.0}
        return asdict(speedup(self.baseline_s, variant_s, *reversed(self.blocks))) | {
            "baseline_p50_s": float(np.median(self.baseline_s))
        }


def _settling_calls(cost_s: float) -> int:
    """Return how many calls of `cost_s` seconds each are made and not timed when a block begins."""
    return 0 if cost_s >= CACHES_FILLED_S else math.ceil(SETTLE_S / cost_s)


def _warm_up(classifier: "Classifier", encoding: "Encoding") -> float:
    """Call until it is steady; return the median seconds of the later half of the calls."""
    calls: list[float] = []
    while sum(calls) < WARM_UP_S:
        calls.append(time_call(classifier, encoding))
    return float(np.median(calls[len(calls) // 2 :]))


def speedup(
    baseline_s: Sequence[float], variant_s: Sequence[float], baseline_block: int = 1, variant_block: int = 1
) -> Speedup:
    """Return the median over pairs of blocks, of so many calls each, of (baseline's median / variant's median).

    Source: the interval is the one that the sign test does not reject (Conover 1999, section 3.2), which
    supposes nothing of how timings are distributed; below 6 pairs it has no ends (nan).
    """
    pairs = min(len(baseline_s) // baseline_block, len(variant_s) // variant_block)
    ratios = np.divide(
        *(
            np.median(np.reshape(calls[: pairs * block], (pairs, block)), axis=1)
            for calls, block in ((baseline_s, baseline_block), (variant_s, variant_block))
        )
    )
    ratio = float(np.median(ratios))
    interval = stats.quantile_test(ratios, q=ratio, p=0.5).confidence_interval(CONFIDENCE)
    return Speedup(ratio, float(interval.low), float(interval.high), pairs)
