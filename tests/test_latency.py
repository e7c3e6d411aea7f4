"""The speedup's interval, and the order in which the two sides are called."""

import gc
import itertools
import math
import os
import time

import numpy as np
import pytest

from qbert import latency, variants
from qbert.checkpoint import Checkpoint
from qbert.dataset import Dataset
from qbert.variants import Classifier


def test_the_speedup_is_the_median_ratio_of_pairs() -> None:
    result = latency.speedup([2.0, 4.0, 6.0, 8.0, 10.0, 12.0], [1.0, 1.0, 2.0, 2.0, 5.0, 1.0])
    assert result.speedup == 3.5  # of 2, 4, 3, 4, 2, 12
    assert (result.speedup_low, result.speedup_high, result.pairs) == (2.0, 12.0, 6)


def test_a_block_counts_once() -> None:
    result = latency.speedup([3.0, 5.0] * 6, [1.0, 9.0, 2.0] * 6, 2, 3)
    assert (result.speedup, result.pairs) == (2.0, 6)


def test_too_few_pairs_have_no_interval() -> None:
    result = latency.speedup([2.0] * 5, [1.0] * 5)
    assert result.speedup == 2.0
    assert math.isnan(result.speedup_low)
    assert math.isnan(result.speedup_high)


@pytest.mark.parametrize("pairs", [6, 10, 25, 60])
def test_the_interval_covers_the_true_speedup(pairs: int) -> None:
    """By simulation: of 95 % intervals of skewed, drifting timings, at least 93 % hold the true speedup, 2."""
    rng = np.random.default_rng(2)
    trials, hits, widths = 400, 0, []
    for _ in range(trials):
        drift = np.cumsum(rng.normal(0, 0.01, size=pairs))
        baseline = 2 * np.exp(drift + rng.gamma(2, 0.02, size=pairs))
        variant = np.exp(drift + rng.gamma(2, 0.02, size=pairs))
        result = latency.speedup(list(baseline), list(variant))
        hits += result.speedup_low <= 2 <= result.speedup_high
        widths.append(result.speedup_high - result.speedup_low)
    assert hits / trials >= 0.93
    assert np.median(widths) < 0.65 / math.sqrt(pairs)


class Clock:
    """A classifier that keeps busy for a while and writes down that it was called."""

    def __init__(self, calls: list[str], name: str, seconds: float) -> None:
        self.calls, self.name, self.seconds = calls, name, seconds

    def run(self, _: object) -> np.ndarray:
        start = time.perf_counter()
        while time.perf_counter() - start < self.seconds:
            pass
        self.calls.append(self.name)
        return np.zeros((1, 2), dtype=np.float32)


def plan(variant_s: float, baseline_s: float, seconds: float) -> tuple[latency.Interleaved, list[str], Classifier]:
    calls: list[str] = []
    variant = Classifier(Clock(calls, "v", variant_s).run, {})
    made = latency.Interleaved(variant, Classifier(Clock(calls, "b", baseline_s).run, {}), {}, seconds=seconds)
    calls.clear()
    return made, calls, variant


def test_short_calls_are_interleaved_in_blocks_whose_first_30_ms_are_not_timed() -> None:
    made, calls, variant = plan(0.005, 0.008, 0.1)
    for _ in range(made.rounds):
        made.before_round()
        latency.time_call(variant, {})
    assert made.blocks[0] > made.blocks[1] > 5  # of 0.1 s each
    baseline, classifier = (len(list(group)) for _, group in itertools.islice(itertools.groupby(calls), 2))
    assert 0 < baseline - made.blocks[1] <= 4  # 30 ms are at most four calls of 8 ms or more
    assert 0 < classifier - made.blocks[0] <= 6
    assert len(made.baseline_s) == made.blocks[1] * latency.MIN_PAIRS
    assert made.rounds == made.blocks[0] * latency.MIN_PAIRS


def test_long_calls_alternate_one_by_one() -> None:
    made, calls, variant = plan(0.11, 0.25, 0.01)
    assert (made.blocks, made.rounds) == ([1, 1], latency.MIN_PAIRS)
    for _ in range(2):
        made.before_round()
        latency.time_call(variant, {})
    assert calls == ["b", "v", "v", "b", "v", "v"]  # only the short side is called once more


def test_the_time_budget_decides_the_rounds() -> None:
    made, _, _ = plan(0.001, 0.001, 4.0)
    pair_s = 2 * (made.blocks[0] + 30) * 0.001
    assert made.rounds / made.blocks[0] == pytest.approx(4.0 / pair_s, rel=0.2)


def test_the_measured_speedup_is_that_of_the_calls() -> None:
    made, _, variant = plan(0.002, 0.006, 0.5)
    rounds = []
    for _ in range(made.rounds):
        made.before_round()
        rounds.append(latency.time_call(variant, {}))
    result = made.result(rounds)
    assert result["baseline_p50_s"] == np.median(made.baseline_s) >= 0.006
    assert result["speedup"] == pytest.approx(np.median(made.baseline_s) / np.median(rounds), rel=0.3)
    assert result["speedup"] > 1.5


def test_one_side_alone_has_no_interval(trained: Checkpoint, news: Dataset) -> None:
    encoding = trained.encoder.fill(news, 16)
    made = latency.Interleaved(
        variants.build(variants.VARIANTS["fp32"], trained), None, encoding, seconds=0.1, min_rounds=40
    )
    assert made.rounds >= 40
    made.before_round()
    assert made.result([0.1]) == {"speedup": 1.0}


def test_timing_leaves_collector_and_cores_as_they_were() -> None:
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with latency.one_core():
        if cores is not None:
            assert len(os.sched_getaffinity(0)) == 1
        assert latency.time_call(Classifier(lambda _: np.zeros((1, 1), np.float32), {}), {}) < 0.1
    assert gc.isenabled()
    if cores is not None:
        assert os.sched_getaffinity(0) == cores
