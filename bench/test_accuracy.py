"""Whether a variant answers as well as the baseline, document by document, as in serving.

Timed: each test document from text to logits, tokenizing included, at its own length.
Not timed: building and loading; the baseline's pass; statistics; a second pass in another order, which must give the
same answers.
"""

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from qbert.inputs import dataset, metrics
from qbert.measure import accuracy, audit
from qbert.system import machine
from qbert.system.terminal import shown

if TYPE_CHECKING:
    import pandas as pd

    from qbert.inputs.settings import Settings
    from qbert.measure.cells import Cell


@pytest.mark.trained_models
@pytest.mark.benchmark(disable_gc=True)
def test_accuracy(
    cell: "Cell",
    benchmark: Any,
    qbert_documents: "pd.DataFrame",
    qbert_settings: "Settings",
    pytestconfig: pytest.Config,
    qbert_attempt: Callable[[], AbstractContextManager[None]],
    *,
    qbert_named: bool,
) -> None:
    """Mark the cell if its score drops by more than the limit; a round is a document."""
    cell.label_benchmark(benchmark, "accuracy")
    rows = dataset.text_rows(qbert_documents)
    texts = itertools.cycle(rows)
    logits = []

    answer = cell.text_classifier()

    def classify(*text: str) -> None:
        logits.append(answer(*text))

    with qbert_attempt(), machine.one_core():
        for text in rows[: accuracy.WARM_UP_DOCUMENTS]:
            accuracy.check_finite(answer(*text), cell.name)
    with machine.one_core():
        benchmark.pedantic(classify, setup=lambda: (next(texts), {}), rounds=len(rows))
    with qbert_attempt():
        accuracy.check_finite(np.concatenate(logits), cell.name)
    if benchmark.disabled:
        return  # a single document was classified, so there is nothing to judge

    first = np.concatenate(logits[: len(rows)])
    with qbert_attempt(), machine.one_core():
        audit.check_again(answer, rows, list(qbert_documents.index), first, cell.name)
    comparison, flips = cell.judge(qbert_documents, first)
    drop = qbert_settings.max_drop
    limit = cell.variant.max_drop if drop is None else drop
    guard = qbert_settings.drop_guard
    over = ""
    if not cell.is_baseline:
        over = accuracy.over_limit(comparison, flips, limit=limit, by=guard, what=cell.name)
    benchmark.extra_info.update(
        metrics.own_names(comparison.figures() | {"max_drop": limit, "guard": guard}),
        **accuracy.percentiles(benchmark.stats.stats.data),
        flipped=flips,
        answers=cell.answers(qbert_documents, first),
        over_limit=bool(over),
        named=qbert_named,
    )
    if over and (qbert_named or pytestconfig.option.qbert_strict_guard):
        pytest.fail(shown(over), pytrace=False)
