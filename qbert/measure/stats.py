"""Statistics of verdicts: signed-rank intervals, levels for repeated looks, the verdict from an interval."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
"""Of every interval that is reported."""

MIN_EFFECT = 0.025  # a smaller change hardly matters, and two processes of the same code can differ by as much


DECIDED = ("slower", "faster", "same")
"""The verdicts on latency that are sure."""


MIN_DROP = 0.01  # equals the guard's default limit


def signed_rank_interval(
    values: Sequence[float] | npt.NDArray[np.float64], confidence: float
) -> tuple[float, float, float]:
    """Return the estimate of the median of `values` and its interval, by the signed-rank test.

    The interval is infinite if there are too few values for this confidence. The values only have to be symmetrically
    distributed; log ratios of two sides with the same code are: swapping the sides changes their sign.

    Source: Hollander, Wolfe and Chicken 2014, "Nonparametric Statistical Methods", sections 3.2 and 3.3: the estimate
    of Hodges and Lehmann is the median of the Walsh averages; the interval's ends are order statistics of these, given
    by the exact distribution of the signed-rank sum.
    """
    sample = np.asarray(values)
    first, second = np.triu_indices(len(sample))
    averages = np.sort((sample[first] + sample[second]) / 2)
    middle = float(np.median(averages))
    beyond = _beyond(len(sample), confidence)
    if not beyond:
        return middle, -math.inf, math.inf
    return middle, float(averages[beyond - 1]), float(averages[-beyond])


@cache
def _beyond(count: int, confidence: float) -> int:
    """Return the number of signed-rank sums of `count` values in each tail outside `confidence`."""
    return int((_tails(count) <= (1 - confidence) / 2).sum())


@cache
def _tails(count: int) -> npt.NDArray[np.float64]:
    """Return the chance that the signed-rank sum of `count` values around 0 is at most 0, 1, 2, ..."""
    sums = np.ones(1)  # for each number, the share of subsets of the ranks 1..count that have it as sum
    for rank in range(1, count + 1):
        sums = np.convolve(sums, np.r_[0.5, np.zeros(rank - 1), 0.5])
    return np.asarray(np.cumsum(sums))


def min_sample_size(confidence: float) -> int:
    """Return the least number of values for which `signed_rank_interval` is finite."""
    return 1 - math.floor(math.log2(1 - confidence))


def bonferroni(confidence: float, cells: int) -> float:
    """Return the confidence of each of `cells` intervals so that all hold together with `confidence` (Bonferroni)."""
    return 1 - (1 - confidence) / max(1, cells)


def p_values(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the two-sided p of the signed-rank test for median 0 after the first, the first two, ... of `values`.

    `values` and the result are `(..., count)`; p is negative if the values are below 0. `signed_rank_interval` of the
    first n values with a confidence of 1 - |p| or less excludes 0.

    Source: Hollander, Wolfe and Chicken 2014, section 3.1: the signed-rank sum counts the Walsh averages above 0; each
    new value adds its averages with itself and all previous values.
    """
    sums = np.zeros(values.shape[:-1], dtype=np.int32)
    signed_p = np.empty(values.shape)
    for count in range(1, values.shape[-1] + 1):
        last = values[..., count - 1 : count]
        sums += np.count_nonzero(values[..., :count] > -last, axis=-1)
        max_sum = count * (count + 1) // 2
        p = np.minimum(1, 2 * _tails(count)[np.minimum(sums, max_sum - sums)])
        signed_p[..., count - 1] = np.where(2 * sums < max_sum, -p, p)
    return signed_p


@cache
def over_looks(confidence: float, looks: int) -> float:
    """Return the confidence of one `signed_rank_interval` so that those after 1, 2, ... `looks` values hold together.

    Looking after every value, and stopping at a favourable interval, errs more often than a single interval.

    Source: Pocock 1977, "Group sequential methods in the design and analysis of clinical trials": one level for all
    looks. For the signed-rank test it is the same for all symmetric distributions; it is found by simulation of PATHS.
    """
    least = _least_p(looks)
    allowed = 1 - confidence
    # p is discrete: the least p that more than the share `allowed` of the samples reach.
    too_great = least[math.floor(allowed * len(least))]
    below = least[least < too_great]
    return 1 - max(allowed / looks, float(below[-1]) if len(below) else 0.0)


PATHS = 200_000
"""Simulated samples. A level's relative error is 1 / sqrt(PATHS * level): 8 % for the first of 60 cells."""


@cache
def _least_p(looks: int) -> npt.NDArray[np.float64]:
    """Return the least p over `looks` of each of PATHS simulated samples around 0, ascending."""
    rng = np.random.default_rng(0)
    batch = PATHS // 100
    least = [np.abs(p_values(rng.standard_normal((batch, looks)))).min(axis=1) for _ in range(100)]
    return np.sort(np.concatenate(least))


def verdict(low: float, high: float, min_effect: float) -> str:
    """Return the verdict on head from the interval of a log ratio, head over base.

    `slower` or `faster` if all of it lies beyond `min_effect` (0.025: 2.5 %), `same` if all of it lies within, else
    `inconclusive`.
    """
    return _classify(low, high, math.log1p(min_effect), "slower", "faster")


def drop_verdict(low: float, high: float, min_effect: float) -> str:
    """Return the verdict on head from the interval of a drop, base to head: like `verdict`, `worse` or `better`."""
    return _classify(low, high, min_effect, "worse", "better")


def verdicts(values: npt.NDArray[np.float64], confidence: float, min_effect: float) -> npt.NDArray[np.str_]:
    """Return the `verdict` after the first, the first two, ... of the log ratios `values`, `(..., count)`."""
    bound = math.log1p(min_effect)
    from_above, from_below = (p_values(values - edge) for edge in (bound, -bound))
    sure_above, sure_below = (np.abs(p) <= 1 - confidence for p in (from_above, from_below))
    return np.select(
        [sure_above & (from_above > 0), sure_below & (from_below < 0), sure_above & sure_below],
        ["slower", "faster", "same"],
        "inconclusive",
    )


def _classify(low: float, high: float, bound: float, above: str, below: str) -> str:
    if low > bound:
        return above
    if high < -bound:
        return below
    return "same" if -bound < low and high < bound else "inconclusive"
