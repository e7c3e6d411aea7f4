"""`qbert rescue` beside NNCF's accuracy control on the same checkpoint: what each keeps, and what that costs.

    python tools/fragile.py model fragile --factor 300
    python tools/trial_rescue.py fragile:reviews --validation unseen.csv --variants int8-native,int8-openvino

Both judge by the same held-out rows: qbert by the upper end of the drop's interval, NNCF's accuracy control, as its
documentation calls it, by the drop. For each checkpoint and guard it prints the drop on the test split of plain
int8; how many layers were kept in float, of how many; with them, drop and flips on the test split, and the latency
beside plain int8 of the same runtime (calls in turn); and the seconds of the search, from fp32's answers on. Plain int8
was made before; NNCF's seconds include that, since it makes it itself. `nncf-unsmoothed` is NNCF's without SmoothQuant.
"""

import argparse
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qbert import variants
from qbert.inputs import dataset as datasets
from qbert.measure.cells import baseline_of
from qbert.selection import kept_answers, rescue
from qbert.selection.rescue import judging
from qbert.selection.rescue.openvino import int8_products
from qbert.selection.rescue.search import timed
from qbert.system.cache import cache_dir
from qbert.system.machine import one_core
from qbert.system.terminal import silent
from qbert.variants import openvino
from qbert.variants.artefact import Artefact

NNCF: dict[str, Callable[[], Any]] = {"nncf": lambda: None, "nncf-unsmoothed": lambda: openvino.parameters(alpha=-1)}
"""Its parameters: as it comes, and without SmoothQuant, from which its accuracy control does not recover."""
COLUMNS = ("checkpoint", "guard", "search", "plain", "kept", "of", "drop", "flips", "latency", "search s")


class Checked:
    """A checkpoint with its dataset and the documents that both searches judge by."""

    def __init__(self, source: str, documents: int, validation: Path | None, names: Iterable[str]) -> None:
        folder, _, dataset = source.partition(":")
        self.source, self.dataset = folder, datasets.load(dataset)
        self.documents, self.validation = documents, validation
        self.baseline = baseline_of(folder, self.dataset)
        self.checkpoint = self.baseline.checkpoint
        for name in names:
            _ = self.baseline.suite.cell(self.baseline.model.name, self.baseline.max_length, name).folder
        held, _ = self.dataset.to_choose_by(validation, variants.CALIBRATION_DOCUMENTS, None)
        self.held, self.test = (
            judging.ask(self.baseline, rows, what)
            for rows, what in ((held[:documents], "held out"), (self.dataset.test, "test"))
        )

    def drop(self, classifier: Any) -> tuple[float, int]:
        """Return the drop and the flips on the test split."""
        logits = np.concatenate([classifier(encoding) for encoding in self.test.encodings])
        comparison = judging.Judge(self.dataset, self.baseline.metric, 0).judge(self.test, logits)
        return comparison.drop, comparison.flips or 0

    def score(self, logits: Any, rows: Iterable[int]) -> float:
        """Return the score of `logits` of those of the held-out documents."""
        metric = self.baseline.metric
        return metric.score(metric.truth(self.dataset, self.held.rows.iloc[list(rows)]), metric.answers(logits))


def ours(checked: Checked, guard: float, variant: str) -> tuple[object, ...]:
    """Return a row's figures from what `qbert rescue` does, which knows fp32's answers alone."""
    with tempfile.TemporaryDirectory() as place:
        folder, known = Path(place) / "out", Path(place) / "answers"
        known.mkdir()
        for path in (cache_dir() / "answers").glob("fp32-*"):
            shutil.copy(path, known)
        kept_answers.cache_dir = lambda: Path(place)
        rescued = rescue.rescue(
            checked.source,
            str(checked.dataset.folder),
            guard,
            folder,
            variant=variant,
            documents=checked.documents,
            validation=checked.validation,
        )
        kept_answers.cache_dir = cache_dir
        search = sum(rescued.seconds.get(step, 0.0) for step in ("export", "plain", "sensitivity", "search"))
        plain = rescued.plain_test.drop if rescued.plain_test else float("nan")
        if not rescued.holds:
            return plain, "none", rescued.every, "", "", rescued.latency_ratio, search
        classifier = Artefact.open(folder).load()
        found, flips = checked.drop(classifier)
        every = len(classifier.evidence.get("kept_ops", ())) + classifier.evidence["quantized_ops"]
        return plain, len(rescued.kept), every, found, flips, rescued.latency_ratio, search


def nncf_control(checked: Checked, guard: float, parameters: Any = None) -> tuple[object, ...]:
    """Return a row's figures from NNCF's quantize_with_accuracy_control, as its documentation calls it."""
    openvino.module()
    import nncf

    model = openvino.convert(checked.checkpoint, checked.checkpoint.load())
    texts = checked.dataset.training_texts(variants.CALIBRATION_DOCUMENTS)
    sample = [checked.baseline.encoder(*text, max_length=checked.baseline.max_length) for text in texts]

    def validate(compiled: Any, rows: Iterable[int]) -> tuple[float, None]:
        asked = [int(row) for row in rows]
        run = openvino.runner(compiled)
        return checked.score(np.concatenate([run(checked.held.encodings[row]) for row in asked]), asked), None

    settings, calibration = openvino.settings(model, len(sample)), nncf.Dataset(sample)
    start = time.monotonic()
    validation = nncf.Dataset(list(range(len(checked.held))))
    changed = nncf.quantize_with_accuracy_control(
        model,
        calibration,
        validation,
        validate,
        max_drop=guard,
        advanced_quantization_parameters=parameters,
        **settings,
    )
    seconds = time.monotonic() - start
    plain = nncf.quantize(model, calibration, advanced_parameters=parameters, **settings)
    with one_core():
        before, after = (openvino.classifier(openvino.compile_model(one, "f32")) for one in (plain, changed))
    every, left = (len(int8_products(one)) for one in (plain, changed))
    found, flips = checked.drop(after)
    after_s, before_s = timed(lambda kept: after if kept else before, checked.test.median, [["some"], []]).T
    ratio = float(np.median(after_s / before_s))
    return checked.drop(before)[0], every - left, every, found, flips, ratio, seconds


def main() -> None:
    """Print a line for each checkpoint, guard and search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="CHECKPOINT:DATASET")
    parser.add_argument("--guards", default="0.005,0.01")
    parser.add_argument("--documents", type=int, default=2000, help="held-out rows")
    parser.add_argument("--validation", type=Path, help="file of held-out rows; default: of train.csv")
    parser.add_argument("--variants", default="int8-native,int8-onnxruntime,int8-openvino", help="to be rescued")
    parser.add_argument("--nncf", default=",".join(NNCF), help="ways to call it; empty: none")
    options = parser.parse_args()
    names, ways = (list(filter(None, given.split(","))) for given in (options.variants, options.nncf))
    lines = [("{:14}{:>7} {:16}" + "{:>9}" * 7).format(*COLUMNS)]
    for source in options.sources:
        checked = Checked(source, options.documents, options.validation, names)
        for guard in map(float, options.guards.split(",")):
            searches: dict[str, Callable[[], tuple[object, ...]]] = {
                name: partial(ours, checked, guard, name) for name in names
            } | {way: partial(nncf_control, checked, guard, NNCF[way]()) for way in ways}
            for name, search in searches.items():
                with silent() if name in ways else contextlib.nullcontext():
                    figures = search()
                shown = [f"{figure:.4f}" if isinstance(figure, float) else str(figure) for figure in figures]
                folder = checked.checkpoint.folder.name
                lines.append(f"{folder:14}{guard:>7g} {name:16}" + "".join(f"{figure:>9}" for figure in shown))
                print(lines[-1], flush=True)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
