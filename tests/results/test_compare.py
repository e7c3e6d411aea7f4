"""Intervals against known cases and by simulation; verdicts; what can be compared; saved runs against each other."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from qbert.inputs import metrics
from qbert.measure import stats
from qbert.results import compare

finite = st.floats(-1, 1, allow_nan=False).map(lambda value: round(value, 6))


@given(st.lists(finite, min_size=6, max_size=25, unique=True), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_interval_is_what_the_signed_rank_test_accepts(values: list[float], confidence: float) -> None:
    middle, low, high = stats.signed_rank_interval(values, confidence)
    assert low <= middle <= high
    assert (len(values) < stats.min_sample_size(confidence)) == math.isinf(low)
    if math.isinf(low):
        assert 2 * 0.5 ** len(values) > 1 - confidence
        return
    for end, outwards in ((low, -1), (high, 1)):
        beyond, within = (np.asarray(values) - (end + side * outwards * 1e-9) for side in (1, -1))
        assert scipy_stats.wilcoxon(beyond, method="exact").pvalue <= 1 - confidence + 1e-12
        assert scipy_stats.wilcoxon(within, method="exact").pvalue > 1 - confidence - 1e-12 or low == high


def test_the_interval_of_a_published_case() -> None:
    # Hollander, Wolfe and Chicken, example 3.3 (depression scores of nine patients): 96.1 % interval -0.786 to -0.010,
    # the 6th and the 40th of 45 averages, the least that has 95 %.
    before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    middle, low, high = stats.signed_rank_interval(np.subtract(after, before), 0.95)
    assert (round(middle, 3), round(low, 3), round(high, 3)) == (-0.46, -0.786, -0.010)


@pytest.mark.parametrize(("pairs", "finite_at_95"), [(1, False), (5, False), (6, True), (9, True)])
def test_few_pairs_have_no_interval(pairs: int, *, finite_at_95: bool) -> None:
    assert math.isfinite(stats.signed_rank_interval(np.arange(pairs) / 100, 0.95)[1]) == finite_at_95


@pytest.mark.parametrize(
    "draw",
    [
        lambda generator, size: generator.normal(0, 0.02, size),
        lambda generator, size: 0.01 * generator.standard_t(2, size),
        lambda generator, size: generator.choice([-0.02, 0.02], size) + generator.normal(0, 0.002, size),
    ],
    ids=["normal", "heavy tails", "two kinds of process"],
)
@pytest.mark.parametrize("pairs", [9, 16])
def test_the_interval_covers_what_it_claims(draw: Any, pairs: int) -> None:
    generator = np.random.default_rng(pairs)
    found = [stats.signed_rank_interval(draw(generator, pairs), 0.9) for _ in range(2000)]
    covered = np.mean([low <= 0 <= high for _, low, high in found])
    assert 0.9 - 0.02 < covered <= 0.97


def test_many_cells_hold_together() -> None:
    generator = np.random.default_rng(0)
    confidence = stats.bonferroni(0.95, 12)
    missed = 0
    for _ in range(300):
        intervals = [stats.signed_rank_interval(generator.normal(0, 0.02, 12), confidence) for _ in range(12)]
        missed += any(not low <= 0 <= high for _, low, high in intervals)
    assert missed / 300 < 0.05 + 0.03


def gated(generator: np.random.Generator, effect: float, spread: float, min_effect: float) -> str:
    """Add pairs as the gate does until the verdict of one of 12 cells is sure, 40 at most."""
    ratios: list[float] = []
    for _ in range(40):
        ratios.append(math.log1p(effect) + generator.normal(0, spread))
        verdict = stats.verdict(
            *stats.signed_rank_interval(ratios, stats.bonferroni(0.95, 12))[1:], min_effect=min_effect
        )
        if verdict != "inconclusive":
            return verdict
    return "inconclusive"


@pytest.mark.parametrize("spread", [0.006, 0.02])
def test_looking_after_every_pair_does_not_cry_wolf(spread: float) -> None:
    generator = np.random.default_rng(1)
    verdicts = [gated(generator, 0.0, spread, 0.025) for _ in range(300)]
    assert verdicts.count("slower") + verdicts.count("faster") <= 1
    assert verdicts.count("same") >= 285


def test_looking_after_every_pair_errs_seldom_even_at_the_bound() -> None:
    generator = np.random.default_rng(2)
    verdicts = [gated(generator, 0.025, 0.01, 0.025) for _ in range(300)]
    assert verdicts.count("slower") / 300 < 0.05


@pytest.mark.parametrize(("effect", "min_effect"), [(0.05, 0.025), (0.03, 0.01)])
def test_a_slowdown_is_found(effect: float, min_effect: float) -> None:
    generator = np.random.default_rng(3)
    verdicts = [gated(generator, effect, 0.019, min_effect) for _ in range(200)]
    assert verdicts.count("slower") >= 190


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.03, 0.05, "slower"),
        (0.02, 0.05, "inconclusive"),
        (-0.02, 0.02, "same"),
        (0.001, 0.02, "same"),
        (-0.05, -0.03, "faster"),
        (-0.05, -0.02, "inconclusive"),
        (-0.05, 0.05, "inconclusive"),
        (-math.inf, math.inf, "inconclusive"),
    ],
)
def test_a_verdict_needs_the_whole_interval_beyond_or_within(low: float, high: float, expected: str) -> None:
    assert stats.verdict(low, high, 0.025) == expected


@given(finite, finite, st.floats(0.001, 0.5))
def test_swapping_the_sides_swaps_the_verdict(one: float, other: float, min_effect: float) -> None:
    low, high = sorted((one, other))
    swapped = {"slower": "faster", "faster": "slower"}
    verdict = stats.verdict(low, high, min_effect)
    assert stats.verdict(-high, -low, min_effect) == swapped.get(verdict, verdict)


def test_of_hardware_what_both_know_has_to_agree() -> None:
    older, newer = {"hardware": {"family": 6, "model": 1}}, {"hardware": {"family": 6, "model": 1, "L3 unified": "32M"}}
    assert compare.differences(older, newer) == compare.differences({}, newer) == compare.differences(newer, {}) == []
    other = {"hardware": {"family": 6, "model": 2, "L3 unified": "16M"}}
    assert compare.differences(older, other) == ["hardware model: 1, 2"]
    assert compare.differences(newer, other) == ["hardware model: 1, 2", "hardware L3 unified: 32M, 16M"]
    assert compare.differences(newer, other, may_differ={"hardware"}) == []


def test_what_was_asked_about_may_differ() -> None:
    base, head = {"versions": {"torch": "1"}, "threads": 1}, {"versions": {"torch": "2"}, "threads": 1}
    assert compare.differences(base, head) == ["torch: 1, 2"]
    assert compare.differences(base, head, may_differ={"versions"}) == []
    assert compare.differences(base, head | {"threads": 2}, may_differ={"versions"}) == ["threads: 1, 2"]


IDENTITY = {"processor": "P", "instruction_sets": [], "checkpoint_sha256": "c", "versions": {"torch": "1"}}
KEY = ("m", 128, "fp32")


def runs(*medians: float, **figures: Any) -> pd.DataFrame:
    cell = {"model": "m", "max_length": 128, "variant": "fp32", "identity": IDENTITY} | metrics.common_names(figures)
    return pd.DataFrame([{"session": number} | cell | {"median_s": median} for number, median in enumerate(medians)])


def held(base: pd.DataFrame, head: pd.DataFrame, **options: Any) -> dict[str, Any]:
    (row,) = compare.runs(base, head, **({"spreads": {}} | options))
    return row


def test_one_run_a_side_tells_nothing_by_itself() -> None:
    row = held(runs(0.1), runs(0.2))
    assert (row["verdict"], row["change_low"], row["change_high"]) == ("inconclusive", None, None)
    assert row["change"] == pytest.approx(1)


def test_one_run_a_side_is_as_sure_as_the_history() -> None:
    assert held(runs(0.1), runs(0.11), spreads={KEY: (0.005, 20)})["verdict"] == "slower"
    assert held(runs(0.1), runs(0.1), spreads={KEY: (0.005, 20)})["verdict"] == "same"
    assert held(runs(0.1), runs(0.11), spreads={KEY: (0.03, 20)})["verdict"] == "inconclusive"
    elsewhere = {("another model", *KEY[1:]): (0.005, 20)}
    assert held(runs(0.1), runs(0.11), spreads=elsewhere)["verdict"] == "inconclusive"


def test_the_runs_of_a_session_are_one_value() -> None:
    base, head = runs(0.1, 0.11, 0.09, 0.1, session=3), runs(0.2, 0.21, 0.19, session=3)
    row = held(base, head)
    assert (row["verdict"], row["base_runs"], row["base_sessions"], row["head_sessions"]) == ("inconclusive", 4, 1, 1)
    two = pd.concat([base, runs(0.102, session=5)])
    by_hand = held(runs(float(np.exp(np.log(base["median_s"]).mean())), 0.102), head)
    assert held(two, head)["change_low"] == pytest.approx(by_hand["change_low"])


def test_several_runs_are_students_interval() -> None:
    base, head = [0.100, 0.101, 0.099, 0.1005], [0.110, 0.111, 0.109, 0.1095, 0.1102]
    row = held(runs(*base), runs(*head))
    expected = scipy_stats.ttest_ind(np.log(head), np.log(base)).confidence_interval(0.95)
    assert (row["change_low"], row["change_high"]) == pytest.approx(
        (math.expm1(expected.low), math.expm1(expected.high))
    )
    assert row["verdict"] == "slower"


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [(1, 4), *(pytest.param(equal, marks=pytest.mark.slow) for equal in ((1, 1), (3, 3)))]
)
def test_the_interval_of_saved_runs_covers_what_it_claims(sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(4)
    covered = []
    for _ in range(1500):
        known = (float(np.std(generator.normal(0, 0.02, 8), ddof=1)), 7)
        base, head = (runs(*np.exp(generator.normal(-2, 0.02, size))) for size in sizes)
        row = held(base, head, spreads={KEY: known})
        covered.append(row["change_low"] <= 0 <= row["change_high"])
    assert 0.93 < np.mean(covered) < 0.97


def test_other_subjects_are_not_comparable_unless_asked() -> None:
    other = runs(0.1, identity=IDENTITY | {"versions": {"torch": "2"}})
    row = held(runs(0.1), other)
    assert (row["verdict"], row["differs"]) == ("not comparable", ["torch: 1, 2"])
    assert held(runs(0.1), other, across=["versions"])["verdict"] == "inconclusive"


def test_runs_of_one_side_have_to_be_of_one_subject() -> None:
    mixed = pd.concat([runs(0.1), runs(0.1, identity=IDENTITY | {"processor": "Q"})])
    assert held(mixed, runs(0.1))["differs"] == ["processor: P, Q"]


def test_cells_of_one_side_alone_are_named() -> None:
    rows = compare.runs(runs(0.1), runs(0.1, variant="bf16"), spreads={})
    assert [(row["variant"], row["differs"]) for row in rows] == [
        ("fp32", ["only base has it"]),
        ("bf16", ["only head has it"]),
    ]


def answers(predicted: str, labels: str = "01" * 100) -> dict[str, str]:
    return {"labels": " ".join(labels), "predicted": " ".join(predicted), "logits_sha256": predicted}


@pytest.mark.parametrize(
    ("base", "head", "verdict"),
    [
        ("01" * 100, "01" * 100, "same"),
        ("01" * 100, "10" * 20 + "01" * 80, "worse"),
        ("10" * 20 + "01" * 80, "01" * 100, "better"),
        ("01" * 100, "11" * 2 + "01" * 98, "inconclusive"),
    ],
)
def test_f1_is_held_by_the_answers_of_both_runs(base: str, head: str, verdict: str) -> None:
    f1 = held(*(runs(0.1, f1=0.9, answers=answers(one)) for one in (base, head)))["judged"]
    assert f1["drop_verdict"] == verdict
    assert f1["flips"] == sum(one != other for one, other in zip(base, head, strict=True))
    assert f1["drop"] == pytest.approx(f1["score_baseline"] - f1["score"])


def test_each_figure_is_of_the_newest_run_that_has_it() -> None:
    base = runs(0.1, f1=0.9, answers=answers("01" * 100), disk_bytes=5)
    day = pd.Timestamp("2026-11-01")
    judged = runs(0.1, f1=0.8, answers=answers("10" * 100), when=day)
    older = runs(0.1, f1=0.9, answers=answers("01" * 100), disk_bytes=7, when=day - pd.Timedelta(1, "D"))
    timed = runs(0.1, when=day + pd.Timedelta(1, "D"))
    for head in ([judged, timed, older], [timed, older, judged], [older, judged, timed]):
        row = held(base, pd.concat(head))
        assert row["judged"]["drop_verdict"] == "worse"
        assert (row["base_disk_bytes"], row["head_disk_bytes"], row["head_peak_rss_bytes"]) == (5, 7, None)


def test_f1_of_an_older_run_or_of_other_documents_is_not_decided() -> None:
    new = runs(0.1, f1=0.9, answers=answers("01" * 100))
    for other in (runs(0.1, f1=0.8), runs(0.1, f1=0.8, answers=answers("0000", "0000"))):
        f1 = held(new, other)["judged"]
        assert f1["drop_verdict"] == "inconclusive"
        assert f1["drop"] == pytest.approx(0.1)
