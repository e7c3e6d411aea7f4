"""The latency of one encoding of exactly `max_length` tokens in the steady state: call after call.

Timed: encoding to logits, batch size 1, one thread, garbage collection off, in three processes in turn. Each call has
an encoding that its process has not seen: of real text at first, later of random mixes of those texts' tokens.
Not timed: tokenizing, building, loading, warming up; the baseline's calls between the rounds; the audit.
A call after a pause takes longer: bench/test_footprint.py.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

from qbert.measure import accuracy, latency

if TYPE_CHECKING:
    from qbert.measure.cells import Cell


@pytest.mark.benchmark(disable_gc=True, timer=latency.replayed)
def test_latency(
    cell: "Cell",
    benchmark: Any,
    pytestconfig: pytest.Config,
    qbert_attempt: Callable[[], AbstractContextManager[None]],
    qbert_timers: latency.Timers,
) -> None:
    """Time the variant in rounds of one call; baseline calls in between give a speedup under equal conditions."""
    cell.label_benchmark(benchmark, "latency")
    encoding = cell.encoder.fill(cell.suite.dataset, cell.max_length)
    classifier = cell.classifier
    rounds: list[float] = []
    with qbert_attempt():
        accuracy.check_finite(classifier(encoding), cell.name)
        if not benchmark.disabled:
            options = pytestconfig.option
            timed = qbert_timers.time(
                cell, seconds=options.qbert_seconds_per_cell, min_rounds=options.benchmark_min_rounds
            )
            rounds = timed.rounds
            percentiles = accuracy.percentiles(rounds)
            benchmark.extra_info.update(percentiles, **timed.figures(), **cell.limit(percentiles["p50_s"]))
    seconds = iter(rounds)

    def call() -> None:
        """Replay the seconds of the next timed call; if none are left (timing off, a profiler), make a call."""
        if latency.replayed.take(next(seconds, None)) is None:
            classifier(encoding)

    benchmark.pedantic(call, setup=latency.replayed.reset, rounds=max(1, len(rounds)))
