"""`qbert rescue` beside NNCF's accuracy control on the same checkpoint: what each keeps, and what that costs.

    python tools/trial_rescue.py CHECKPOINT:DATASET [CHECKPOINT:DATASET ...]

Both judge by the same held-out training rows: qbert by the upper end of the drop's interval, NNCF by the drop. It
prints, for each checkpoint and guard, the F1 drop on the test split of plain int8 and of what was kept, the latency
beside plain int8 of the same runtime (calls in turn), and the seconds that the search took, from fp32's answers on.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qbert import accuracy, rescue
from qbert import dataset as datasets
from qbert.artefact import Artefact
from qbert.labels import predicted
from qbert.latency import time_call
from qbert.machine import one_core
from qbert.suite import baseline_of
from qbert.terminal import silent
from qbert.variants import openvino

TURNS = 40
COLUMNS = ("checkpoint", "guard", "search", "plain", "kept", "of", "drop", "flips", "latency", "search s")


def ratio(changed: Any, plain: Any, encoding: Any) -> float:
    """Return the median of the latency of `changed` over that of `plain`, called in turn."""
    ratios = []
    with one_core():
        for _ in range(TURNS):
            for classifier in (plain, changed):
                classifier(encoding)
            before, after = (time_call(classifier, encoding) for classifier in (plain, changed))
            ratios.append(after / before)
    return float(np.median(ratios))


class Checked:
    """A checkpoint with its dataset and the documents that both searches judge by."""

    def __init__(self, source: str, documents: int) -> None:
        folder, _, dataset = source.partition(":")
        self.source, self.dataset = folder, datasets.load(dataset)
        baseline = baseline_of(folder, self.dataset)
        self.checkpoint = baseline.checkpoint
        calibration = self.dataset.calibration(rescue.CALIBRATION_DOCUMENTS)
        held, _ = self.dataset.to_choose_by(None, rescue.CALIBRATION_DOCUMENTS, None)
        self.calibration, self.held, self.test = (
            rescue.ask(baseline, rows, what)
            for rows, what in (
                (calibration, "calibration"),
                (held[:documents], "held out"),
                (self.dataset.test, "test"),
            )
        )

    def drop(self, classifier: Any) -> tuple[float, int]:
        """Return the F1 drop and the flips on the test split."""
        logits = np.concatenate([classifier(encoding) for encoding in self.test.encodings])
        labels = self.dataset.indicators(self.test.rows)
        before, after = (predicted(array, self.checkpoint.problem_type) for array in (self.test.baseline, logits))
        comparison = accuracy.compare(labels, before, after)
        return comparison.f1_drop, comparison.flips

    def f1(self, logits: Any, rows: Iterable[int]) -> float:
        """Return the weighted F1 of `logits` of those of the held-out documents."""
        labels = self.dataset.indicators(self.held.rows)[list(rows)]
        answers = predicted(logits, self.checkpoint.problem_type)
        return accuracy.compare(labels, answers, answers).f1


def ours(checked: Checked, guard: float, documents: int, variant: str) -> tuple[object, ...]:
    """Return a row's figures from what `qbert rescue` does."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out"
        rescued = rescue.rescue(
            checked.source, str(checked.dataset.folder), guard, folder, variant=variant, documents=documents
        )
        search = sum(rescued.seconds.get(step, 0.0) for step in ("export", "plain", "sensitivity", "search"))
        if not rescued.holds:
            return "", "none", len(rescued.products), "", "", rescued.latency_ratio, search
        classifier = Artefact.open(folder).load()
        found, flips = checked.drop(classifier)
        plain = rescued.plain_test.f1_drop if rescued.plain_test else float("nan")
        every = len(classifier.evidence.get("kept_ops", ())) + classifier.evidence["quantized_ops"]
        return plain, len(rescued.kept), every, found, flips, rescued.latency_ratio, search


def nncf_control(checked: Checked, guard: float) -> tuple[object, ...]:
    """Return a row's figures from NNCF's quantize_with_accuracy_control, as its documentation calls it."""
    openvino.module()
    import nncf

    model = openvino._convert(checked.checkpoint, checked.checkpoint.load())  # noqa: SLF001
    numbers = list(range(len(checked.held)))

    def validate(compiled: Any, rows: Iterable[int]) -> tuple[float, None]:
        asked = [int(row) for row in rows]
        run = openvino.classifier(compiled)
        return checked.f1(np.concatenate([run(checked.held.encodings[row]) for row in asked]), asked), None

    common = {"model_type": nncf.ModelType.TRANSFORMER, "subset_size": len(checked.calibration)}
    scope = nncf.IgnoredScope(names=[openvino._logits_layer(model)])  # noqa: SLF001
    calibration = nncf.Dataset(checked.calibration.encodings)
    start = time.monotonic()
    changed = nncf.quantize_with_accuracy_control(
        model, calibration, nncf.Dataset(numbers), validate, max_drop=guard, ignored_scope=scope, **common
    )
    seconds = time.monotonic() - start
    plain = nncf.quantize(model, calibration, ignored_scope=scope, **common)
    hint = "bf16" if not openvino.lacks_bf16() else "f32"
    before, after = (openvino.classifier(openvino.compile_model(one, hint)) for one in (plain, changed))
    quantized = [classifier.evidence["quantized_ops"] for classifier in (before, after)]
    found, flips = checked.drop(after)
    latency = ratio(after, before, rescue.median(checked.test.encodings))
    return checked.drop(before)[0], quantized[0] - quantized[1], quantized[0], found, flips, latency, seconds


def main() -> None:
    """Print a line for each checkpoint, guard and search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="CHECKPOINT:DATASET")
    parser.add_argument("--guards", default="0.005,0.01")
    parser.add_argument("--documents", type=int, default=2000, help="held-out rows")
    parser.add_argument("--variants", default="int8-native", help="of int8-native, to be rescued")
    parser.add_argument("--without-nncf", action="store_true")
    options = parser.parse_args()
    print(("{:14}{:>7} {:16}" + "{:>9}" * 7).format(*COLUMNS))
    for source in options.sources:
        checked = Checked(source, options.documents)
        for guard in map(float, options.guards.split(",")):
            searches: dict[str, Callable[[], tuple[object, ...]]] = {
                name: partial(ours, checked, guard, options.documents, name) for name in options.variants.split(",")
            }
            if not options.without_nncf:
                searches["nncf"] = partial(nncf_control, checked, guard)
            for name, search in searches.items():
                with silent() if name == "nncf" else contextlib.nullcontext():
                    figures = search()
                shown = [f"{figure:.4f}" if isinstance(figure, float) else str(figure) for figure in figures]
                folder = checked.checkpoint.folder.name
                print(f"{folder:14}{guard:>7g} {name:16}" + "".join(f"{figure:>9}" for figure in shown), flush=True)


if __name__ == "__main__":
    main()
