"""The latency of one encoding of exactly `max_length` tokens in the steady state: call after call.

Timed: encoding to logits, batch size 1, one thread, garbage collection off. The variants of a model and length take
turns, in three processes, one after the other. Each call has an encoding that its process has not seen: of real text at
first, later of random mixes of those texts' tokens.
Not timed: tokenizing, building, loading, warming up; the audit.
A call after a pause takes longer: bench/test_footprint.py.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

from qbert.measure import accuracy, latency

if TYPE_CHECKING:
    from qbert.measure.cells import Cell


@pytest.mark.own_process
@pytest.mark.benchmark(disable_gc=True, timer=latency.replayed)
def test_latency(
    cell: "Cell",
    benchmark: Any,
    qbert_attempt: Callable[[], AbstractContextManager[None]],
    qbert_time: Callable[["Cell"], latency.Timed],
) -> None:
    """Time the variants of one model and length by turns: a round is a call, and fp32's beside it give a speedup."""
    benchmark.group = cell.group("latency")
    encoding = cell.encoder.fill(cell.suite.dataset, cell.max_length)
    with qbert_attempt():
        if benchmark.disabled:
            accuracy.check_finite(cell.classifier(encoding), cell.name)
            timed = latency.Timed([], [], cell.classifier.evidence)
        else:
            timed = qbert_time(cell)
            percentiles = accuracy.percentiles(timed.rounds)
            limit = cell.limit(percentiles["p50_s"], timed.evidence)
            benchmark.extra_info.update(percentiles, **timed.figures(), **limit)
        if benchmark.cprofile:
            cell.classifier(encoding)  # so that the profile is of a call alone
    benchmark.extra_info.update(cell.describe(timed.evidence), measured="latency")
    seconds = iter(timed.rounds)

    def call() -> None:
        """Replay the seconds of the next timed call; if none are left (timing off, a profiler), make a call."""
        if latency.replayed.take(next(seconds, None)) is None:
            cell.classifier(encoding)

    benchmark.pedantic(call, setup=latency.replayed.reset, rounds=max(1, len(timed.rounds)))
