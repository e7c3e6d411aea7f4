"""The judge is checked against scikit-learn, against published cases, and by simulation."""

import dataclasses

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from qbert import evaluate, variants
from qbert.checkpoint import Checkpoint
from qbert.dataset import Dataset

Ids = npt.NDArray[np.int64]


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Ids, Ids, Ids, int]:
    num_labels = draw(st.integers(2, 6))
    ids = st.integers(0, num_labels - 1)
    rows = draw(st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=40))
    labels, baseline, variant = np.array(rows, dtype=np.int64).T
    return labels, baseline, variant, num_labels


@given(predictions())
def test_f1_is_scikit_learns_weighted_f1(drawn: tuple[Ids, Ids, Ids, int]) -> None:
    labels, baseline, variant, num_labels = drawn
    comparison = evaluate.compare(labels, baseline, variant, num_labels)
    assert comparison.f1 == pytest.approx(f1_score(labels, variant, average="weighted", zero_division=0))
    assert comparison.f1_baseline == pytest.approx(f1_score(labels, baseline, average="weighted", zero_division=0))
    assert comparison.f1_drop == pytest.approx(comparison.f1_baseline - comparison.f1)


@given(predictions())
def test_flips_count_what_differs(drawn: tuple[Ids, Ids, Ids, int]) -> None:
    labels, baseline, variant, num_labels = drawn
    comparison = evaluate.compare(labels, baseline, variant, num_labels)
    assert comparison.flips == sum(before != after for before, after in zip(baseline, variant, strict=True))
    right = (variant == labels).sum() - (baseline == labels).sum()
    assert comparison.gained - comparison.lost == right
    assert 0 <= comparison.mcnemar_p <= 1
    assert comparison.f1_drop_low <= comparison.f1_drop_high


@settings(max_examples=20)
@given(predictions(), st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_matter(drawn: tuple[Ids, Ids, Ids, int], random: object) -> None:
    labels, baseline, variant, num_labels = drawn
    order = np.random.default_rng(random.randrange(2**32)).permutation(len(labels))  # type: ignore[attr-defined]
    assert evaluate.compare(labels, baseline, variant, num_labels) == evaluate.compare(
        labels[order], baseline[order], variant[order], num_labels
    )


def outcome(both: int, lost: int, gained: int, neither: int) -> evaluate.Comparison:
    """Two labels, 0 the true one throughout but for as many documents of label 1 that both get right."""
    labels = np.zeros(both + lost + gained + neither + both, dtype=np.int64)
    labels[-both:] = 1
    baseline = np.r_[np.zeros(both), np.zeros(lost), np.ones(gained), np.ones(neither), np.ones(both)].astype(np.int64)
    variant = np.r_[np.zeros(both), np.ones(lost), np.zeros(gained), np.ones(neither), np.ones(both)].astype(np.int64)
    return evaluate.compare(labels, baseline, variant, 2)


@pytest.mark.parametrize(
    ("lost", "gained", "p"), [(1, 7, 0.0703), (7, 1, 0.0703), (10, 0, 0.00195), (0, 0, 1.0), (3, 3, 1.0)]
)
def test_mcnemar_is_exact(lost: int, gained: int, p: float) -> None:
    """Doubled binomial tails; 1 against 7 is the airway hyper-responsiveness example of Fagerland et al. 2013."""
    assert outcome(50, lost, gained, 5).mcnemar_p == pytest.approx(p, abs=5e-5)


def test_the_published_test_set_cannot_see_less_than_1_2_points() -> None:
    assert outcome(240, 0, 0, 15).documents == 495
    assert outcome(240, 0, 0, 15).smallest_visible_drop == pytest.approx(0.0121, abs=1e-4)


def test_no_flip_is_no_proof_of_no_drop() -> None:
    comparison = outcome(240, 0, 0, 20)
    assert comparison.f1_drop == 0
    assert comparison.f1_drop_low < -0.003
    assert comparison.f1_drop_high > 0.003


@pytest.mark.parametrize(("lost", "gained"), [(0.0, 0.0), (0.002, 0.002), (0.01, 0.0), (0.02, 0.01), (0.06, 0.03)])
@pytest.mark.parametrize("documents", [125, 500])
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
        low, high = evaluate.f1_drop_interval(*draw(documents), classes)
        hits += low <= truth <= high
    assert hits / trials >= 0.93


def test_the_interval_narrows_as_documents_grow() -> None:
    few, many = outcome(50, 4, 2, 4), outcome(500, 40, 20, 40)
    assert many.f1_drop_high - many.f1_drop_low < 0.5 * (few.f1_drop_high - few.f1_drop_low)


def test_a_pass_classifies_each_document_as_it_would_be_alone(trained: Checkpoint, news: Dataset) -> None:
    classifier = variants.build(variants.VARIANTS["int8-dynamic-onednn"], trained)
    seen: list[int] = []
    logits, seconds = evaluate.run(classifier, trained.encoder, news.test, 64, seen.append)
    assert logits.shape == (len(news.test), 5)
    assert (seconds > 0).all()
    assert seen == list(range(1, len(news.test) + 1))
    last = classifier(trained.encoder(news.test["text"].iloc[-1], max_length=64))
    assert np.array_equal(logits[-1:], last)


DOCUMENTS = pd.DataFrame({"text": ["甲\n文", "乙文", "丙文"], "label": [0, 1, 0]}, index=[4, 7, 9])
BEFORE = np.array([[3, 1], [0, 2], [1, 0]], dtype=np.float32)
AFTER = np.array([[1, 2], [0, 2], [1, 0]], dtype=np.float32)


def test_flipped_documents_keep_their_row_labels_margins_and_text() -> None:
    (flip,) = evaluate.flipped(DOCUMENTS, BEFORE, AFTER, ("a", "b"))
    assert flip == {
        "row": 4,
        "label": "a",
        "baseline": "a",
        "baseline_margin": 2.0,
        "variant": "b",
        "variant_margin": 1.0,
        "text": "甲\n文",
    }


def test_the_guard_speaks_only_over_the_limit_and_shows_figures_and_documents() -> None:
    comparison = evaluate.compare(np.array([0, 1, 0]), BEFORE.argmax(1), AFTER.argmax(1), 2)
    flips = evaluate.flipped(DOCUMENTS, BEFORE, AFTER, ("a", "b"))
    limits = {"limit": comparison.f1_drop, "by": "point", "what": "cell"}
    assert evaluate.guard(comparison, flips, **limits) == ""
    message = evaluate.guard(comparison, flips, **(limits | {"limit": 0.1}))
    assert f"cell: F1 drop {comparison.f1_drop:+.4f} is over the limit 0.1000" in message
    assert "1 of 3 documents flipped" in message
    assert "document 4: a -> b, is a: 甲 文" in message
    by_interval = evaluate.guard(comparison, flips, **(limits | {"by": "interval"}))
    assert f"interval {comparison.f1_drop_high:+.4f} is over the limit" in by_interval
    many = evaluate.guard(comparison, flips * 9, **(limits | {"limit": 0.1}))
    assert "and 4 more" in many


def test_more_documents_are_advised_only_where_they_can_help() -> None:
    same = evaluate.compare(np.array([0, 1, 0]), BEFORE.argmax(1), BEFORE.argmax(1), 2)
    some, none = (evaluate.guard(same, [], limit=limit, by="interval", what="cell") for limit in (0.01, 0.0))
    assert "more test documents would narrow its interval" in some
    assert "its interval needs a limit above 0" in none
    assert "more test documents" not in none


def test_a_comparison_can_be_saved() -> None:
    import json

    assert json.loads(json.dumps(dataclasses.asdict(outcome(10, 1, 1, 1))))["flips"] == 2
