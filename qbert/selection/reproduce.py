"""Reproduce the published experiment's table: time per document and weighted F1 before and after quantization."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.console import Group
from rich.table import Table
from rich.text import Text
from scipy import stats

from qbert.inputs.dataset import text_rows
from qbert.measure.cells import Suite
from qbert.measure.stats import CONFIDENCE
from qbert.results import tables
from qbert.selection.kept_answers import name_of
from qbert.system import sources
from qbert.system.cache import cache_dir, write_file
from qbert.system.machine import one_core
from qbert.system.terminal import progress
from qbert.variants import BASELINE

if TYPE_CHECKING:
    import pandas as pd

    from qbert.measure.cells import Cell

PUBLISHED = {384: (1.066, 0.686), 256: (0.669, 0.431), 128: (0.336, 0.201)}
"""Seconds per document before and after, by maximum length: the first of three trainings of bert-base-chinese on Sogou
news, int8-dynamic on an i5-10210U, tokenizing and autograd included."""
PUBLISHED_SPEEDUP = 1.52
PUBLISHED_F1 = (0.9717, 0.9899)
"""Least and greatest weighted F1 of the nine before quantization; after it, within 0.004 of that."""
TURN = 20  # documents that one side classifies before the other side classifies the same ones
SETTLING = 5  # untimed calls at the beginning of a turn, which refill the caches after the other side's


@dataclass(frozen=True)
class Training:
    """The figures of one trained checkpoint before and after quantization."""

    max_length: int
    seed: int
    before_s: float
    """Mean over the test documents, text to logits."""
    after_s: float
    speedup: float
    speedup_low: float
    """Lower end of the 95 % interval over documents."""
    speedup_high: float
    f1_before: float
    f1_after: float
    f1_drop: float
    f1_drop_low: float
    f1_drop_high: float
    flips: int
    documents: int


def run(suite: Suite, variant: str) -> list[Training]:
    """Measure each training of `suite` as fp32 and as `variant`; reuse results of an earlier run."""
    return [
        one(suite, variant, max_length, model.name)
        for max_length in suite.max_lengths
        for model in suite.models.values()
    ]


def one(suite: Suite, variant: str, max_length: int, model: str) -> Training:
    """Measure one training of `suite`, as run does."""
    documents = suite.dataset.documents(None)
    before, after = (suite.cell(model, max_length, name) for name in (BASELINE, variant))
    identity = subject(before, after)
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir() / "reproductions" / f"{key}.json"
    training = load_training(path, identity)
    if training is None:
        label = f"{max_length} tokens, training {before.model.seed + 1} of {len(suite.models)}"
        with progress(label, len(documents)) as advance:
            training = measure(before, after, documents, advance)
        save_training(path, identity, training)
    return training


def subject(*cells: "Cell") -> list[Any]:
    """Return all that a measurement of `cells` depends on: what they are, and the code and kernels that run."""
    identities = [[cell.describe(cell.classifier.evidence)["identity"], name_of(cell)] for cell in cells]
    return [*identities, sources.sha256("qbert.selection.reproduce")]


def measure(before: "Cell", after: "Cell", documents: "pd.DataFrame", advance: Callable[[int], None]) -> Training:
    """Classify each document with both cells, in turns of TURN documents, so that conditions are the same for both."""
    rows = text_rows(documents)
    classifiers = [cell.text_classifier() for cell in (before, after)]
    seconds: list[list[float]] = [[], []]
    logits: list[list[npt.NDArray[np.float32]]] = [[], []]
    with one_core():
        for begin in range(0, len(rows), TURN):
            turn = rows[begin : begin + TURN]
            for side in (0, 1) if begin // TURN % 2 == 0 else (1, 0):
                for text in turn[:SETTLING]:
                    classifiers[side](*text)
                for text in turn:
                    start = time.perf_counter()
                    answer = classifiers[side](*text)
                    seconds[side].append(time.perf_counter() - start)
                    logits[side].append(answer)
            advance(min(begin + TURN, len(rows)))
    outputs = [np.concatenate(side) for side in logits]
    comparison = after.compare(documents, *outputs)
    speedup, low, high = ratio_of_means(np.array(seconds[0]), np.array(seconds[1]))
    return Training(
        max_length=before.max_length,
        seed=before.model.seed,
        before_s=float(np.mean(seconds[0])),
        after_s=float(np.mean(seconds[1])),
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
        f1_before=comparison.score_baseline,
        f1_after=comparison.score,
        f1_drop=comparison.drop,
        f1_drop_low=comparison.drop_low,
        f1_drop_high=comparison.drop_high,
        flips=comparison.flips or 0,
        documents=comparison.documents,
    )


def ratio_of_means(
    before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Return mean(before) / mean(after) of paired values, and its interval.

    Source: delta method for a ratio of paired means: Cochran 1977, "Sampling Techniques", section 6.4; on a log scale,
    which keeps the interval above 0.
    """
    ratio = float(before.mean() / after.mean())
    if len(before) < 2:  # noqa: PLR2004  one value has no spread
        return ratio, math.nan, math.nan
    residuals = before / before.mean() - after / after.mean()
    error = float(residuals.std(ddof=1)) / math.sqrt(len(before))
    margin = float(stats.t.ppf((1 + confidence) / 2, len(before) - 1)) * error
    return ratio, ratio * math.exp(-margin), ratio * math.exp(margin)


def average(speedups: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Return the geometric mean of the trainings' speedups and its interval (Student's, on logarithms)."""
    logs = np.log(speedups)
    mean = float(logs.mean())
    if len(logs) < 2:  # noqa: PLR2004  one value has no spread
        return math.exp(mean), math.nan, math.nan
    margin = float(stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    return math.exp(mean), math.exp(mean - margin), math.exp(mean + margin)


def load_training(path: Path, identity: Any) -> Training | None:  # noqa: ANN401  JSON
    """Return the training that `save_training` wrote to `path` for the same `identity`; None if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Training(**content["training"]) if content["identity"] == identity else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_training(path: Path, identity: Any, training: Training) -> None:  # noqa: ANN401  JSON
    """Write `training` to `path` atomically: an interrupted run leaves no incomplete file there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"identity": identity, "training": asdict(training)})
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def table(trainings: Sequence[Training], *, title: str) -> Group:
    """Return the experiment's table of `trainings` with the published figures, at most 80 columns wide."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in COLUMNS:
        drawn.add_column(heading, justify="right", no_wrap=True)
    for row in _rows(trainings):
        drawn.add_row(*row)
    return Group(Text(title, style="bold"), "", drawn, Text(f"\n{_conclusion(trainings)}"))


def markdown(trainings: Sequence[Training], *, title: str) -> str:
    """Return the content of `table` as Markdown, for a README."""
    headings = [heading.replace("\n", " ").strip() for heading in COLUMNS]
    drawn = tables.markdown_table(headings, _rows(trainings))
    return f"### {tables.markdown_text(title)}\n\n{drawn}\n\n{_conclusion(trainings)}\n"


COLUMNS = (
    *("tokens\n", "run\n", "before\nms", "after\nms", "speedup\n95 %", "F1\nbefore", "F1\nafter", "F1 drop\n95 %"),
    "published\nms ms speed",
)


def _rows(trainings: Sequence[Training]) -> list[list[str]]:
    rows = []
    for training in trainings:
        published = ""
        if training.max_length in PUBLISHED and training.seed == 0:
            before, after = PUBLISHED[training.max_length]
            published = f"{before * 1e3:.0f} {after * 1e3:.0f} {before / after:.2f}"
        rows.append(
            [
                str(training.max_length),
                str(training.seed + 1),
                tables.milliseconds(training.before_s),
                tables.milliseconds(training.after_s),
                f"{training.speedup:.2f} {training.speedup_low:.2f}–{training.speedup_high:.2f}",
                f"{training.f1_before:.4f}",
                f"{training.f1_after:.4f}",
                f"{training.f1_drop_low:+.3f} {training.f1_drop_high:+.3f}",
                published,
            ]
        )
    return rows


def _conclusion(trainings: Sequence[Training]) -> str:
    speedup, low, high = average([training.speedup for training in trainings])
    between = "" if math.isnan(low) else f" (95 % over {len(trainings)} trainings: {low:.2f} to {high:.2f})"
    worst = max(abs(training.f1_drop) for training in trainings)
    least, most = PUBLISHED_F1
    return (
        f"On average {speedup:.2f} times faster{between};\nF1 moved by {worst:.4f} at most.\n"
        f"Published: {PUBLISHED_SPEEDUP} times faster; F1 {least} to {most}, moved by 0.004 at most\n"
        "(bert-base-chinese, Sogou news, i5-10210U, autograd on; beside each length,\nthe first of three runs)."
    )
