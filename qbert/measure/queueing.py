"""How long requests stay that arrive when they like: an open queue before workers whose service times were measured."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LOADS = (*(tenth / 10 for tenth in range(1, 10)), 0.95)
"""The rates of a curve, as shares of the capacity. Nobody should run closer to it: at 0.95 a rate that is 3 % higher
than expected doubles the wait."""
QUEUES = 100
REQUESTS = 3_000
HALF = 0.5
"""The share of the capacity at which it is measured how much longer a text takes that finds its worker rested."""
WARM_UP = 0.25  # the share of a queue's requests that it takes to forget that it was empty at first
IN_A_ROW = 50  # service times of a worker: many more than a slow moment has, and few enough to draw many such rows


def capacity(services_s: Sequence[Sequence[float]]) -> float:
    """Return the requests a second that workers with these service times can take at most."""
    return float(sum(1 / np.mean(times) for times in services_s))


def cost_per_million(price_per_hour: float, rate: Any) -> Any:  # noqa: ANN401  a number or a pandas.Series
    """Return what a million requests cost, in the currency of the machine's price, where `rate` are served a second."""
    return price_per_hour / 3600 / rate * 1e6


def slowdown_at(rates: npt.ArrayLike, most: float, slowdown: float) -> Array:
    """Return how many times as long a text takes at each of `rates` as at `most`, the capacity, where no worker rests.

    At HALF of the capacity, and below, it is `slowdown`; from there it falls in a line to 1.
    """
    return 1 + (slowdown - 1) * np.clip((1 - np.asarray(rates, dtype=float) / most) / (1 - HALF), 0, 1)


def p99(
    services_s: Sequence[Sequence[float]],
    rates: Sequence[float],
    *,
    slowdown: float = 1.0,
    queues: int = QUEUES,
    requests: int = REQUESTS,
) -> Array:
    """Return the 99th percentile of waiting plus service at each of `rates`: the arguments are those of `stays`."""
    return np.asarray(np.percentile(settled_stays(services_s, rates, slowdown, queues, requests), 99, axis=(0, 2)))


def settled_stays(
    services_s: Sequence[Sequence[float]], rates: Sequence[float], slowdown: float, queues: int, requests: int
) -> Array:
    """Return `stays` of the requests that come after the queues have forgotten that they were empty at first."""
    return stays(services_s, rates, slowdown, queues, requests)[int(WARM_UP * requests) :]


def stays(
    services_s: Sequence[Sequence[float]],
    rates: Sequence[float],
    slowdown: float,
    queues: int,
    requests: int,
) -> Array:
    """Return the seconds of waiting plus service of Poisson arrivals, `(requests, rates, queues)`, from an empty queue.

    The workers serve in the order of arrival. A worker's service times are its own in `services_s`, where it was never
    idle: IN_A_ROW in their order, from a random place on, which is the same for all workers, and so on (a moving-block
    bootstrap, Kuensch 1989); while a worker rests, those that it would have served are left out. So slow moments, which
    make a queue long, last as long as they did. A worker that rests takes longer. All rates see the same requests, so
    that a curve has no noise of its own from one rate to the next.

    Source: Kiefer and Wolfowitz 1955, "On the theory of queues with many servers": the vector of the times at which
    each worker becomes free, advanced by one request at a time.
    """
    rng = np.random.default_rng(0)
    counts = np.array([len(times) for times in services_s])
    pace = np.array([1 / np.mean(times) for times in services_s])
    times_s = np.zeros((len(counts), counts.max()))
    for row, times in zip(times_s, services_s, strict=True):
        row[: len(times)] = times
    free = np.zeros((len(rates), queues, len(counts)))
    places = np.arange(free.size).reshape(free.shape)[..., 0]
    now = np.zeros((len(rates), queues))
    each_rate = np.asarray(rates, dtype=float)[:, None]
    mean_gap = 1 / each_rate
    factor = slowdown_at(each_rate, capacity(services_s), slowdown)
    stay = np.empty((requests, *now.shape))
    for number in range(requests):
        if number % (IN_A_ROW * len(counts)) == 0:
            moment = np.tile(rng.random((queues, 1)) * counts, (len(rates), 1, 1))
        now += mean_gap * rng.standard_exponential(queues)
        first = free.argmin(axis=2)
        place = places + first
        freed = free.take(place)
        at = moment.take(place) + np.maximum(now - freed, 0) * pace.take(first)
        moment.put(place, at + 1)
        text = at.astype(np.intp) % counts.take(first)
        service = factor * times_s.take(first * times_s.shape[1] + text)
        end = np.maximum(now, freed) + service
        free.put(place, end)
        stay[number] = end - now
    return stay


def highest_rate(rates: Sequence[float], p99_s: Sequence[float], limit_s: float) -> float:
    """Return the highest rate at which p99 stays within `limit_s`, at most the last of `rates`; 0 if it never does.

    `rates` ascend. Between two of them the logarithm of p99 is taken to be a line.
    """
    ascending = np.maximum.accumulate(p99_s)
    if ascending[0] > limit_s:
        return 0.0
    return float(np.interp(np.log(limit_s), np.log(ascending), rates))
