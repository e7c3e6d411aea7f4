"""Judge a variant by the test documents: F1, F1 drop with its interval, flips, and what they cannot tell."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from qbert import CONFIDENCE, InputError
from qbert.checkpoint import Encoder
from qbert.dataset import text_rows
from qbert.latency import one_core

if TYPE_CHECKING:
    import pandas as pd

    from qbert.variants import Classifier

WARM_UP_DOCUMENTS = 10
RESAMPLES = 4_000  # moves the interval's ends by less than a tenth of its width from seed to seed

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """A variant's predictions beside the baseline's, for the same documents."""

    documents: int
    f1: float
    """Weighted F1 of the variant, 0 to 1."""
    f1_baseline: float
    f1_drop: float
    """`f1_baseline - f1`; positive is worse."""
    f1_drop_low: float
    """Lower end of the 95 % interval of `f1_drop`."""
    f1_drop_high: float
    flips: int
    """Documents with another predicted label than the baseline's."""
    lost: int
    """Flips from the right label to a wrong one."""
    gained: int
    """Flips from a wrong label to the right one."""
    mcnemar_p: float
    """Exact McNemar test of `lost` against `gained`."""
    smallest_visible_drop: float
    """The least drop in accuracy that so many documents could tell from chance (p < 0.05)."""
    logit_error: float | None = None
    """Mean absolute difference of the logits from the baseline's, where they were given."""


def run(
    classifier: "Classifier",
    encoder: Encoder,
    documents: "pd.DataFrame",
    max_length: int,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Classify each document on its own, as it is served.

    Returns:
        Logits `(documents, num_labels)`, and the seconds from text to logits of each document.
    """
    rows = text_rows(documents)
    logits, seconds = [], []
    with one_core():
        for text in rows[:WARM_UP_DOCUMENTS]:
            classifier(encoder(*text, max_length=max_length))
        for number, text in enumerate(rows, start=1):
            start = time.perf_counter()
            logits.append(classifier(encoder(*text, max_length=max_length)))
            seconds.append(time.perf_counter() - start)
            advance(number)
    return np.concatenate(logits), np.array(seconds)


def check_finite(logits: npt.NDArray[np.float32], what: str) -> None:
    """Raise InputError where logits of the variant `what` are no numbers."""
    if not np.isfinite(logits).all():
        raise InputError(f"variant {what} gives logits that are not finite: leave it out")


def percentiles(seconds: Sequence[float] | npt.NDArray[np.float64]) -> dict[str, float]:
    """Return `p50_s`, `p95_s` and `p99_s`."""
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99])
    return {"p50_s": float(p50), "p95_s": float(p95), "p99_s": float(p99)}


def compare(labels: Ids, baseline: Ids, variant: Ids, num_labels: int, *, confidence: float = CONFIDENCE) -> Comparison:
    """Compare predicted label ids, each of shape `(documents,)`, with the true `labels`.

    Source: exact McNemar test: Fagerland, Lydersen and Laake 2013, "The McNemar test for binary
    matched-pairs data", section 3.
    """
    lost = int(((baseline == labels) & (variant != labels)).sum())
    gained = int(((baseline != labels) & (variant == labels)).sum())
    cells, counts = np.unique(np.stack([labels, baseline, variant]), axis=1, return_counts=True)
    f1_baseline = float(_weighted_f1(counts[None], cells[0], cells[1], num_labels)[0])
    f1 = float(_weighted_f1(counts[None], cells[0], cells[2], num_labels)[0])
    low, high = f1_drop_interval(labels, baseline, variant, num_labels, confidence=confidence)
    one_sided = 5  # flips that all go one way: 2 * 0.5**5 = 0.06 is chance, 2 * 0.5**6 = 0.03 is not
    return Comparison(
        documents=len(labels),
        f1=f1,
        f1_baseline=f1_baseline,
        f1_drop=f1_baseline - f1,
        f1_drop_low=low,
        f1_drop_high=high,
        flips=int((baseline != variant).sum()),
        lost=lost,
        gained=gained,
        mcnemar_p=float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0,
        smallest_visible_drop=min(1.0, (one_sided + 1) / len(labels)),
    )


def f1_drop_interval(
    labels: Ids, baseline: Ids, variant: Ids, num_labels: int, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the paired bootstrap interval of the weighted F1 drop.

    Documents with equal (label, baseline, variant) are interchangeable, so a resample of documents is one
    multinomial draw over these cells. One document lost and one gained are added, spread over the labels as
    the documents are: without them no flip among 100 documents would give the interval [0, 0].

    Source: percentile bootstrap: Efron and Tibshirani 1993, chapter 13; the two added documents: Bonett and
    Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data".
    """
    known, share = np.unique(labels, return_counts=True)
    wrong = (known + 1) % num_labels
    observed, counts = np.unique(np.stack([labels, baseline, variant]), axis=1, return_counts=True)
    added = np.concatenate([np.stack([known, known, wrong]), np.stack([known, wrong, known])], axis=1)
    cells = np.concatenate([observed, added], axis=1)
    weights = np.concatenate([counts, share / len(labels), share / len(labels)])
    draws = np.random.default_rng(0).multinomial(len(labels) + 2, weights / weights.sum(), size=RESAMPLES)
    drops = _weighted_f1(draws, cells[0], cells[1], num_labels) - _weighted_f1(draws, cells[0], cells[2], num_labels)
    low, high = np.quantile(drops, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _weighted_f1(
    counts: npt.NDArray[np.int64], labels: Ids, predicted: Ids, num_labels: int
) -> npt.NDArray[np.float64]:
    """Return the weighted F1 of each row of `counts` `(samples, cells)`, how often each cell's pair occurs."""
    one_hot = np.eye(num_labels)
    support = counts @ one_hot[labels]
    hits = counts @ (one_hot[labels] * (labels == predicted)[:, None])
    either = support + counts @ one_hot[predicted]
    f1 = np.divide(2 * hits, either, out=np.zeros_like(either), where=either > 0)
    return np.asarray((f1 * support).sum(axis=1) / support.sum(axis=1))


def flipped(
    documents: "pd.DataFrame",
    baseline: npt.NDArray[np.float32],
    variant: npt.NDArray[np.float32],
    names: tuple[str, ...],
) -> list[dict[str, Any]]:
    """Return the documents whose label differs, with the name of each label and the logits' margins."""
    rows = []
    for row in np.flatnonzero(baseline.argmax(axis=1) != variant.argmax(axis=1)):
        document = documents.iloc[row]
        rows.append(
            {
                "row": int(documents.index[int(row)]),
                "label": names[document["label"]],
                "baseline": names[baseline[row].argmax()],
                "baseline_margin": _margin(baseline[row]),
                "variant": names[variant[row].argmax()],
                "variant_margin": _margin(variant[row]),
                "text": str(document["text"])[:200],
            }
        )
    return rows


def _margin(logits: npt.NDArray[np.float32]) -> float:
    """Return by how much the highest logit is above the next."""
    below, top = np.partition(logits, -2)[-2:]
    return float(top - below)


def guard(comparison: Comparison, flips: list[dict[str, Any]], *, limit: float, by: str, what: str) -> str:
    """Return what a person has to know where the F1 drop of `what` is over `limit`; empty where it is not.

    `by` is `point` (the drop itself) or `interval` (the upper end of its 95 % interval).
    """
    judged = max(comparison.f1_drop_high, comparison.f1_drop) if by == "interval" else comparison.f1_drop
    if judged <= limit:
        return ""
    named = "upper end of the F1 drop's interval" if by == "interval" else "F1 drop"
    moved = f"{comparison.lost} lost, {comparison.gained} gained, exact McNemar test"
    lines = [
        f"{what}: {named} {judged:+.4f} is over the limit {limit:.4f}",
        f"  weighted F1 {comparison.f1_baseline:.4f} -> {comparison.f1:.4f}, drop {comparison.f1_drop:+.4f}",
        f"  95 % interval of the drop: {comparison.f1_drop_low:+.4f} to {comparison.f1_drop_high:+.4f}",
        f"  {comparison.flips} of {comparison.documents} documents flipped: {moved} (p = {comparison.mcnemar_p:.3f})",
    ]
    if by == "interval" and comparison.f1_drop <= limit:
        advice = "more test documents would narrow its interval" if limit > 0 else "its interval needs a limit above 0"
        lines.append(f"  The drop itself is within the limit: {advice}")
    shown = 5
    for flip in flips[:shown]:
        text = " ".join(flip["text"].split())[:40]
        lines.append(f"  document {flip['row']}: {flip['baseline']} -> {flip['variant']}, is {flip['label']}: {text}")
    if len(flips) > shown:
        lines.append(f"  and {len(flips) - shown} more")
    return "\n".join(lines)
