"""What the true drop of a score surely does not exceed, given paired answers to documents that are a sample."""

import math
from functools import cached_property
from statistics import NormalDist
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
DRAWS = 4_000
"""Of a bootstrap."""
BEYOND = 20
"""Draws that lie beyond a bound, at least."""
MOST_DRAWS = 1_000_000


class Paired(Protocol):
    """A sample's drop, and how far that of the population may be from it."""

    @property
    def drop(self) -> float:
        """That of the sample."""

    def at_most(self, confidence: float, times: float = 1.0) -> float:
        """Return what the true drop does not exceed with `confidence`; of a sample `times` as large, if it is alike."""

    def at_least(self, confidence: float) -> float:
        """Return what the true drop is not below, with `confidence`."""


def at_most(values: Floats, counts: Floats, confidence: float) -> float:
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


class ByKind:
    """A drop that is the mean of what documents add to it, of which there are few kinds: bounded by the score test."""

    def __init__(self, values: Floats, counts: Floats) -> None:
        """Take what a document of each kind adds, and how many there are: as at_most does, for both ends."""
        self.values, self.counts = values, counts

    @property
    def drop(self) -> float:
        """That of the sample."""
        return float(self.values @ self.counts / self.counts.sum())

    def at_most(self, confidence: float, times: float = 1.0) -> float:
        """As Paired says."""
        return min(1.0, at_most(self.values, self.counts * times, confidence))

    def at_least(self, confidence: float) -> float:
        """As Paired says."""
        return max(-1.0, -at_most(-self.values, self.counts, confidence))


def _draws(confidence: float) -> int:
    return max(DRAWS, math.ceil(BEYOND / (1 - confidence)))


class ByUnit:
    """A drop that is the mean over units, such as queries: bounded by the paired Bayesian bootstrap.

    A unit that was not seen, of the greatest possible change, takes part with the weight of one: few units, or none
    that changed, are no proof.

    Source: Rubin 1981, "The Bayesian bootstrap"; with the unit not seen it is the bound of Gaffke 2005, "Three test
    statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable".
    """

    def __init__(self, drops: Floats, greatest: float) -> None:
        """Take the drop of each unit, and the greatest change of one that there can be."""
        self.values, self.counts = np.unique(drops, return_counts=True)
        self._greatest = greatest

    @property
    def drop(self) -> float:
        """That of the sample; 0 without a unit."""
        return float(self.values @ self.counts / max(1, self.counts.sum()))

    def at_most(self, confidence: float, times: float = 1.0) -> float:
        """As Paired says."""
        return self._bound(self.values, confidence, times)

    def at_least(self, confidence: float) -> float:
        """As Paired says."""
        return -self._bound(-self.values, confidence, 1.0)

    def _bound(self, values: Floats, confidence: float, times: float) -> float:
        # The weights of units that are alike add up: exponential variables to a gamma variable.
        shapes, means = np.append(self.counts * times, 1.0), np.append(values, self._greatest)
        rng = np.random.default_rng(0)
        weights = rng.standard_gamma(shapes, (_draws(confidence), len(shapes)))
        return float(np.quantile(weights @ means / weights.sum(axis=1), confidence))


class OfCorrelation:
    """A drop of the correlation with `labels` from `before` to `after`, all `(rows,)`: the paired Bayesian bootstrap.

    Source: Rubin 1981, "The Bayesian bootstrap"; its percentiles are expanded for few rows as in Hesterberg 2015, "What
    teachers should know about the bootstrap".
    """

    def __init__(self, labels: Floats, before: Floats, after: Floats) -> None:
        """Take finite numbers."""
        self._columns = [_standardized(column) for column in (labels, before, after)]
        self._kept: dict[float, Floats] = {}

    @cached_property
    def drop(self) -> float:
        """That of the sample."""
        return float(self._drops(np.ones((1, len(self._columns[0]))))[0])

    def at_most(self, confidence: float, times: float = 1.0) -> float:
        """As Paired says."""
        expanded = self._expanded(confidence, times)
        return float(np.quantile(self._drawn(expanded, times), expanded)) if expanded else GREATEST

    def at_least(self, confidence: float) -> float:
        """As Paired says."""
        expanded = self._expanded(confidence, 1.0)
        return float(np.quantile(self._drawn(expanded, 1.0), 1 - expanded)) if expanded else -GREATEST

    def _expanded(self, confidence: float, times: float) -> float | None:
        """Return the percentile to take; None where there are too few rows for this confidence."""
        from scipy import special  # scipy.stats takes a second to import

        rows = len(self._columns[0]) * times
        if rows < 3:  # noqa: PLR2004  two always lie on a line
            return None
        expanded = float(special.ndtr(math.sqrt((rows + 1) / (rows - 1)) * special.stdtrit(rows - 1, confidence)))
        return expanded if expanded < 1 - BEYOND / MOST_DRAWS else None

    def _drawn(self, confidence: float, times: float) -> Floats:
        rows, draws = len(self._columns[0]), _draws(confidence)
        if len(self._kept.get(times, ())) < draws:
            rng, at_once = np.random.default_rng(0), max(1, 2_000_000 // rows)
            sizes = [min(at_once, draws - done) for done in range(0, draws, at_once)]
            self._kept[times] = np.concatenate([self._drops(rng.standard_gamma(times, (size, rows))) for size in sizes])
        return self._kept[times]

    def _drops(self, weights: Floats) -> Floats:
        """Return the drop of the sample under each row of `weights`, `(draws, rows)`."""
        labels, before, after = self._columns
        weights = weights / weights.sum(axis=1, keepdims=True)
        means = {id(column): weights @ column for column in self._columns}
        spreads = {id(column): weights @ column**2 - means[id(column)] ** 2 for column in self._columns}

        def correlation(outputs: Floats) -> Floats:
            together = weights @ (labels * outputs) - means[id(labels)] * means[id(outputs)]
            spread = np.sqrt(np.maximum(spreads[id(labels)] * spreads[id(outputs)], 0.0))
            # What is constant tells nothing.
            return np.divide(together, spread, out=np.zeros_like(together), where=spread > TINY)

        return correlation(before) - correlation(after)


GREATEST = 2.0
"""The greatest drop of a correlation."""
TINY = 1e-12
"""A spread of standardized numbers that is rounding."""


def _standardized(column: Floats) -> Floats:
    centred = column.astype(np.float64) - column.mean(dtype=np.float64)
    scale = float(np.abs(centred).max())
    return np.asarray(centred / scale if scale else centred)
