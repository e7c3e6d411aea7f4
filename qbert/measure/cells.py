"""The cells of a run: its models, lengths and variants, each built at first use."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert import variants
from qbert.inputs import metrics, models
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset, text_rows
from qbert.inputs.labels import packed_logits
from qbert.inputs.metrics import Metric
from qbert.inputs.models import Model
from qbert.inputs.settings import DEFAULTS
from qbert.inputs.tokenizer import Encoder
from qbert.measure import accuracy, roofline
from qbert.system import machine, worker
from qbert.system.errors import InputError
from qbert.system.terminal import silent
from qbert.variants import BASELINE, Classifier, Variant
from qbert.variants.build_processes import make_missing

if TYPE_CHECKING:
    import pandas as pd


def baseline_of(model: str, dataset: Dataset, max_length: int | None = None) -> "Cell":
    """Return the cell of fp32 for one model, which has to be trained; by default at the length it was trained at.

    Raises:
        InputError: it cannot be used, or is not trained.
    """
    max_length = max_length or models.max_length_of(model)
    suite = Suite(dataset, [model], max_lengths=[max_length])
    (name,) = suite.models
    suite.checkpoint(suite.models[name], max_length).check_trained(model)
    return suite.cell(name, max_length, BASELINE)


class Suite:
    """Builds what the cells of a run need, and keeps classifiers of the current model."""

    def __init__(
        self,
        dataset: Dataset,
        sources: Sequence[str] = DEFAULTS.models,
        *,
        max_lengths: Sequence[int] = DEFAULTS.max_lengths,
        experiments: int = 1,
        fine_tune: bool = False,
        machine_name: str = "",
    ) -> None:
        """Check that the models `sources` (built-in names, folders, hub ids) fit the dataset and the lengths.

        With `fine_tune` a folder or hub id is a base model, trained on the dataset for each length and experiment. By
        `machine_name` saved runs know this machine; without one, by its processor.

        Raises:
            InputError: a model cannot be used, its labels are not the dataset's, or a length exceeds its positions.
        """
        self.dataset = dataset
        self.machine_name = machine_name
        self.max_lengths = tuple(max_lengths)
        self.models: dict[str, Model] = {}
        self._checkpoints: dict[Path, Checkpoint] = {}
        self._failed: dict[Any, Exception] = {}
        self._classifiers: dict[tuple[Path, str], Classifier] = {}
        self._folders: dict[tuple[Path, str, int | None], Path] = {}
        self._made: set[tuple[Path, str, int]] = set()
        self._current_model = ""
        self.judged: dict[tuple[str, int, str], dict[tuple[str, ...], npt.NDArray[np.float32]]] = {}
        """The logits of each document in a cell's accuracy pass, by the cell's names and the document's text."""
        self._baseline_logits: dict[tuple[str, int], npt.NDArray[np.float32]] = {}
        for source in dict.fromkeys(sources):
            for model in models.find(source, dataset, max_lengths, experiments=experiments, fine_tune=fine_tune):
                taken = sum(name == model.name or name.startswith(f"{model.name}-copy") for name in self.models)
                name = f"{model.name}-copy{taken}" if taken else model.name
                self.models[name] = replace(model, name=name)

    def checkpoint(self, model: Model, max_length: int) -> Checkpoint:
        """Return the checkpoint of `model` for this length; that of a built-in model is made at first use."""
        folder = model.place(self.dataset, max_length)
        if folder not in self._checkpoints:
            with self._once(folder):
                self._checkpoints[folder] = model.make(self.dataset, max_length)
        return self._checkpoints[folder]

    def classifier(self, model: Model, max_length: int, variant: Variant) -> Classifier:
        """Return the built classifier, and drop those of another model."""
        if model.name != self._current_model:
            self._classifiers.clear()
            self._current_model = model.name
        checkpoint = self.checkpoint(model, max_length)
        folder = self.folder(checkpoint, variant, max_length)
        key = (folder, variant.name)
        if key not in self._classifiers:
            with self._once(key), silent():  # a runtime that fails also writes to the terminal
                self._classifiers[key] = variants.load(variant, checkpoint, folder)
        return self._classifiers[key]

    def drop_all_but(self, variant: str) -> None:
        """Drop the classifiers of other variants, except baselines: all of BERT-base need 2 GB."""
        kept = {variant, BASELINE}
        self._classifiers = {key: classifier for key, classifier in self._classifiers.items() if key[1] in kept}

    def folder(self, checkpoint: Checkpoint, variant: Variant, max_length: int) -> Path:
        """Return the folder that `variant` is loaded from; it is built and checked once per run."""
        key = (checkpoint.folder, variant.name, max_length if variant.of_one_length else None)
        if key not in self._folders:
            with self._once(key):
                self._folders[key] = variants.prepare(variant, checkpoint, self.dataset, max_length)
        return self._folders[key]

    def make(self, cells: "Sequence[Cell]") -> None:
        """Make the missing files of `cells` of one model and length, whose checkpoint is there, on all cores."""
        first = cells[0]
        keys = {(first.checkpoint.folder, one.variant.name, one.max_length) for one in cells}
        if keys - self._made:
            self._made |= keys
            wanted = [one.variant for one in cells]
            make_missing(wanted, first.checkpoint, self.dataset, first.max_length)

    @contextlib.contextmanager
    def _once(self, key: Any) -> Iterator[None]:  # noqa: ANN401  any hashable
        """Raise the earlier error for the same `key` again: every cell reports it, none retries."""
        if failed := self._failed.get(key):
            raise failed
        try:
            yield
        except Exception as error:
            self._failed[key] = error
            raise

    def baseline_logits(
        self, cell: "Cell", documents: "pd.DataFrame", logits: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Return the baseline's logits of `documents`: `logits` if `cell` is the baseline, else computed once."""
        key = (cell.model.name, cell.max_length)
        if cell.is_baseline:
            self._baseline_logits[key] = logits
        elif key not in self._baseline_logits:
            self._baseline_logits[key] = accuracy.run(cell.baseline, cell.encoder, documents, cell.max_length)[0]
        return self._baseline_logits[key]

    def cell(self, model: str, max_length: int, variant: str) -> "Cell":
        """Return one cell."""
        return Cell(self, self.models[model], max_length, variants.get(variant))


@dataclass(frozen=True)
class Cell:
    """One model, maximum length and variant."""

    suite: Suite
    model: Model
    max_length: int
    variant: Variant

    @property
    def name(self) -> str:
        """The name, as in test ids."""
        return f"{self.model.name}-{self.max_length}-{self.variant.name}"

    def group(self, measured: str) -> str:
        """Return the title of pytest-benchmark's table for what is `measured` of this model and length."""
        return f"{measured} {self.model.name}-{self.max_length}{'' if self.model.trained else ' (untrained)'}"

    def label_benchmark(self, benchmark: Any, measured: str) -> None:  # noqa: ANN401  pytest-benchmark's fixture
        """Set the group of `benchmark`, and describe the cell in its `extra_info`."""
        benchmark.group = self.group(measured)
        benchmark.extra_info.update(self.describe(self.classifier.evidence), measured=measured)

    @property
    def is_baseline(self) -> bool:
        """Whether it is the baseline of its model and length."""
        return self.variant.name == BASELINE

    @property
    def classifier(self) -> Classifier:
        """The built variant."""
        return self.suite.classifier(self.model, self.max_length, self.variant)

    @property
    def dataset(self) -> Dataset:
        """The dataset, with its labels in the order of the model's."""
        return replace(self.suite.dataset, order=self.model.label_order)

    @property
    def metric(self) -> Metric:
        """What it is judged by."""
        checkpoint = self.checkpoint
        return metrics.of(checkpoint.problem_type, self.suite.dataset, checkpoint.activation)

    @property
    def baseline_cell(self) -> "Cell":
        """The baseline of the same model and length."""
        return replace(self, variant=variants.get(BASELINE))

    @property
    def baseline(self) -> Classifier:
        """The built baseline of the same model and length."""
        return self.baseline_cell.classifier

    @property
    def checkpoint(self) -> Checkpoint:
        """The model's checkpoint for this length."""
        return self.suite.checkpoint(self.model, self.max_length)

    @property
    def folder(self) -> Path:
        """The folder that the variant is loaded from."""
        return self.suite.folder(self.checkpoint, self.variant, self.max_length)

    @property
    def loading(self) -> Mapping[str, Any]:
        """How another process loads the classifier: `module.name(folder, **options)`."""
        return worker.loading(self.variant.load, self.folder, self.variant.options)

    @property
    def disk_bytes(self) -> int:
        """The size of all files that the variant needs, tokenizer included."""
        files = self.folder.rglob("*") if self.variant.export else self.checkpoint.files
        return sum(path.stat().st_size for path in files if path.is_file())

    @property
    def encoder(self) -> Encoder:
        """The tokenizer."""
        return self.checkpoint.encoder

    def text_classifier(self) -> Callable[..., npt.NDArray[np.float32]]:
        """Return the function from one text (or the two of a pair) to logits, `(1, num_labels)`."""
        classifier, encoder, max_length = self.classifier, self.encoder, self.max_length
        return lambda *text: classifier(encoder(*text, max_length=max_length))

    def reference(self, rows: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], npt.NDArray[np.float32]]:
        """Return the logits of each text (or pair) of `rows`: those of the accuracy pass, or from this process now."""
        # Several texts in a call have the answers of one at a time, which the accuracy pass knows.
        name = self.variant.derived_from if "batch" in self.variant.options else self.variant.name
        judged = self.suite.judged.get((self.model.name, self.max_length, name), {})
        missing = [text for text in dict.fromkeys(rows) if text not in judged]
        if not missing:
            return judged
        classify = self.text_classifier()
        return judged | {text: classify(*text)[0] for text in missing}

    def judge(
        self,
        documents: "pd.DataFrame",
        logits: npt.NDArray[np.float32],
    ) -> tuple[accuracy.Comparison, list[dict[str, Any]]]:
        """Compare this cell's `logits`, `(documents, num_labels)`, with the baseline's; return figures and flips."""
        key = self.model.name, self.max_length, self.variant.name
        self.suite.judged[key] = dict(zip(text_rows(documents), logits, strict=True))
        baseline = self.suite.baseline_logits(self, documents, logits)
        comparison = replace(
            self.compare(documents, baseline, logits), logit_error=float(np.abs(logits - baseline).mean())
        )
        return comparison, self.metric.flipped(self.dataset, documents, baseline, logits)

    def compare(
        self,
        documents: "pd.DataFrame",
        baseline: npt.NDArray[np.float32],
        logits: npt.NDArray[np.float32],
    ) -> accuracy.Comparison:
        """Compare the answers of `baseline` and `logits`, both logits `(documents, num_labels)`.

        Raises:
            CannotRunError: a logit is nan or infinity, so that it predicts nothing.
        """
        for array in (baseline, logits):
            accuracy.check_finite(array, self.name)
        metric = self.metric
        truth = metric.truth(self.dataset, documents)
        return accuracy.compare(truth, metric.answers(baseline), metric.answers(logits), metric)

    def answers(self, documents: "pd.DataFrame", logits: npt.NDArray[np.float32]) -> dict[str, Any]:
        """Return the answers from `logits`, `(documents, num_labels)`, as a saved run holds them."""
        dataset = self.dataset
        kept: dict[str, Any] = {
            **self.metric.record(self.metric.truth(dataset, documents), logits),
            **packed_logits(logits),
            **({"label_names": list(dataset.names)} if dataset.names else {}),
        }
        if len(documents) < len(dataset.test):
            kept["rows"] = " ".join(map(str, documents.index))
        return kept

    def limit(self, seconds: float, evidence: Mapping[str, Any]) -> dict[str, Any]:
        """Compare `seconds` for a full encoding with the limit of one core; return the figures for a saved run.

        The `evidence` is that of the classifier that took them.

        The shares are of roofline.Floor's two limits, and `core` is what was measured for them.

        Raises:
            InputError: `seconds` is below the limit.
        """
        work = roofline.work(self.checkpoint, self.max_length)
        if not work:
            return {}
        floor, core = self._floor(work, evidence)
        if floor.own_s > seconds:  # the limit may have been measured while a neighbour slowed the core
            roofline.core.cache_clear()
            floor, core = self._floor(work, evidence)
        if floor.own_s > seconds:
            raise InputError(
                f"{self.name} is {floor.own_s / seconds:.3g} times faster than the best that this core did, so it does "
                "not do the work, or the core was measured while the machine was busy: then run it again"
            )
        if not math.isfinite(floor.own_s):
            return {}
        return {
            "limit_definition": roofline.DEFINITION,
            "floor_s": floor.own_s,
            "share_of_limit": floor.own_s / seconds,
            "best_floor_s": floor.best_s,
            "share_of_best_limit": floor.best_s / seconds,
            "core": asdict(core),
        }

    def _floor(self, work: roofline.Work, evidence: Mapping[str, Any]) -> tuple[roofline.Floor, roofline.Core]:
        core = roofline.core(work.shapes, work.weights, self.max_length)
        attention = str(evidence.get("attention") or evidence.get("precision", ""))
        return roofline.floor(work, core, self.variant.precision, attention), core

    def describe(self, evidence: Mapping[str, Any]) -> dict[str, Any]:
        """Return the cell's names, the `evidence` of its classifier, and the identity of what is measured."""
        return {
            "model": self.model.name,
            "trained": self.model.trained,
            "max_length": self.max_length,
            "variant": self.variant.name,
            "baseline": BASELINE,
            **evidence,
            "identity": {
                **machine.identity(*self.variant.packages),
                **({"machine_name": self.suite.machine_name} if self.suite.machine_name else {}),
                "checkpoint_sha256": self.checkpoint.sha256,
                "dataset": self.suite.dataset.name,
                "dataset_sha256": self.suite.dataset.sha256,
                "definition": self.variant.definition,
                "threads": evidence.get("threads"),
            },
        }
