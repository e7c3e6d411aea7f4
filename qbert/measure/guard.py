"""The guard of the F1 drop: the drop itself, a look, or what it surely does not exceed, by one function for all."""

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt


def figure(drop: float, at_most: float, by: str) -> float:
    """Return the figure of an F1 drop that is held against its limit.

    `by` is `point` (the drop itself: a look) or `interval` (`at_most`: then it is surely within the limit).
    """
    return max(drop, at_most) if by == "interval" else drop


def at_most(values: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], confidence: float) -> float:
    """Return what the true mean of `values`, each of which was seen `counts` times, surely does not exceed.

    `values` holds the greatest that can occur, be it with a count of 0. The score test with a continuity correction
    rejects any greater mean. The variance under that mean is that of the sample with as many of the greatest value
    mixed in as bring it there. For a share this is Wilson's bound. 1 where no document adds anything.

    Source: Newcombe 1998, "Two-sided confidence intervals for the single proportion: comparison of seven methods",
    method 4. The mixture is ours; docs/statistics.md has its error rates.
    """
    if not values.any():
        return 1.0  # documents without any label: they show nothing
    count, top, step = float(counts.sum()), float(values.max()), float(np.abs(values).max())
    mean, square = float(values @ counts / count), float(values**2 @ counts / count)
    if mean >= top:
        return top
    score = NormalDist().inv_cdf(confidence) ** 2
    # (count * rise - step / 2)**2 = score * count * variance, with a variance of constant + slope * rise - rise**2
    constant, slope = square - mean**2, (top**2 - square) / (top - mean) - 2 * mean
    half = (step + score * slope) / 2
    root = half**2 - (count + score) * (step**2 / (4 * count) - score * constant)
    return min(top, mean + (half + math.sqrt(max(root, 0.0))) / (count + score))
