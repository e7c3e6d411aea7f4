"""What the machine serves with every core busy: texts a second, and the tail of their latency.

Workers, each a process on a core of its own with one thread, classify texts as they are: at their own length, batch
size 1, all at the same time. A round is a text under load.

Timed: a text to logits, tokenizing included, as a service does it.
Not timed: starting, pinning, loading and warming up the workers; the texts with which they keep one another busy before
the first and after the last timed one; the comparison of the answers with those of the accuracy pass.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from qbert.measure import capacity, latency

if TYPE_CHECKING:
    from qbert.measure.cells import Cell


@pytest.mark.own_process
@pytest.mark.greatest_length
@pytest.mark.also_threads
@pytest.mark.benchmark(disable_gc=True, timer=latency.replayed)
def test_capacity(
    cell: "Cell",
    benchmark: Any,
    qbert_attempt: Callable[[], AbstractContextManager[None]],
    qbert_load: capacity.Load,
) -> None:
    """Time texts in all workers at once, in turn with one worker alone."""
    benchmark.group = cell.group("capacity")
    load = replace(qbert_load, seconds=0.0) if benchmark.disabled else qbert_load
    with qbert_attempt():
        rounds, figures = capacity.measure(cell, load)
    described = cell.describe(figures.pop("evidence"))
    benchmark.extra_info.update(described, **figures, measured="capacity")
    seconds = iter(rounds)

    def call() -> None:
        """Replay the seconds of the next text."""
        latency.replayed.take(next(seconds, None))

    benchmark.pedantic(call, setup=latency.replayed.reset, rounds=len(rounds))
