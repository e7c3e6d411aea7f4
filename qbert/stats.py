"""Statistics of verdicts: signed-rank intervals, levels for repeated looks, what an interval says of a change."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
"""Of every interval that is reported."""

MIN_EFFECT = 0.025  # smaller is nobody's regression, and one new process of the same code can differ by as much


DECIDED = ("slower", "faster", "same")
"""The verdicts on latency that are sure."""


MIN_F1_EFFECT = 0.01  # as the guard's own limit


def signed_rank_interval(
    values: Sequence[float] | npt.NDArray[np.float64], confidence: float
) -> tuple[float, float, float]:
    """Return the estimate of the median of `values` and its interval, by the signed-rank test.

    The interval is infinite where there are too few values for this confidence. Nothing but symmetry is supposed of
    them, which log ratios of two sides of the same code have: swapping the sides changes their sign.

    Source: Hollander, Wolfe and Chicken 2014, "Nonparametric Statistical Methods", sections 3.2 and 3.3: the estimate
    of Hodges and Lehmann is the median of the Walsh averages, the interval's ends are order statistics of them, counted
    off by the exact distribution of the signed-rank sum.
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
    """Return how many signed-rank sums of `count` values lie in each tail that `confidence` leaves."""
    return int((_tails(count) <= (1 - confidence) / 2).sum())


@cache
def _tails(count: int) -> npt.NDArray[np.float64]:
    """Return the chance that the signed-rank sum of `count` values around 0 is at most 0, 1, 2, ..."""
    sums = np.ones(1)  # of how many subsets of the ranks 1..count is each number the sum, as shares
    for rank in range(1, count + 1):
        sums = np.convolve(sums, np.r_[0.5, np.zeros(rank - 1), 0.5])
    return np.asarray(np.cumsum(sums))


def min_sample_size(confidence: float) -> int:
    """Return how many values the interval of `signed_rank_interval` needs to have ends."""
    return 1 - math.floor(math.log2(1 - confidence))


def bonferroni(confidence: float, cells: int) -> float:
    """Return the confidence of each of `cells` intervals so that all hold together with `confidence` (Bonferroni)."""
    return 1 - (1 - confidence) / max(1, cells)


def p_values(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the signed-rank test's p after the first, the first two, ... of `values`, `(..., count)`, of median 0.

    Two-sided, and negative where the values are below 0: `signed_rank_interval` of the first n with a confidence of
    1 - p or less excludes 0.

    Source: Hollander, Wolfe and Chicken 2014, section 3.1: the signed-rank sum counts the Walsh averages above 0, and
    one value more brings those of itself with all before.
    """
    sums = np.zeros(values.shape[:-1], dtype=np.int32)
    found = np.empty(values.shape)
    for count in range(1, values.shape[-1] + 1):
        last = values[..., count - 1 : count]
        sums += np.count_nonzero(values[..., :count] > -last, axis=-1)
        most = count * (count + 1) // 2
        p = np.minimum(1, 2 * _tails(count)[np.minimum(sums, most - sums)])
        found[..., count - 1] = np.where(2 * sums < most, -p, p)
    return found


@cache
def over_looks(confidence: float, looks: int) -> float:
    """Return the confidence of one `signed_rank_interval` so that those after 1, 2, ... `looks` values hold together.

    Whoever looks after every value, and stops when the interval suits, is wrong more often than one interval is.

    Source: Pocock 1977, "Group sequential methods in the design and analysis of clinical trials": one level for all
    looks. Of the signed-rank test it is the same for all symmetric distributions, and found by simulation of PATHS.
    """
    least = _least_p(looks)
    allowed = 1 - confidence
    beyond = least[math.floor(allowed * len(least))]  # p is discrete, and of all with this one there are too many
    below = least[least < beyond]
    return 1 - max(allowed / looks, float(below[-1]) if len(below) else 0.0)


PATHS = 200_000
"""A level's relative error is 1 / sqrt(PATHS * level): 8 % for the first of 60 cells."""


@cache
def _least_p(looks: int) -> npt.NDArray[np.float64]:
    """Return the least p over `looks` of each of PATHS simulated samples around 0, ascending."""
    rng = np.random.default_rng(0)
    at_once = PATHS // 100
    least = [np.abs(p_values(rng.standard_normal((at_once, looks)))).min(axis=1) for _ in range(100)]
    return np.sort(np.concatenate(least))


def verdict(low: float, high: float, min_effect: float) -> str:
    """Return what the interval of a log ratio, head over base, says of head.

    `slower` or `faster` where all of it lies beyond `min_effect` (0.025: 2.5 %), `same` where all of it lies within,
    else `inconclusive`.
    """
    return _told(low, high, math.log1p(min_effect), "slower", "faster")


def f1_verdict(low: float, high: float, min_effect: float) -> str:
    """Return what the interval of an F1 drop, base to head, says of head: as `verdict`, with `worse` and `better`."""
    return _told(low, high, min_effect, "worse", "better")


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


def _told(low: float, high: float, bound: float, above: str, below: str) -> str:
    if low > bound:
        return above
    if high < -bound:
        return below
    return "same" if -bound < low and high < bound else "inconclusive"
