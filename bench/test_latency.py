"""How long one encoding of exactly `max_length` tokens of real text takes to become logits.

Timed: encoding to logits, batch size 1, one thread, garbage collection off.
Not timed: tokenizing, building, loading, warming up; the baseline's calls between the rounds.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

from qbert import evaluate, latency

if TYPE_CHECKING:
    from qbert.suite import Cell


@pytest.mark.benchmark(disable_gc=True)
def test_latency(
    cell: "Cell",
    benchmark: Any,
    pytestconfig: pytest.Config,
    attempt: Callable[[], AbstractContextManager[None]],
) -> None:
    """A round is one call; the baseline is called between them, so that the speedup is of one moment."""
    cell.introduce(benchmark, "latency")
    encoding = cell.encoder.fill(cell.suite.dataset, cell.max_length)
    classifier = cell.classifier
    with attempt():
        evaluate.check_finite(classifier(encoding), cell.name)
    if benchmark.disabled:
        benchmark(classifier, encoding)
        return

    with latency.one_core():
        plan = latency.Interleaved(
            classifier,
            None if cell.is_baseline else cell.baseline,
            encoding,
            seconds=pytestconfig.option.seconds_per_cell,
            min_rounds=pytestconfig.option.benchmark_min_rounds,
        )
        benchmark.pedantic(classifier, args=(encoding,), setup=plan.before_round, rounds=plan.rounds)
    rounds = benchmark.stats.stats.data
    percentiles = evaluate.percentiles(rounds)
    benchmark.extra_info.update(percentiles, **plan.result(rounds), **cell.limit(percentiles["p50_s"]))
