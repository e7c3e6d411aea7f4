"""Judge a variant by the test documents: F1, F1 drop with its interval, flips, and the power of the comparison."""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import optimize
from scipy import stats as scipy_stats

from qbert.inputs.dataset import Dataset, text_rows
from qbert.inputs.labels import MULTI_LABEL, Indicators, predicted, unpacked
from qbert.inputs.tokenizer import Encoder
from qbert.measure import guard, stats
from qbert.measure.stats import CONFIDENCE
from qbert.system.errors import CannotRunError
from qbert.system.machine import one_core
from qbert.system.terminal import counted

if TYPE_CHECKING:
    import pandas as pd

    from qbert.variants import Classifier

WARM_UP_DOCUMENTS = 10


@dataclass(frozen=True)
class Comparison:
    """A variant's predictions compared with the baseline's, for the same documents."""

    documents: int
    f1: float
    """Weighted F1 of the variant, 0 to 1."""
    f1_baseline: float
    f1_drop: float
    """`f1_baseline - f1`; positive is worse."""
    f1_drop_low: float
    """Lower end of the 95 % interval of `f1_drop`."""
    f1_drop_high: float
    f1_drop_at_most: float
    """What the true drop surely (95 %, one-sided) does not exceed."""
    flips: int
    """Documents whose predicted label, or set of labels, differs from the baseline's."""
    lost: int
    """Flips from right to wrong; with several labels, all have to be right."""
    gained: int
    """Flips from wrong to right."""
    mcnemar_p: float
    """Exact McNemar test of `lost` against `gained`."""
    visible_drop: float
    """The least true drop in accuracy that is significant (p < 0.05) with a chance of 80 % for these documents."""
    logit_error: float | None = None
    """Mean absolute difference of the logits from the baseline's; None without logits."""
    label_flips: int | None = None
    """Labels that only one of variant and baseline predicts, over all documents; only of multi-label models."""


def run(
    classifier: "Classifier",
    encoder: Encoder,
    documents: "pd.DataFrame",
    max_length: int,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Classify the documents one by one, as in serving.

    Returns:
        Logits `(documents, num_labels)`, and the seconds from text to logits of each document.
    """
    rows = text_rows(documents)
    with one_core():
        for text in rows[:WARM_UP_DOCUMENTS]:
            classifier(encoder(*text, max_length=max_length))
        return classify(classifier, encoder, rows, max_length, advance)


def classify(
    classifier: "Classifier",
    encoder: Encoder,
    rows: Sequence[tuple[str, ...]],
    max_length: int,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Classify the texts `rows` one by one, warmed up already; return what run returns."""
    logits, seconds = [], []
    for number, text in enumerate(rows, start=1):
        start = time.perf_counter()
        logits.append(classifier(encoder(*text, max_length=max_length)))
        seconds.append(time.perf_counter() - start)
        advance(number)
    return np.concatenate(logits), np.array(seconds)


def check_finite(logits: npt.NDArray[np.float32], what: str) -> None:
    """Raise CannotRunError if `logits` of `what`, a cell's or variant's name, contain nan or infinity."""
    if not np.isfinite(logits).all():
        raise CannotRunError(f"{what} answers with nan or infinity: leave the model or the variant out")


def percentiles(seconds: Sequence[float] | npt.NDArray[np.float64]) -> dict[str, float]:
    """Return `p50_s`, with at least 59 of `seconds` also `p95_s`, with at least 299 `p99_s`.

    Source: Hahn and Meeker 1991, "Statistical Intervals", section 5.3: the greatest of n values is an upper 95 % bound
    of the quantile q if 1 - q**n >= 0.95.
    """
    percents = [50, *(percent for percent in (95, 99) if 1 - (percent / 100) ** len(seconds) >= CONFIDENCE)]
    return {f"p{percent}_s": float(np.percentile(seconds, percent)) for percent in percents}


def compare(
    labels: Indicators,
    baseline: Indicators,
    variant: Indicators,
    *,
    multi_label: bool = False,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Compare the predictions of `baseline` and `variant`, `(documents, num_labels)`, with the true `labels`.

    The interval of the drop, and what it surely does not exceed, hold with `confidence`, and are from guard.at_most.

    Source: exact McNemar test: Fagerland, Lydersen and Laake 2013, "The McNemar test for binary
    matched-pairs data", section 3.
    """
    right_before, right_after = ((labels == predicted).all(axis=1) for predicted in (baseline, variant))
    lost = int((right_before & ~right_after).sum())
    gained = int((~right_before & right_after).sum())
    flips = int((baseline != variant).any(axis=1).sum())
    f1_baseline, f1 = weighted_f1(labels, baseline), weighted_f1(labels, variant)
    values, counts = f1_drop_parts(labels, baseline, variant)
    both_sides = (1 + confidence) / 2
    return Comparison(
        documents=len(labels),
        f1=f1,
        f1_baseline=f1_baseline,
        f1_drop=f1_baseline - f1,
        f1_drop_low=max(-1.0, -guard.at_most(-values, counts, both_sides)),
        f1_drop_high=min(1.0, guard.at_most(values, counts, both_sides)),
        f1_drop_at_most=min(1.0, guard.at_most(values, counts, confidence)),
        flips=flips,
        lost=lost,
        gained=gained,
        mcnemar_p=float(scipy_stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0,
        visible_drop=visible_drop(len(labels), flips),
        label_flips=int((baseline != variant).sum()) if multi_label else None,
    )


def compare_answers(
    base: Mapping[str, str], head: Mapping[str, str], confidence: float, min_effect: float
) -> dict[str, Any]:
    """Compare two labels.answers for the same documents; return the fields of a Comparison, and `verdict`.

    `base` takes the place of the baseline. Equal logits for every document give `same`, however few documents there
    are.
    """
    texts = head["labels"], base["predicted"], head["predicted"]
    ids = [int(number) for text in texts for number in re.findall(r"\d+", text)]
    arrays = [unpacked(text, max(ids, default=0) + 1) for text in texts]
    multi_label = any((array.sum(axis=1) != 1).any() for array in arrays)
    comparison = compare(*arrays, multi_label=multi_label, confidence=confidence)
    same = base["logits_sha256"] == head["logits_sha256"]
    verdict = "same" if same else stats.f1_verdict(comparison.f1_drop_low, comparison.f1_drop_high, min_effect)
    return asdict(comparison) | {"verdict": verdict}


def _flips(documents: int, flips: int, drop: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], float]:
    """Return the possible numbers of flips among `documents`, the chance of each, and the chance that a flip is a loss.

    The share of documents that flip is assumed to be the observed one, or at least `drop`, the true drop in accuracy.
    """
    share = min(1.0, max((flips + 1) / (documents + 2), abs(drop)))
    spread = 8 * math.sqrt(documents * share) + 8
    counts = np.arange(max(0, int(documents * share - spread)), min(documents, int(documents * share + spread)) + 1)
    return counts, scipy_stats.binom.pmf(counts, documents, share), (1 + drop / share) / 2


def visible_drop(documents: int, flips: int, power: float = 0.8) -> float:
    """Return the least true drop in accuracy that the exact McNemar test detects (p < 0.05) with the chance `power`.

    `flips` of `documents` were observed to flip. 1 if no drop can be detected.

    Source: Duffy 1984, "Asymptotic and exact power for the McNemar test and its analogue with R controls per case": the
    test's power given the number of flips, averaged over the distribution of that number.
    """

    def power_for(drop: float) -> float:
        counts, chances, lost = _flips(documents, flips, drop)
        # The least number of losses among n flips with p < 0.05; n + 1 if even n losses are not enough.
        needed = scipy_stats.binom.isf(0.025, counts, 0.5) + 1
        return float((chances * scipy_stats.binom.sf(needed - 1, counts, lost)).sum())

    if power_for(1.0) < power:
        return 1.0
    hundredth_of_a_point = 1e-4
    return float(optimize.brentq(lambda drop: power_for(drop) - power, 0.0, 1.0, xtol=hundredth_of_a_point))


def guard_fails(documents: int, flips: int, limit: float, drop: float) -> float:
    """Return the chance that the point guard fails for a true `drop` in accuracy if `flips` of `documents` flip.

    The drop in accuracy approximates that in weighted F1.
    """
    counts, chances, lost = _flips(documents, flips, drop)
    over = np.floor((limit * documents + counts) / 2)  # lost - gained > limit * documents
    return float((chances * scipy_stats.binom.sf(over, counts, lost)).sum())


def odds(documents: int, flips: int, limit: float) -> str:
    """Return a sentence on how often the point guard with `limit` errs if `flips` of `documents` flip."""
    drop = 2 * max(limit, 0.005)
    failed, passed = guard_fails(documents, flips, limit, 0.0), 1 - guard_fails(documents, flips, limit, drop)
    return (
        f"With {counted(flips, 'flip')} in {documents} documents the guard fails {failed:.0%} of variants with no true "
        f"drop, and lets {passed:.0%} of those with a true drop of {drop:.3f} pass"
    )


def f1_drop_parts(
    labels: Indicators, baseline: Indicators, variant: Indicators
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return what each distinct kind of document adds to the weighted F1 drop, and how many there are of it.

    The mean over the documents is the drop itself. Kinds with a count of 0 were not observed: a lost and a gained
    document of each label, by which the greatest and the least possible part are known.

    Source: the influence function (Hampel 1974, "The influence curve and its role in robust estimation"). Weighted F1
    is sum(s * 2 t / (s + p)) / sum(s) over the labels, of the true ones s, the predicted ones p, and those that are
    both, t. It is homogeneous, so the parts, its derivatives for one document, add up to it (Euler).
    """
    right = np.unique(labels, axis=0)
    wrong = np.array([_exchange_label(row) for row in right])
    observed, seen = np.unique(np.stack([labels, baseline, variant], axis=1), axis=0, return_counts=True)
    lost, gained = np.stack([right, right, wrong], axis=1), np.stack([right, wrong, right], axis=1)
    true, *predictions = np.concatenate([observed, lost, gained]).swapaxes(0, 1)
    counts = np.concatenate([seen, np.zeros(2 * len(right))])
    before, after = (_f1_parts(counts, true, one) for one in predictions)
    return before - after, counts


def _f1_parts(counts: npt.NDArray[np.float64], true: Indicators, predicted: Indicators) -> npt.NDArray[np.float64]:
    """Return what a document of each kind adds to weighted F1, `counts` times the number of them."""
    support = counts @ true
    total = max(support.sum(), 1)
    hits, positives = counts @ (true & predicted), support + counts @ predicted
    f1, share = (
        np.divide(part, positives, out=np.zeros_like(positives), where=positives > 0) for part in (2 * hits, support)
    )
    mean = (f1 * support).sum() / total
    parts = (true & predicted) @ (2 * share) - predicted @ (share * f1) + true @ (f1 - share * f1 - mean)
    return np.asarray(parts * (counts.sum() / total) + mean)


def _exchange_label(labels: Indicators) -> Indicators:
    """Return `labels` of one document, `(num_labels,)`, all exchanged for the next that it lacks, as far as there are.

    If it has no label, one is added.
    """
    later = (np.arange(len(labels)) + labels.argmax()) % len(labels)
    wrong = np.zeros_like(labels)
    wrong[later[~labels[later]][: max(1, labels.sum())]] = True
    return wrong


def weighted_f1(labels: Indicators, predicted: Indicators) -> float:
    """Return the mean of the labels' F1, weighted by how often each is true; 0 without any."""
    support, hits = labels.sum(axis=0), (labels & predicted).sum(axis=0)
    f1 = 2 * hits / np.maximum(support + predicted.sum(axis=0), 1)
    return float((f1 * support).sum() / max(support.sum(), 1))


def flipped(
    documents: "pd.DataFrame",
    baseline: npt.NDArray[np.float32],
    variant: npt.NDArray[np.float32],
    dataset: Dataset,
    problem_type: str,
) -> list[dict[str, Any]]:
    """Return the documents whose labels differ, with the labels' names, separated by |, and the logits' margins."""
    labels = dataset.indicators(documents)
    before, after = (predicted(logits, problem_type) for logits in (baseline, variant))
    before_margins, after_margins = (margins(logits, problem_type) for logits in (baseline, variant))

    def names(indicators: Indicators) -> str:
        return "|".join(dataset.names[label] for label in np.flatnonzero(indicators))

    return [
        {
            "row": int(documents.index[int(row)]),
            "label": names(labels[row]),
            "baseline": names(before[row]),
            "baseline_margin": float(before_margins[row]),
            "variant": names(after[row]),
            "variant_margin": float(after_margins[row]),
            "text": str(documents["text"].iloc[row])[:200],
        }
        for row in np.flatnonzero((before != after).any(axis=1))
    ]


def margins(logits: npt.NDArray[np.float32], problem_type: str) -> npt.NDArray[np.float64]:
    """Return by how much each document's logits, `(documents, num_labels)`, may change before its answer can.

    The difference of the two highest; with several labels, the least distance to the threshold.
    """
    if problem_type == MULTI_LABEL:
        return np.asarray(np.abs(logits.astype(np.float64)).min(axis=1))
    second, first = np.partition(logits.astype(np.float64), -2, axis=1)[:, -2:].T
    return np.asarray(first - second)


def over_limit(comparison: Comparison, flips: list[dict[str, Any]], *, limit: float, by: str, what: str) -> str:
    """Return an explanation if the F1 drop of `what` is over `limit`, by guard.figure; empty if it is not."""
    judged = guard.figure(comparison.f1_drop, comparison.f1_drop_at_most, by)
    if judged <= limit:
        return ""
    figure = "the F1 drop is surely no more than" if by == "interval" else "F1 drop"
    losses = f"{comparison.lost} lost, {comparison.gained} gained, exact McNemar test"
    flipped_text = f"{comparison.flips} of {comparison.documents} documents flipped"
    if comparison.label_flips is not None:
        flipped_text += f", {comparison.label_flips} labels"
    lines = [
        f"{what}: {figure} {judged:+.4f}{', which' if by == 'interval' else ''} is over the limit {limit:.4f}",
        f"  weighted F1 {comparison.f1_baseline:.4f} -> {comparison.f1:.4f}, drop {comparison.f1_drop:+.4f}",
        f"  95 % interval of the drop: {comparison.f1_drop_low:+.4f} to {comparison.f1_drop_high:+.4f}",
        f"  {flipped_text}: {losses} (p = {comparison.mcnemar_p:.3f})",
    ]
    if by == "point" and limit >= 0:
        lines.append(f"  {odds(comparison.documents, comparison.flips, limit)}")
    if by == "interval" and comparison.f1_drop <= limit:
        advice = "more test documents would show it to be" if limit > 0 else "to be surely so needs a limit above 0"
        lines.append(f"  The drop itself is within the limit: {advice}")
    max_shown = 5
    for flip in flips[:max_shown]:
        text = " ".join(flip["text"].split())[:40]
        lines.append(f"  document {flip['row']}: {flip['baseline']} -> {flip['variant']}, is {flip['label']}: {text}")
    if len(flips) > max_shown:
        lines.append(f"  and {len(flips) - max_shown} more")
    return "\n".join(lines)
