"""Scores, their bounds and what is recorded of answers, against other libraries, brute force and simulation."""

import itertools
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from qbert.inputs import bounds, labels, metrics
from qbert.inputs.dataset import Dataset
from qbert.inputs.metrics import CORRELATION, F1_OF_ONE, RANKING, Ranked

Floats = npt.NDArray[np.float64]
numbers = st.lists(st.tuples(*[st.integers(-3, 3).map(float)] * 3), min_size=2, max_size=30)


@st.composite
def ranked(draw: st.DrawFn) -> tuple[Ranked, Floats, Floats]:
    """Queries of several sizes, in any order of rows, with ties of relevance and of outputs."""
    rows = draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 4), st.integers(0, 4)), min_size=4)
    )
    rows += [(9, 0, 1, 2), (9, 1, 2, 1)]  # one query at least can be ranked
    query, relevance, before, after = np.array(rows, dtype=float).T
    return Ranked(relevance, pd.factorize(query)[0]), before, after


def mean_over_orders(score: object, relevance: Floats, outputs: Floats) -> float:
    """The mean of `score`, of relevances best first, over all orders of what has the same output."""
    groups = [np.flatnonzero(outputs == output) for output in sorted(set(outputs), reverse=True)]
    orders = itertools.product(*(itertools.permutations(group) for group in groups))
    return float(np.mean([score(relevance[list(itertools.chain(*order))]) for order in orders]))  # type: ignore[operator]


def ndcg(relevance: Floats) -> float:
    """Järvelin and Kekäläinen 2002, with gains as they are and the logarithm to base 2 of the rank and one."""
    gains, best = (
        one[:10] @ (1 / np.log2(np.arange(2, 2 + min(10, len(one))))) for one in (relevance, np.sort(relevance)[::-1])
    )
    return float(gains / best)


def reciprocal(relevance: Floats) -> float:
    first = np.flatnonzero(relevance[:10] > 0)
    return 1 / (1 + float(first[0])) if len(first) else 0.0


@pytest.mark.parametrize("seed", range(6))
def test_ties_share_what_their_orders_would_score_on_average(seed: int) -> None:
    rng = np.random.default_rng(seed)
    relevance, outputs = rng.integers(0, 3, 7).astype(float), rng.integers(0, 3, 7).astype(float)
    relevance[0] = 2.0 if np.ptp(relevance) == 0 else relevance[0]
    truth = Ranked(relevance, np.zeros(7, dtype=np.intp))
    assert RANKING.score(truth, outputs) == pytest.approx(mean_over_orders(ndcg, relevance, outputs))
    found = metrics.reciprocal_rank(relevance > 0, outputs)
    assert found == pytest.approx(mean_over_orders(reciprocal, relevance, outputs))


def test_only_the_first_ten_count() -> None:
    outputs = -np.arange(12.0)
    for place, rank in ((0, 1.0), (9, 0.1), (10, 0.0)):
        relevant = np.arange(12) == place
        assert metrics.reciprocal_rank(relevant, outputs) == pytest.approx(rank)
        assert RANKING.score(Ranked(relevant.astype(float), np.zeros(12, dtype=np.intp)), outputs) == pytest.approx(
            1 / np.log2(place + 2) if place < 10 else 0.0
        )
    tied = np.zeros(20)
    assert metrics.reciprocal_rank(np.arange(20) == 0, tied) == pytest.approx(
        sum(1 / rank for rank in range(1, 11)) / 20
    )


@settings(max_examples=30)
@given(ranked())
def test_a_ranking_s_drop_is_the_mean_of_its_queries(drawn: tuple[Ranked, Floats, Floats]) -> None:
    truth, before, after = drawn
    paired, figures = RANKING.paired(*drawn), RANKING.figures(*drawn)
    assert paired.drop == pytest.approx(RANKING.score(truth, before) - RANKING.score(truth, after), abs=1e-12)
    assert paired.at_least(0.95) <= paired.drop <= paired.at_most(0.95)
    assert 0 <= figures["flips"] <= figures["queries"] == len(truth.judged())
    assert RANKING.figures(truth, before, before)["flips"] == 0


@settings(max_examples=30)
@given(ranked())
def test_the_order_of_rows_changes_no_score(drawn: tuple[Ranked, Floats, Floats]) -> None:
    truth, before, after = drawn
    order = np.random.default_rng(0).permutation(len(before))
    other = Ranked(truth.relevance[order], truth.query[order])
    assert RANKING.score(other, after[order]) == pytest.approx(RANKING.score(truth, after))
    assert RANKING.paired(other, before[order], after[order]).drop == pytest.approx(RANKING.paired(*drawn).drop)


@given(numbers)
def test_correlations_are_scipys(rows: list[tuple[float, float, float]]) -> None:
    truth, before, after = np.array(rows).T
    constant = 0.0 in map(np.ptp, (truth, after))
    score, figures = CORRELATION.score(truth, after), CORRELATION.figures(truth, before, after)
    assert score == pytest.approx(0.0 if constant else scipy_stats.pearsonr(truth, after).statistic, abs=1e-9)
    assert figures["spearman"] == pytest.approx(
        0.0 if constant else scipy_stats.spearmanr(truth, after).statistic, abs=1e-9
    )
    drop = CORRELATION.score(truth, before) - score
    assert CORRELATION.paired(truth, before, after).drop == pytest.approx(drop, abs=1e-6)


def test_scale_and_offset_of_outputs_change_no_correlation() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=50)
    outputs = truth + rng.normal(size=50)
    moved = CORRELATION.paired(truth, outputs, 1e6 + 1e-3 * outputs)
    assert moved.drop == pytest.approx(0, abs=1e-8)
    assert moved.at_most(0.95) == pytest.approx(0, abs=1e-8)


def population(size: int, noise: float) -> list[Floats]:
    """Labels, and outputs before and after, which are less exact and noisier where they are large."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=size)
    before = 0.85 * truth + 0.53 * rng.normal(size=size)
    after = before * (1 - 0.3 * noise) + noise * rng.normal(size=size) * (1 + 0.5 * np.abs(before))
    return [truth, before, after]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "noise", "least"),
    [(300, 0.2, 0.92), (100, 0.02, 0.91)],
)
def test_the_interval_of_a_correlation_s_drop_covers_it(rows: int, noise: float, least: float) -> None:
    sides = population(400_000, noise)
    truth = CORRELATION.score(sides[0], sides[1]) - CORRELATION.score(sides[0], sides[2])
    rng, trials, held = np.random.default_rng(0), 150, 0
    for _ in range(trials):
        drawn = rng.integers(0, len(sides[0]), rows)
        paired = CORRELATION.paired(*(side[drawn] for side in sides))
        held += paired.at_least(0.975) <= truth <= paired.at_most(0.975)
    print(f"\n{rows} rows, noise {noise}: the interval holds the drop of {truth:.4f} in {held / trials:.1%}")
    assert held / trials >= least


@pytest.mark.parametrize(
    "changed", [0.01, pytest.param(0.1, marks=pytest.mark.slow), pytest.param(0.4, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "queries", [30, pytest.param(100, marks=pytest.mark.slow), pytest.param(500, marks=pytest.mark.slow)]
)
def test_a_ranking_s_drop_is_surely_no_more_in_5_percent_at_most(changed: float, queries: int) -> None:
    rng, trials = np.random.default_rng(0), 200
    drops = np.where(rng.random(100_000) < changed, rng.uniform(-0.15, 0.4, 100_000), 0.0)
    truth, wrong, outside = float(drops.mean()), 0, 0
    for _ in range(trials):
        paired = bounds.ByUnit(rng.choice(drops, queries), 0.7)
        wrong += paired.at_most(0.95) < truth
        outside += not paired.at_least(0.975) <= truth <= paired.at_most(0.975)
    print(f"\n{queries} queries, {changed:.0%} changed: {wrong / trials:.1%} wrong, {outside / trials:.1%} outside")
    assert wrong / trials <= 0.065
    assert outside / trials <= 0.065


def test_few_queries_without_a_change_prove_little() -> None:
    few, many = (bounds.ByUnit(np.zeros(count), 0.7).at_most(0.95) for count in (10, 1_000))
    assert few > 0.1
    assert many < 0.003


PAIRS = pd.DataFrame(
    {"query": ["a", "a", "b", "b", "c"], "text": list("aabbc"), "text_pair": list("vwxyz"), "label": [1.0, 0, 0, 2, 1]}
)
RELEVANCE = Dataset(Path("pairs"), (), PAIRS, PAIRS, "")


def test_what_is_recorded_of_a_ranking_is_read_again() -> None:
    truth = RANKING.truth(RELEVANCE, PAIRS)
    before, after = (np.array([one], dtype=np.float32).T for one in ([3, 1, 0, 2, 0], [0, 1, 0, 2, 0]))
    records = [json.loads(json.dumps(RANKING.record(truth, logits))) for logits in (before, after)]
    assert metrics.of_records(*records) == RANKING
    again, *answers = RANKING.read(*records)
    assert (again.relevance == truth.relevance).all()
    assert (again.query == truth.query).all()
    assert [answer.tolist() for answer in answers] == [before[:, 0].tolist(), after[:, 0].tolist()]
    assert RANKING.in_words(records[0]) == [(0, "1 2"), (2, "2 1")], "query c cannot be ranked"
    (flip,) = RANKING.flipped(RELEVANCE, PAIRS, before, after)
    assert (flip["row"], flip["label"], flip["baseline"], flip["variant"]) == (0, "0", "0 1", "1 0")
    assert (flip["baseline_margin"], flip["variant_margin"], flip["text"]) == (2.0, 1.0, "a: a")


def test_a_named_activation_is_part_of_what_is_recorded() -> None:
    logits = np.array([[0.0], [2.0]], dtype=np.float32)
    record = metrics.Correlation("sigmoid").record(np.array([0.0, 1.0]), logits)
    _, before, _ = CORRELATION.read(record, record)
    assert before == pytest.approx([0.5, 1 / (1 + np.exp(-2))])


def test_a_look_ends_with_a_whole_query() -> None:
    truth = RANKING.truth(RELEVANCE, PAIRS)
    assert [RANKING.whole(truth, count) for count in (1, 2, 3, 4, 5, 9)] == [2, 2, 4, 4, 5, 5]
    assert F1_OF_ONE.whole(None, 3) == 3


@given(st.sampled_from(list(metrics.BY_KEY)), st.sets(st.sampled_from(list(metrics.NAMES))))
def test_figures_have_their_names_outside_and_ours_inside(key: str, names: set[str]) -> None:
    figures = {"metric": key, "score": 0.5, "variant": "v"} | dict.fromkeys(names, 1)
    outside = metrics.own_names(figures)
    assert outside[key] == figures["score"]
    assert metrics.common_names(outside) == figures
    assert metrics.own_names({"variant": "v"}) == metrics.common_names({"variant": "v"}) == {"variant": "v"}


def test_outputs_of_one_number_are_activated() -> None:
    logits = np.array([[-1000.0], [0.0], [1000.0]])
    assert labels.activated(logits, "sigmoid")[:, 0].tolist() == [0.0, 0.5, 1.0]
    assert labels.activated(logits, "tanh")[:, 0].tolist() == [-1.0, 0.0, 1.0]
    assert labels.activated(logits, labels.IDENTITY) is logits


@pytest.mark.parametrize("relevance", [[], [0.0, 0.0], [1.0]])
def test_nothing_is_sure_where_no_query_can_be_ranked(relevance: list[float]) -> None:
    truth, outputs = Ranked(np.array(relevance), np.zeros(len(relevance), dtype=np.intp)), np.zeros(len(relevance))
    assert RANKING.score(truth, outputs) == 0
    assert RANKING.figures(truth, outputs, outputs)["queries"] == 0
    paired = RANKING.paired(truth, outputs, outputs)
    assert (paired.drop, paired.at_most(0.95), paired.at_least(0.95)) == (0, 1, -1)


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_few_rows_are_sure_of_nothing(rows: int) -> None:
    rng = np.random.default_rng(0)
    paired = CORRELATION.paired(*rng.normal(size=(3, rows)))
    assert paired.at_most(1 - 1e-9) == 2
    assert paired.at_least(1 - 1e-9) == -2


def test_a_perfect_ranking_is_1_and_no_more() -> None:
    for seed in range(40):
        relevance = np.random.default_rng(seed).integers(0, 4, 12).astype(float)
        truth = Ranked(relevance, np.repeat([0, 1], 6))
        assert RANKING.score(truth, relevance) <= 1
