"""The published experiment's table, done anew: time per document and weighted F1 before and after quantization."""

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

from qbert.cache import cache_dir, write_file
from qbert.dataset import text_rows
from qbert.machine import one_core
from qbert.results import tables
from qbert.stats import CONFIDENCE
from qbert.terminal import progress
from qbert.variants import BASELINE

if TYPE_CHECKING:
    import pandas as pd

    from qbert.suite import Cell, Suite

PUBLISHED = {384: (1.066, 0.686), 256: (0.669, 0.431), 128: (0.336, 0.201)}
"""Seconds per document before and after, by maximum length: the first of three trainings of bert-base-chinese on Sogou
news, int8-dynamic on an i5-10210U, tokenizing and autograd included."""
PUBLISHED_SPEEDUP = 1.52
PUBLISHED_F1 = (0.9717, 0.9899)
"""Weighted F1 before, least and greatest of the nine; after, within 0.004 of it."""
TURN = 20  # documents that one side classifies before the other does the same ones
SETTLING = 5  # calls at the beginning of a turn, which find caches as the other side left them, and are not timed


@dataclass(frozen=True)
class Training:
    """One trained checkpoint, before and after."""

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


def run(suite: "Suite", variant: str) -> list[Training]:
    """Measure each training of `suite` as fp32 and as `variant`; those that were measured before are read again."""
    documents = suite.dataset.documents(None)
    trainings = []
    for max_length in suite.max_lengths:
        for model in suite.models.values():
            before, after = (suite.cell(model.name, max_length, name) for name in (BASELINE, variant))
            identity = [cell.describe(cell.classifier.evidence)["identity"] for cell in (before, after)]
            key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
            path = cache_dir() / "reproductions" / f"{key}.json"
            training = kept(path, identity)
            if training is None:
                what = f"{max_length} tokens, training {model.seed + 1} of {len(suite.models)}"
                with progress(what, len(documents)) as advance:
                    training = measure(before, after, documents, advance)
                keep(path, identity, training)
            trainings.append(training)
    return trainings


def measure(before: "Cell", after: "Cell", documents: "pd.DataFrame", advance: Callable[[int], None]) -> Training:
    """Classify each document with both, in turns of a few, so that both see the same machine at the same moment."""
    rows = text_rows(documents)
    runs = [cell.text_classifier() for cell in (before, after)]
    seconds: list[list[float]] = [[], []]
    logits: list[list[npt.NDArray[np.float32]]] = [[], []]
    with one_core():
        for begin in range(0, len(rows), TURN):
            turn = rows[begin : begin + TURN]
            for side in (0, 1) if begin // TURN % 2 == 0 else (1, 0):
                for text in turn[:SETTLING]:
                    runs[side](*text)
                for text in turn:
                    start = time.perf_counter()
                    found = runs[side](*text)
                    seconds[side].append(time.perf_counter() - start)
                    logits[side].append(found)
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
        f1_before=comparison.f1_baseline,
        f1_after=comparison.f1,
        f1_drop=comparison.f1_drop,
        f1_drop_low=comparison.f1_drop_low,
        f1_drop_high=comparison.f1_drop_high,
        flips=comparison.flips,
        documents=comparison.documents,
    )


def ratio_of_means(
    before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Return mean(before) / mean(after) of paired values, and its interval.

    Source: delta method for a ratio of paired means: Cochran 1977, "Sampling Techniques", section 6.4, on the
    logarithm, which keeps the interval above 0.
    """
    ratio = float(before.mean() / after.mean())
    if len(before) < 2:  # noqa: PLR2004  one value has no spread
        return ratio, math.nan, math.nan
    residuals = before / before.mean() - after / after.mean()
    error = float(residuals.std(ddof=1)) / math.sqrt(len(before))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(before) - 1)) * error
    return ratio, ratio * math.exp(-reach), ratio * math.exp(reach)


def average(speedups: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Return the geometric mean of the trainings' speedups and its interval (Student's, on logarithms)."""
    logs = np.log(speedups)
    middle = float(logs.mean())
    if len(logs) < 2:  # noqa: PLR2004  one value has no spread
        return math.exp(middle), math.nan, math.nan
    reach = float(stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    return math.exp(middle), math.exp(middle - reach), math.exp(middle + reach)


def kept(path: Path, identity: Any) -> Training | None:  # noqa: ANN401  as JSON holds it
    """Return the training that `keep` left in `path` for the same `identity`; None where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Training(**found["training"]) if found["identity"] == identity else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(path: Path, identity: Any, training: Training) -> None:  # noqa: ANN401  as JSON holds it
    """Write `training` to `path`: an interrupted run leaves nothing that looks finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"identity": identity, "training": asdict(training)})
    write_file(path, lambda place: place.write_text(text, encoding="utf-8"))


def table(trainings: Sequence[Training], *, title: str) -> Group:
    """Return the published experiment's table of `trainings`, beside the published figures. It fits 80 columns."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in COLUMNS:
        drawn.add_column(heading, justify="right", no_wrap=True)
    for row in _rows(trainings):
        drawn.add_row(*row)
    return Group(Text(title, style="bold"), "", drawn, Text(f"\n{_reproduced(trainings)}"))


def markdown(trainings: Sequence[Training], *, title: str) -> str:
    """Return the same as `table` for a README."""
    headings = [heading.replace("\n", " ").strip() for heading in COLUMNS]
    drawn = tables.markdown_table(headings, _rows(trainings))
    return f"### {tables.markdown_text(title)}\n\n{drawn}\n\n{_reproduced(trainings)}\n"


COLUMNS = (
    *("tokens\n", "run\n", "before\nms", "after\nms", "speedup\n95 %", "F1\nbefore", "F1\nafter", "F1 drop\n95 %"),
    "published\nms ms speed",
)


def _rows(trainings: Sequence[Training]) -> list[list[str]]:
    rows = []
    for one in trainings:
        published = ""
        if one.max_length in PUBLISHED and one.seed == 0:
            before, after = PUBLISHED[one.max_length]
            published = f"{before * 1e3:.0f} {after * 1e3:.0f} {before / after:.2f}"
        rows.append(
            [
                str(one.max_length),
                str(one.seed + 1),
                tables.milliseconds(one.before_s),
                tables.milliseconds(one.after_s),
                f"{one.speedup:.2f} {one.speedup_low:.2f}–{one.speedup_high:.2f}",
                f"{one.f1_before:.4f}",
                f"{one.f1_after:.4f}",
                f"{one.f1_drop_low:+.3f} {one.f1_drop_high:+.3f}",
                published,
            ]
        )
    return rows


def _reproduced(trainings: Sequence[Training]) -> str:
    speedup, low, high = average([one.speedup for one in trainings])
    between = "" if math.isnan(low) else f" (95 % over {len(trainings)} trainings: {low:.2f} to {high:.2f})"
    worst = max(abs(one.f1_drop) for one in trainings)
    least, most = PUBLISHED_F1
    return (
        f"On average {speedup:.2f} times faster{between};\nF1 moved by {worst:.4f} at most.\n"
        f"Published: {PUBLISHED_SPEEDUP} times faster; F1 {least} to {most}, moved by 0.004 at most\n"
        "(bert-base-chinese, Sogou news, i5-10210U, autograd on; beside each length,\nthe first of three runs)."
    )
