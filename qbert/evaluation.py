"""Judge the variants of a model by a dataset's test documents, one by one: `qbert evaluate`."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from qbert import accuracy, models, variants
from qbert import dataset as datasets
from qbert.errors import CannotRunError, InputError
from qbert.suite import Suite
from qbert.terminal import progress


@dataclass(frozen=True)
class Evaluation:
    """The results of one model."""

    model: str
    dataset: str
    documents: int
    max_length: int
    results: list[dict[str, Any]]
    """A row for each variant; if it cannot run this model, `cannot` gives the reason."""

    def check_named(self, names: str) -> None:
        """Raise InputError if a variant that the list `names` gives by name, not by `default` or `all`, cannot run.

        The message names the variants; the reasons are in `results`.
        """
        wanted = variants.named(names)
        if failed := [row["variant"] for row in self.results if "cannot" in row and row["variant"] in wanted]:
            raise InputError(
                f"{', '.join(failed)} cannot be judged on {self.model}, as said above: leave out what cannot run"
            )


def evaluate(
    model: str, dataset: str, names: str, max_length: int | None = None, documents: int | None = None
) -> Evaluation:
    """Classify the test documents of `dataset` with fp32 and each variant of the list `names`.

    Raises:
        InputError: model, dataset, a name or the length cannot be used.
    """
    chosen = variants.select(names)
    loaded = datasets.load(dataset)
    max_length = max_length or models.max_length_of(model)
    suite = Suite(loaded, [model], max_lengths=[max_length])
    (name,) = suite.models
    rows = loaded.documents(documents)
    results: list[dict[str, Any]] = []
    suite.checkpoint(suite.models[name], max_length).check_trained(model)  # an error of the model is no variant's
    for variant in sorted(chosen, key=lambda variant: variant.name != variants.BASELINE):
        cell = suite.cell(name, max_length, variant.name)
        try:
            classifier = cell.classifier
            with progress(variant.name, len(rows)) as advance:
                logits, seconds = accuracy.run(classifier, cell.encoder, rows, max_length, advance)
            accuracy.check_finite(logits, cell.name)
        except CannotRunError as error:
            if cell.is_baseline:
                raise
            results.append({"model": name, "max_length": max_length, "variant": variant.name, "cannot": str(error)})
            continue
        comparison, flips = cell.judge(rows, logits)
        times = accuracy.percentiles(seconds)
        results.append(cell.describe(classifier.evidence) | dataclasses.asdict(comparison) | times | {"flipped": flips})
    return Evaluation(name, loaded.name, len(rows), max_length, results)
