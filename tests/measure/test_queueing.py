"""The simulated queue against queues whose answers are known."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize

from qbert.measure import queueing

QUEUES, REQUESTS = 800, 10_000
BATCHES = 20  # of the queues, for the standard error
SIGMAS = 4  # standard errors; of ten comparisons one is beyond by chance in 1,600


def exponential(workers: int) -> list[list[float]]:
    """Return for each worker service times with a mean of one second, as M/M/k has them."""
    times = -np.log1p(-(np.arange(500_000) + 0.5) / 500_000)
    return np.random.default_rng(7).permuted(np.tile(times, (workers, 1)), axis=1).tolist()


def stay_in_mmk(workers: int, rate: float, percent: float) -> float:
    """Return the percentile of waiting plus service in M/M/k with a mean service of a second.

    Source: Gross, Shortle, Thompson and Harris 2008, "Fundamentals of Queueing Theory", section 2.3.
    """
    terms = [rate**number / math.factorial(number) for number in range(workers)]
    last = rate**workers / math.factorial(workers) / (1 - rate / workers)
    waits = last / (sum(terms) + last)
    spare = workers - rate

    def beyond(seconds: float) -> float:
        if math.isclose(spare, 1):
            return math.exp(-seconds) * (1 + waits * seconds)
        return math.exp(-seconds) + waits * (math.exp(-seconds) - math.exp(-spare * seconds)) / (spare - 1)

    return optimize.brentq(lambda seconds: beyond(seconds) - (1 - percent / 100), 0, 1e4)


def stay_in_md1(rate: float, percent: float) -> float:
    """Return the percentile of waiting plus a service of one second in M/D/1.

    Source: Erlang 1909, the distribution of the waiting time.
    """

    def within(wait: float) -> float:
        terms = (
            (-rate * (wait - served)) ** served / math.factorial(served) * math.exp(rate * (wait - served))
            for served in range(int(wait) + 1)
        )
        return (1 - rate) * sum(terms)

    return 1 + optimize.brentq(lambda wait: within(wait) - percent / 100, 0, 25)


def check(services: list[list[float]], rates: list[float], known: Callable[[float, float], float]) -> None:
    stays = queueing.settled_stays(services, rates, 1.0, QUEUES, REQUESTS)
    for percent in (90, 99):
        found = np.percentile(stays, percent, axis=(0, 2))
        batches = [np.percentile(batch, percent, axis=(0, 2)) for batch in np.array_split(stays, BATCHES, axis=2)]
        error_s = np.std(batches, axis=0, ddof=1) / math.sqrt(BATCHES)
        expected = np.array([known(rate, percent) for rate in rates])
        assert (error_s < 0.02 * expected).all(), "else it would prove little"
        assert (np.abs(found - expected) < SIGMAS * error_s).all()


def test_constant_services_before_one_worker_wait_as_known() -> None:
    check([[1.0]], [0.3, 0.6, 0.8], stay_in_md1)


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_exponential_services_wait_as_known(workers: int) -> None:
    rates = [load * workers for load in (0.3, 0.5, 0.8)]
    check(exponential(workers), rates, lambda rate, percent: stay_in_mmk(workers, rate, percent))


def test_a_wrong_answer_would_be_noticed() -> None:
    with pytest.raises(AssertionError):
        check(exponential(1), [0.5], lambda rate, percent: 1.05 * stay_in_mmk(1, rate, percent))


def test_the_curve_ascends_and_the_defaults_are_near_enough() -> None:
    rates = [load * 2 for load in queueing.LOADS]
    found = queueing.p99(exponential(2), rates)
    known = np.array([stay_in_mmk(2, rate, 99) for rate in rates])
    assert (np.diff(found) > 0).all()
    assert (np.abs(found / known - 1) < np.where(np.array(rates) < 1.7, 0.05, 0.2)).all()


def test_a_slow_worker_serves_with_its_own_times() -> None:
    assert queueing.capacity([[1.0, 1.0], [2.0, 6.0, 4.0]]) == 1.25
    assert queueing.settled_stays([[1.0], [5.0]], [0.01], 1.0, 10, 400).max() >= 5.0


def test_texts_take_longer_the_more_their_worker_rests() -> None:
    rates = [0.001, 0.5, 0.75, 1.0]
    alone = [queueing.stays([[1.0]], [rate], 3.0, 10, 1)[0, 0, 0] for rate in rates]
    assert alone == pytest.approx([3.0, 3.0, 2.0, 1.0])


def test_slow_moments_last_as_long_as_they_did() -> None:
    mixed = ([1.0] * 9 + [2.0]) * 20
    in_a_row = [1.0] * 180 + [2.0] * 20
    short, long = (queueing.p99([times] * 2, [1.4], queues=200)[0] for times in (mixed, in_a_row))
    assert long > 1.5 * short


def test_the_highest_rate_within_a_limit_lies_between_its_neighbours() -> None:
    rates, p99_s = [1.0, 2.0, 4.0], [0.1, 0.2, 0.8]
    assert queueing.highest_rate(rates, p99_s, 0.05) == 0
    assert queueing.highest_rate(rates, p99_s, 0.2) == pytest.approx(2.0)
    assert queueing.highest_rate(rates, p99_s, 0.4) == pytest.approx(3.0)
    assert queueing.highest_rate(rates, p99_s, 9.0) == 4.0
    assert queueing.highest_rate(rates, [0.2, 0.1, 0.8], 0.15) == 0, "p99 of a faster rate is no shorter"
