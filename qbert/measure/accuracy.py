"""Judge a variant by the test documents: score, drop with its interval, flips, and the power of the comparison."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import optimize
from scipy import stats as scipy_stats

from qbert.inputs import metrics
from qbert.inputs.dataset import text_rows
from qbert.inputs.metrics import F1_OF_ONE, Metric
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
    """A variant's answers compared with the baseline's, for the same documents."""

    metric: str
    """The key of the metric that `score` is of."""
    documents: int
    score: float
    """Of the variant, 1 at best."""
    score_baseline: float
    drop: float
    """`score_baseline - score`; positive is worse."""
    drop_low: float
    """Lower end of the 95 % interval of `drop`."""
    drop_high: float
    drop_at_most: float
    """What the true drop surely (95 %, one-sided) does not exceed."""
    flips: int | None = None
    """Documents whose predicted label, or set of labels, differs from the baseline's, or queries whose order does."""
    lost: int | None = None
    """Flips from right to wrong; with several labels, all have to be right."""
    gained: int | None = None
    """Flips from wrong to right."""
    mcnemar_p: float | None = None
    """Exact McNemar test of `lost` against `gained`."""
    visible_drop: float | None = None
    """The least true drop in accuracy that is significant (p < 0.05) with a chance of 80 % for these documents."""
    logit_error: float | None = None
    """Mean absolute difference of the logits from the baseline's; None without logits."""
    label_flips: int | None = None
    """Labels that only one of variant and baseline predicts, over all documents; only of multi-label models."""
    queries: int | None = None
    """How many are ranked."""
    mrr: float | None = None
    """MRR@10 of the variant."""
    mrr_baseline: float | None = None
    spearman: float | None = None
    """Spearman's correlation of the variant's outputs with the labels."""
    spearman_baseline: float | None = None
    pearson_with_fp32: float | None = None
    """Correlations of the variant's outputs with the baseline's."""
    spearman_with_fp32: float | None = None

    def figures(self) -> dict[str, Any]:
        """Return all that is known, under the names of Metric; `own_names` gives those for saved runs and JSON."""
        known, always = (
            {field.name: getattr(self, field.name) for field in fields(self)},
            metrics.named(self.metric).always,
        )
        return {name: value for name, value in known.items() if value is not None or name in always}

    def record(self) -> dict[str, Any]:
        """Return all that is known, under the metric's own names."""
        return metrics.own_names(self.figures())


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
    truth: Any,  # noqa: ANN401  of the metric
    baseline: npt.NDArray[Any],
    variant: npt.NDArray[Any],
    metric: Metric = F1_OF_ONE,
    *,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Compare the answers `baseline` and `variant` with what is true, all three as `metric` has them.

    The interval of the drop, and what it surely does not exceed, hold with `confidence`.

    Source: exact McNemar test: Fagerland, Lydersen and Laake 2013, "The McNemar test for binary
    matched-pairs data", section 3.
    """
    score_baseline, score = metric.score(truth, baseline), metric.score(truth, variant)
    paired, both_sides = metric.paired(truth, baseline, variant), (1 + confidence) / 2
    figures = metric.figures(truth, baseline, variant)
    if "lost" in figures:
        lost, changed = figures["lost"], figures["lost"] + figures["gained"]
        figures["mcnemar_p"] = float(scipy_stats.binomtest(lost, changed).pvalue) if changed else 1.0
        figures["visible_drop"] = visible_drop(len(baseline), figures["flips"])
    return Comparison(
        metric=metric.key,
        documents=len(baseline),
        score=score,
        score_baseline=score_baseline,
        drop=score_baseline - score,
        drop_low=paired.at_least(both_sides),
        drop_high=paired.at_most(both_sides),
        drop_at_most=paired.at_most(confidence),
        **figures,
    )


def compare_answers(
    base: Mapping[str, str], head: Mapping[str, str], confidence: float, min_effect: float
) -> dict[str, Any]:
    """Compare two records of a metric for the same documents; return the figures of a Comparison, and `drop_verdict`.

    `base` takes the place of the baseline. Equal logits for every document give `same`, however few documents there
    are.
    """
    metric = metrics.of_records(base, head)
    comparison = compare(*metric.read(base, head), metric, confidence=confidence)
    same = all(base.get(name) == head.get(name) for name in ("logits_sha256", "activation"))
    verdict = "same" if same else stats.drop_verdict(comparison.drop_low, comparison.drop_high, min_effect)
    return comparison.figures() | {"drop_verdict": verdict}


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


def over_limit(comparison: Comparison, flips: list[dict[str, Any]], *, limit: float, by: str, what: str) -> str:
    """Return an explanation if the drop of `what` is over `limit`, by guard.figure; empty if it is not."""
    judged = guard.figure(comparison.drop, comparison.drop_at_most, by)
    if judged <= limit:
        return ""
    metric = metrics.named(comparison.metric)
    figure = f"the {metric.short} drop is surely no more than" if by == "interval" else f"{metric.short} drop"
    lines = [
        f"{what}: {figure} {judged:+.4f}{', which' if by == 'interval' else ''} is over the limit {limit:.4f}",
        f"  {metric.title} {comparison.score_baseline:.4f} -> {comparison.score:.4f}, drop {comparison.drop:+.4f}",
        f"  95 % interval of the drop: {comparison.drop_low:+.4f} to {comparison.drop_high:+.4f}",
    ]
    if comparison.lost is not None:
        flipped_text = f"{comparison.flips} of {comparison.documents} documents flipped"
        if comparison.label_flips is not None:
            flipped_text += f", {comparison.label_flips} labels"
        losses = f"{comparison.lost} lost, {comparison.gained} gained, exact McNemar test"
        lines.append(f"  {flipped_text}: {losses} (p = {comparison.mcnemar_p:.3f})")
        if by == "point" and limit >= 0:
            lines.append(f"  {odds(comparison.documents, comparison.flips or 0, limit)}")
    figures = comparison.figures()
    for name, heading in metric.more.items():
        before = f"{figures[f'{name}_baseline']:.4f} -> " if f"{name}_baseline" in figures else ""
        lines.append(f"  {heading} {before}{figures[name]:.4f}")
    if by == "interval" and comparison.drop <= limit:
        advice = "more test documents would show it to be" if limit > 0 else "to be surely so needs a limit above 0"
        lines.append(f"  The drop itself is within the limit: {advice}")
    max_shown = 5
    for flip in flips[:max_shown]:
        text = " ".join(flip["text"].split())[:40]
        lines.append("  " + metric.flipped_line.format(**flip | {"text": text}))
    if len(flips) > max_shown:
        lines.append(f"  and {len(flips) - max_shown} more")
    return "\n".join(lines)
