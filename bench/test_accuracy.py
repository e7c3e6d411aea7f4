"""Whether a variant answers as well as the baseline, document by document, as it is served.

Timed: each test document from text to logits, tokenizing included, at its own length.
Not timed: building and loading; the baseline's own pass; statistics.
"""

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from qbert import dataset, evaluate, latency, variants
from qbert.terminal import shown

if TYPE_CHECKING:
    import pandas as pd

    from qbert.suite import Cell


@pytest.mark.trained_models
@pytest.mark.benchmark(disable_gc=True)
def test_accuracy(cell: "Cell", benchmark: Any, documents: "pd.DataFrame", pytestconfig: pytest.Config) -> None:
    """F1 drops by no more than the limit, or is marked where nobody named the variant; a round is a document."""
    cell.introduce(benchmark, "accuracy")
    classifier, encoder, max_length = cell.classifier, cell.encoder, cell.max_length
    rows = dataset.text_rows(documents)
    texts = itertools.cycle(rows)
    logits = []

    def classify(*text: str) -> None:
        logits.append(classifier(encoder(*text, max_length=max_length)))

    with latency.one_core():
        for text in rows[: evaluate.WARM_UP_DOCUMENTS]:
            classifier(encoder(*text, max_length=max_length))
        benchmark.pedantic(classify, setup=lambda: (next(texts), {}), rounds=len(rows))
    assert all(np.isfinite(row).all() for row in logits)
    if benchmark.disabled:
        return  # one document was classified: it works, and there is nothing to judge

    comparison, flips = cell.judge(documents, np.concatenate(logits[: len(rows)]))
    options = pytestconfig.option
    limit = cell.variant.max_f1_drop if options.max_f1_drop is None else options.max_f1_drop
    benchmark.extra_info.update(
        dataclasses.asdict(comparison),
        **evaluate.percentiles(benchmark.stats.stats.data),
        max_f1_drop=limit,
        f1_guard=options.f1_guard,
        flipped=flips,
    )
    over = evaluate.guard(comparison, flips, limit=limit, by=options.f1_guard, what=cell.name)
    if over and not cell.is_baseline:
        benchmark.extra_info["over_limit"] = True
        if options.strict_guard or cell.variant.name in variants.named(options.variants):
            pytest.fail(shown(over), pytrace=False)
