"""The judge is checked against scikit-learn, against published cases, and by simulation."""

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_arrays
from sklearn.metrics import f1_score

from qbert import variants
from qbert.inputs import labels, metrics
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.inputs.labels import MULTI_LABEL, SINGLE_LABEL, one_hot
from qbert.measure import accuracy

Ids = npt.NDArray[np.int64]
Three = tuple[labels.Indicators, labels.Indicators, labels.Indicators]
"""Which labels the documents have, and which baseline and variant predict."""


@st.composite
def of_one_label(draw: st.DrawFn) -> Three:
    num_labels = draw(st.integers(2, 6))
    ids = st.integers(0, num_labels - 1)
    rows = draw(st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=40))
    true, baseline, variant = (labels.one_hot(column, num_labels) for column in np.array(rows).T)
    return true, baseline, variant


@st.composite
def of_several_labels(draw: st.DrawFn) -> Three:
    num_labels = draw(st.integers(2, 6))
    row = st.lists(st.booleans(), min_size=num_labels, max_size=num_labels)
    rows = draw(st.lists(st.tuples(row, row, row), min_size=1, max_size=40))
    true, baseline, variant = np.array(rows).swapaxes(0, 1)
    return true, baseline, variant


predictions = of_one_label() | of_several_labels()


@given(predictions)
def test_parts_of_the_drop_add_up_to_it(drawn: Three) -> None:
    values, counts = metrics.f1_drop_parts(*drawn)
    assert values @ counts / len(drawn[0]) == pytest.approx(accuracy.compare(*drawn).drop, abs=1e-12)


@given(of_several_labels())
def test_f1_of_several_labels_is_scikit_learns_weighted_f1(drawn: Three) -> None:
    true, baseline, variant = drawn
    comparison = accuracy.compare(true, baseline, variant, metric=metrics.F1_OF_SEVERAL)
    assert comparison.score == pytest.approx(f1_score(true, variant, average="weighted", zero_division=0))
    assert comparison.score_baseline == pytest.approx(f1_score(true, baseline, average="weighted", zero_division=0))
    assert comparison.label_flips == (baseline != variant).sum()


@given(of_one_label())
def test_f1_is_scikit_learns_weighted_f1(drawn: Three) -> None:
    labels, baseline, variant = (indicators.argmax(axis=1) for indicators in drawn)
    comparison = accuracy.compare(*drawn)
    assert comparison.score == pytest.approx(f1_score(labels, variant, average="weighted", zero_division=0))
    assert comparison.score_baseline == pytest.approx(f1_score(labels, baseline, average="weighted", zero_division=0))
    assert comparison.drop == pytest.approx(comparison.score_baseline - comparison.score)


@given(predictions)
def test_flips_count_what_differs(drawn: Three) -> None:
    labels, baseline, variant = ([tuple(row) for row in indicators] for indicators in drawn)
    comparison = accuracy.compare(*drawn)
    assert comparison.flips == sum(before != after for before, after in zip(baseline, variant, strict=True))
    right = sum(map(tuple.__eq__, variant, labels)) - sum(map(tuple.__eq__, baseline, labels))
    assert comparison.gained - comparison.lost == right
    assert 0 <= comparison.mcnemar_p <= 1
    assert comparison.drop_low <= comparison.drop_high


@settings(max_examples=20)
@given(predictions, st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_matter(drawn: Three, random: object) -> None:
    order = np.random.default_rng(random.randrange(2**32)).permutation(len(drawn[0]))  # type: ignore[attr-defined]
    assert accuracy.compare(*drawn) == accuracy.compare(*(indicators[order] for indicators in drawn))


def outcome(both: int, lost: int, gained: int, neither: int) -> accuracy.Comparison:
    """Two labels, 0 the true one throughout but for as many documents of label 1 that both get right."""
    labels = np.zeros(both + lost + gained + neither + both, dtype=np.int64)
    labels[-both:] = 1
    baseline = np.r_[np.zeros(both), np.zeros(lost), np.ones(gained), np.ones(neither), np.ones(both)].astype(np.int64)
    variant = np.r_[np.zeros(both), np.ones(lost), np.zeros(gained), np.ones(neither), np.ones(both)].astype(np.int64)
    return accuracy.compare(*(one_hot(ids, 2) for ids in (labels, baseline, variant)))


@pytest.mark.parametrize(
    ("lost", "gained", "p"), [(1, 7, 0.0703), (7, 1, 0.0703), (10, 0, 0.00195), (0, 0, 1.0), (3, 3, 1.0)]
)
def test_mcnemar_is_exact(lost: int, gained: int, p: float) -> None:
    """Doubled binomial tails; 1 against 7 is the airway hyper-responsiveness example of Fagerland et al. 2013."""
    assert outcome(50, lost, gained, 5).mcnemar_p == pytest.approx(p, abs=5e-5)


def test_the_published_test_set_shows_a_drop_of_1_6_points_in_four_of_five() -> None:
    assert outcome(240, 0, 0, 15).documents == 495
    assert outcome(240, 0, 0, 15).visible_drop == pytest.approx(0.016, abs=5e-4)


def test_no_flip_is_no_proof_of_no_drop() -> None:
    comparison = outcome(240, 0, 0, 20)
    assert comparison.drop == 0
    assert comparison.drop_low < -0.003
    assert comparison.drop_high > 0.003


@pytest.mark.parametrize(
    ("lost", "gained"),
    [
        (0.002, 0.002),
        (0.01, 0.0),
        *(pytest.param(*rates, marks=pytest.mark.slow) for rates in ((0.0, 0.0), (0.02, 0.01), (0.06, 0.03))),
    ],
)
@pytest.mark.parametrize("documents", [125, pytest.param(500, marks=pytest.mark.slow)])
def test_the_interval_covers_the_true_drop(lost: float, gained: float, documents: int) -> None:
    """By simulation: at least 93 % of 95 % intervals hold the drop of the population they were drawn from."""
    rng = np.random.default_rng(1)
    trials, classes, right = 300, 5, 0.9
    outcomes = [right - lost, lost, gained, 1 - right - gained]  # both right, lost, gained, both wrong

    def draw(size: int) -> tuple[Ids, Ids, Ids]:
        labels = rng.integers(classes, size=size)
        wrong = (labels + rng.integers(1, classes, size=size)) % classes
        kind = rng.choice(4, p=outcomes, size=size)
        return (
            labels,
            np.where((kind == 0) | (kind == 1), labels, wrong),
            np.where((kind == 0) | (kind == 2), labels, wrong),
        )

    labels, baseline, variant = draw(2_000_000)
    truth = f1_score(labels, baseline, average="weighted") - f1_score(labels, variant, average="weighted")
    hits = 0
    for _ in range(trials):
        found = accuracy.compare(*(one_hot(ids, classes) for ids in draw(documents)))
        hits += found.drop_low <= truth <= found.drop_high
    assert hits / trials >= 0.93


@pytest.mark.exhaustive
@pytest.mark.parametrize(("missed", "false"), [(0.0, 0.0), (0.002, 0.0005), (0.01, 0.002), (0.05, 0.01), (0.0, 0.02)])
@pytest.mark.parametrize("documents", [125, 500])
def test_the_interval_covers_the_true_drop_of_several_labels(missed: float, false: float, documents: int) -> None:
    """By simulation: at least 93 % of 95 % intervals hold the drop; a variant misses and invents labels by chance.

    Six labels from rare to common come together: a document has a topic, which makes its labels likelier.
    """
    rng = np.random.default_rng(1)
    trials, share = 400, np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5])

    def draw(size: int) -> Three:
        likely = np.where(rng.random((size, 1)) < 0.3, 1.8, 0.66)
        true = rng.random((size, 6)) < share * likely
        baseline = np.where(true, rng.random((size, 6)) < 0.85, rng.random((size, 6)) < 0.04)
        hard = np.where(rng.random((size, 1)) < 0.2, 4.0, 0.25)  # what goes wrong, goes wrong in the same documents
        variant = np.where(baseline, rng.random((size, 6)) >= missed * hard, rng.random((size, 6)) < false * hard)
        return true, baseline, variant

    true, baseline, variant = draw(2_000_000)
    truth = f1_score(true, baseline, average="weighted") - f1_score(true, variant, average="weighted")
    hits = 0
    for _ in range(trials):
        found = accuracy.compare(*draw(documents))
        hits += found.drop_low <= truth <= found.drop_high
    assert hits / trials >= 0.93


def test_the_interval_narrows_as_documents_grow() -> None:
    few, many = outcome(50, 4, 2, 4), outcome(500, 40, 20, 40)
    assert many.drop_high - many.drop_low < 0.5 * (few.drop_high - few.drop_low)


def test_a_pass_classifies_each_document_as_it_would_be_alone(trained: Checkpoint, news: Dataset) -> None:
    classifier = variants.build(variants.VARIANTS["int8-dynamic-onednn"], trained)
    seen: list[int] = []
    logits, seconds = accuracy.run(classifier, trained.encoder, news.test, 64, seen.append)
    assert logits.shape == (len(news.test), 5)
    assert (seconds > 0).all()
    assert seen == list(range(1, len(news.test) + 1))
    last = classifier(trained.encoder(news.test["text"].iloc[-1], max_length=64))
    assert np.array_equal(logits[-1:], last)


DOCUMENTS = pd.DataFrame({"text": ["甲\n文", "乙文", "丙文"], "label": [0, 1, 0]}, index=[4, 7, 9])
DATASET = Dataset(Path("letters"), ("a", "b"), DOCUMENTS, DOCUMENTS, "")
BEFORE = np.array([[3, 1], [0, 2], [1, 0]], dtype=np.float32)
AFTER = np.array([[1, 2], [0, 2], [1, 0]], dtype=np.float32)


def test_flipped_documents_keep_their_row_labels_margins_and_text() -> None:
    (flip,) = metrics.F1_OF_ONE.flipped(DATASET, DOCUMENTS, BEFORE, AFTER)
    assert flip == {
        "row": 4,
        "label": "a",
        "baseline": "a",
        "baseline_margin": 2.0,
        "variant": "b",
        "variant_margin": 1.0,
        "text": "甲\n文",
    }


def test_flipped_documents_of_several_labels_name_them_all_and_how_near_the_threshold_one_is() -> None:
    documents = pd.DataFrame({"text": ["甲文", "乙文"], "labels": [(0, 1), ()]})
    several = Dataset(Path("letters"), ("a", "b"), documents, documents, "")
    before = np.array([[3, 1], [-2, -2]], dtype=np.float32)
    after = np.array([[1, -0.5], [-2, 0]], dtype=np.float32)
    flips = metrics.F1_OF_SEVERAL.flipped(several, documents, before, after)
    assert [(flip["label"], flip["baseline"], flip["variant"]) for flip in flips] == [
        ("a|b", "a|b", "a"),
        ("", "", "b"),
    ]
    assert [(flip["baseline_margin"], flip["variant_margin"]) for flip in flips] == [(1.0, 0.5), (2.0, 0.0)]


def test_the_guard_counts_flipped_labels_where_a_document_has_several() -> None:
    true = np.array([[True, True], [False, True]])
    comparison = accuracy.compare(true, true, ~true, metric=metrics.F1_OF_SEVERAL)
    assert "2 of 2 documents flipped, 4 labels" in accuracy.over_limit(
        comparison, [], limit=0.1, by="point", what="cell"
    )


def test_a_label_is_predicted_where_its_score_is_at_least_one_half() -> None:
    logits = np.array([[0.0, -1e-6, 1e-6, -3.0]], dtype=np.float32)
    found = labels.predicted(logits, MULTI_LABEL)
    assert found.tolist() == (labels.scores(logits, MULTI_LABEL) >= 0.5).tolist() == [[True, False, True, False]]
    assert labels.predicted(logits, SINGLE_LABEL).tolist() == [[False, False, True, False]]


def test_the_guard_speaks_only_over_the_limit_and_shows_figures_and_documents() -> None:
    predicted = (labels.predicted(logits, SINGLE_LABEL) for logits in (BEFORE, AFTER))
    comparison = accuracy.compare(DATASET.indicators(DOCUMENTS), *predicted)
    flips = metrics.F1_OF_ONE.flipped(DATASET, DOCUMENTS, BEFORE, AFTER)
    limits = {"limit": comparison.drop, "by": "point", "what": "cell"}
    assert accuracy.over_limit(comparison, flips, **limits) == ""
    message = accuracy.over_limit(comparison, flips, **(limits | {"limit": 0.1}))
    assert f"cell: F1 drop {comparison.drop:+.4f} is over the limit 0.1000" in message
    assert "1 of 3 documents flipped" in message
    assert "document 4: a -> b, is a: 甲 文" in message
    by_interval = accuracy.over_limit(comparison, flips, **(limits | {"by": "interval"}))
    assert f"the F1 drop is surely no more than {comparison.drop_at_most:+.4f}, which is over" in by_interval
    many = accuracy.over_limit(comparison, flips * 9, **(limits | {"limit": 0.1}))
    assert "and 4 more" in many


def test_more_documents_are_advised_only_where_they_can_help() -> None:
    before = labels.predicted(BEFORE, SINGLE_LABEL)
    same = accuracy.compare(DATASET.indicators(DOCUMENTS), before, before)
    some, none = (accuracy.over_limit(same, [], limit=limit, by="interval", what="cell") for limit in (0.01, 0.0))
    assert "more test documents would show it to be" in some
    assert "to be surely so needs a limit above 0" in none
    assert "more test documents" not in none


def test_a_comparison_can_be_saved() -> None:
    import json

    assert json.loads(json.dumps(dataclasses.asdict(outcome(10, 1, 1, 1))))["flips"] == 2


@given(hypothesis_arrays.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 12))))
def test_packed_labels_are_what_they_were(indicators: np.ndarray) -> None:
    assert (labels.unpacked(labels.packed(indicators), indicators.shape[1]) == indicators).all()
