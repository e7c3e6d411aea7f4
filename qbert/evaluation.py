"""Judge the variants of a model by a dataset's test documents, one by one: `qbert evaluate`."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert import accuracy, cluster, models, variants
from qbert import dataset as datasets
from qbert.dataset import text_rows
from qbert.errors import CannotRunError, InputError
from qbert.suite import Cell, Suite
from qbert.team import Team
from qbert.terminal import progress
from qbert.variants import Variant

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Evaluation:
    """The results of one model."""

    model: str
    dataset: str
    documents: int
    max_length: int
    results: list[dict[str, Any]]
    """A row for each variant; if it cannot run this model, `cannot` gives the reason."""
    notes: list[str] = field(default_factory=list)
    """What is to be said of the workers of a cluster."""

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
    model: str,
    dataset: str,
    names: str,
    max_length: int | None = None,
    documents: int | None = None,
    address: str | None = None,
) -> Evaluation:
    """Classify the test documents of `dataset` with fp32 and each variant of the list `names`.

    The workers of the Dask cluster at `address` (cluster.connect) share the documents, if it is given.

    Raises:
        InputError: model, dataset, a name or the length cannot be used, or the cluster does not answer.
    """
    chosen = sorted(variants.select(names), key=lambda variant: variant.name != variants.BASELINE)
    loaded = datasets.load(dataset)
    max_length = max_length or models.max_length_of(model)
    suite = Suite(loaded, [model], max_lengths=[max_length])
    (name,) = suite.models
    rows = loaded.documents(documents)
    results: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        team = stack.enter_context(_team(address, chosen)) if address is not None else None
        suite.checkpoint(suite.models[name], max_length).check_trained(model)  # an error of the model is no variant's
        advance = stack.enter_context(progress(chosen[0].name, len(rows) * len(chosen)))
        for number, variant in enumerate(chosen):
            cell = suite.cell(name, max_length, variant.name)
            advance_here = partial(_advance, advance, number * len(rows), variant.name)
            try:
                logits, seconds, described = _judge(cell, rows, team, advance_here)
                accuracy.check_finite(logits, cell.name)
            except CannotRunError as error:
                if cell.is_baseline:
                    raise
                results.append({"model": name, "max_length": max_length, "variant": variant.name, "cannot": str(error)})
                continue
            comparison, flips = cell.judge(rows, logits)
            times = accuracy.percentiles(seconds) if len(seconds) else {}
            results.append(described | dataclasses.asdict(comparison) | times | {"flipped": flips})
    return Evaluation(name, loaded.name, len(rows), max_length, results, team.notes if team else [])


def _advance(advance: Callable[..., None], before: int, what: str, done: int) -> None:
    advance(before + done, what)


@contextlib.contextmanager
def _team(address: str, chosen: Sequence[Variant]) -> Iterator[Team]:
    with cluster.connect(address) as client:
        yield Team(client, tuple(name for variant in chosen for name in variant.packages))


def _judge(
    cell: Cell, documents: "pd.DataFrame", team: Team | None, advance: Callable[[int], None]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], dict[str, Any]]:
    """Return the logits and seconds of `documents`, and what the cell is, by this process or by a cluster's workers."""
    if team is None:
        classifier = cell.classifier
        return *accuracy.run(classifier, cell.encoder, documents, cell.max_length, advance), cell.describe(
            classifier.evidence
        )
    rows = text_rows(documents)
    trial = rows[: accuracy.WARM_UP_DOCUMENTS]
    job = team.job(cell.variant, cell.checkpoint, cell.suite.dataset, cell.max_length, trial)
    logits, seconds, evidence = team.judge(job, rows, advance)
    described = cell.describe(evidence)
    described["identity"] |= team.identity
    return logits, seconds, described
