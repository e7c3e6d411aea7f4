"""The guard's bound against published figures, and by simulation: how often `surely` is wrong, looks included.

`pytest tests/measure/test_guard.py -m "slow or exhaustive" -s` prints the figures of docs/statistics.md.
"""

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from qbert.inputs import bounds, metrics
from qbert.inputs.labels import one_hot
from qbert.measure import accuracy, guard
from qbert.measure.stats import CONFIDENCE, bonferroni
from qbert.selection import choosing
from qbert.selection.rescue import judging, search

KINDS = np.array([-1.0, 0.0, 1.0])
"""What a document adds to a drop in accuracy that is gained, unchanged, or lost."""


def chances(drop: float, flips: float) -> list[float]:
    return [(flips - drop) / 2, 1 - flips, (flips + drop) / 2]


@pytest.mark.parametrize(
    ("events", "documents", "low", "high"),
    [(81, 263, 0.2535, 0.3682), (15, 148, 0.0598, 0.1644), (0, 20, 0.0, 0.2005), (1, 29, 0.0018, 0.1963)],
)
def test_the_bound_of_a_share_is_wilsons(events: int, documents: int, low: float, high: float) -> None:
    """Newcombe 1998, table I, method 4: the 95 % intervals of single proportions."""
    counts, values = np.array([documents - events, events], dtype=float), np.array([0.0, 1.0])
    assert bounds.at_most(values, counts, 0.975) == pytest.approx(high, abs=6e-5)
    assert -bounds.at_most(-values, counts, 0.975) == pytest.approx(low, abs=6e-5)


def test_what_cannot_be_exceeded_is_the_bound_of_too_few_documents() -> None:
    assert bounds.at_most(KINDS, np.array([0.0, 0.0, 3.0]), 0.95) == 1


def test_documents_without_labels_show_nothing() -> None:
    none = np.zeros((50, 3), dtype=bool)
    values, counts = metrics.f1_drop_parts(none, none, ~none)
    assert bounds.at_most(values, counts, 0.95) == 1
    assert bounds.at_most(-values, counts, 0.95) == 1


@pytest.mark.slow
@pytest.mark.parametrize("exchanged", [True, False])
def test_drops_of_several_labels_at_once_err_in_5_percent_at_most(*, exchanged: bool) -> None:
    """Documents with 3 of 8 labels; the few that a variant changes lose all of them, exchanged for others or not."""
    rng = np.random.default_rng(0)
    true = np.zeros((60_000, 8), dtype=bool)
    np.put_along_axis(true, rng.random(true.shape).argsort(axis=1)[:, :3], values=True, axis=1)
    before = true ^ (rng.random(true.shape) < 0.05)
    after = before.copy()
    for row in np.flatnonzero(rng.random(len(true)) < 0.0025):
        lost, others = np.flatnonzero(true[row] & before[row]), np.flatnonzero(~before[row])
        after[row, lost] = False
        after[row, others[: len(lost) * exchanged]] = True
    values, counts = metrics.f1_drop_parts(true, before, after)
    limit = float(values @ counts / counts.sum())
    wrong = 0
    for _ in range(400):
        rows = rng.integers(0, len(true), 600)
        wrong += bounds.at_most(*metrics.f1_drop_parts(true[rows], before[rows], after[rows]), CONFIDENCE) <= limit
    print(
        f"\n600 documents of 3 of 8 labels, {'exchanged' if exchanged else 'lost'}, drop {limit:.4f}: {wrong / 400:.1%}"
    )
    assert wrong / 400 <= 1 - CONFIDENCE


def test_the_point_is_the_drop_and_the_interval_its_bound() -> None:
    assert guard.figure(0.01, 0.02, "point") == 0.01
    assert guard.figure(0.01, 0.02, "interval") == 0.02


@pytest.mark.parametrize("documents", [500, *(pytest.param(count, marks=pytest.mark.slow) for count in (100, 2_000))])
@pytest.mark.parametrize(
    ("limit", "flips"),
    [(0.01, 0.01), (0.01, 0.02), (0.01, 0.06), (0.05, 0.05), (0.05, 0.1), (0.005, 0.005)],
)
def test_a_drop_at_the_limit_is_surely_within_in_5_percent_at_most(limit: float, flips: float, documents: int) -> None:
    """For one look of 95 %, and for those of 1 in 6 and 1 in 30 of the error."""
    drawn = np.random.default_rng(1).multinomial(documents, chances(limit, flips), size=20_000)
    kinds, times = np.unique(drawn, axis=0, return_counts=True)
    for share in (1, 6, 30):
        confidence = bonferroni(CONFIDENCE, share)
        within = [bounds.at_most(KINDS, counts.astype(float), confidence) <= limit for counts in kinds]
        wrong = float(times[within].sum()) / 20_000
        print(f"\n{documents} documents, {flips:.1%} flip, drop and limit {limit}: 1/{share} of 5 %: {wrong:.2%} wrong")
        assert wrong <= (1 - confidence) * 1.1 + 1e-4


def population(labels: int, lost: float, gained: float) -> list[npt.NDArray[np.bool_]]:
    """Return what is true, and predicted before and after, of many documents; 85 % were right."""
    rng = np.random.default_rng(labels)
    true = rng.choice(labels, 100_000, p=np.arange(1, labels + 1) / sum(range(labels + 1)))
    before = np.where(rng.random(len(true)) < 0.85, true, (true + 1) % labels)
    chance = rng.random(len(true))
    after = np.where((before == true) & (chance < lost), (true + 1) % labels, before)
    after = np.where((before != true) & (chance < gained), true, after)
    return [one_hot(side, labels) for side in (true, before, after)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "lost", "gained"), [(2, 0.012, 0.0), (2, 0.03, 0.08), (10, 0.012, 0.0), (10, 0.03, 0.08)]
)
def test_choices_at_the_limit_err_in_5_percent_at_most(labels: int, lost: float, gained: float) -> None:
    """One variant of weighted F1 whose true drop is the limit, at all looks of `choose`."""
    sides = population(labels, lost, gained)
    limit, rng, trials, found = accuracy.compare(*sides).drop, np.random.default_rng(0), 200, Counter[str]()
    counts = choosing.looks(2_000)
    to_hold, to_drop = bonferroni(CONFIDENCE, choosing.LOOKS), bonferroni(CONFIDENCE, len(counts))
    for _ in range(trials):
        documents = rng.integers(0, len(sides[0]), counts[-1])
        parts = [metrics.f1_drop_parts(*(side[documents[:count]] for side in sides)) for count in counts]
        found["holds"] += any(bounds.at_most(*one, to_hold) <= limit for one in parts[-choosing.LOOKS :])
        found["over"] += any(-bounds.at_most(-values, times, to_drop) > limit for values, times in parts)
        found["within"] += float(parts[-1][0] @ parts[-1][1]) <= limit * counts[-1]
    print(f"\n{labels} labels, limit {limit:.4f}: { {name: f'{times / trials:.1%}' for name, times in found.items()} }")
    assert found["holds"] <= 0.05 * trials
    assert found["over"] <= 0.05 * trials


@pytest.mark.slow
@pytest.mark.parametrize("common", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("flips", [0.01, 0.03])
def test_rescues_at_the_limit_err_in_5_percent_at_most(common: float, flips: float) -> None:
    """Every mix but the last drops by the limit; of what it flips, a share is what all of them flip."""
    rng, limit, layers, documents, trials = np.random.default_rng(0), 0.01, 36, 1_000, 200
    confidence = bonferroni(CONFIDENCE, judging.LOOKS)

    def rescued() -> bool:
        by_all = rng.choice(KINDS, documents, p=chances(limit, flips))
        own = rng.choice(KINDS, (layers, documents), p=chances(limit, flips))
        mixes = np.where(rng.random((1, documents)) < common, by_all, own)
        mixes = np.vstack([mixes, np.zeros(documents)])

        def holds(kept: int) -> bool:
            counts = (mixes[kept][:, None] == KINDS).sum(axis=0).astype(float)
            return bounds.at_most(KINDS, counts, confidence) <= limit

        return holds(0) or (search.fewest(layers, holds) or layers) < layers

    wrong = sum(rescued() for _ in range(trials)) / trials
    print(f"\n{flips:.0%} flip, {common:.0%} of them by all mixes: a mix at the limit is chosen in {wrong:.1%}")
    assert wrong <= 0.05
