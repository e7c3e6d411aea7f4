"""One side of `qbert gate`: a process that builds cells from its own tree and environment, and times them on request.

The gate runs this very file for both sides, so that the same code times both; the qbert that it imports is the side's
own. Modules that an old side may lack come from this file's qbert: qbert.system.worker has how requests are answered.
"""

import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from qbert.measure.cells import Suite

RUNS = (
    ("qbert.measure.cells", "qbert.suite"),
    ("qbert.measure.accuracy", "qbert.accuracy", "qbert.evaluate"),
    ("qbert.measure.latency", "qbert.latency"),
    ("qbert.measure.footprint", "qbert.footprint"),
)
"""The modules of qbert that a side runs, by current and former names; their imports and the plugins are added."""
ERRORS = ("qbert.system.errors", "qbert.errors", "qbert")


def own_module(room: str, name: str) -> "ModuleType":
    """Return the module `name` of the qbert that this file belongs to; the side's qbert may lack it."""
    spec = importlib.util.spec_from_file_location(f"_gate_{name}", Path(__file__).parents[1] / room / f"{name}.py")
    assert spec is not None  # noqa: S101  it is a Python file
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for it
    spec.loader.exec_module(module)
    return module


def first_module(*names: str) -> "ModuleType":
    """Return the first of the modules `names`, current and former ones, that the side's qbert has."""
    return importlib.import_module(first_name(*names))


def first_name(*names: str) -> str:
    """Return the first of the modules' `names` that the side's qbert has; the first of all where it has none."""
    return next(filter(_exists, names), names[0])


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even its package exists
        return False


timing = own_module("system", "worker")
# Disturbances of a shared machine come in bursts of 50 ms and more, so turns are short: in such a burst the medians of
# a second's turns of 50 ms spread by 5 %, those of 10 ms by 1 % (BERT-tiny int8, AMD Zen 5).
TURN = timing.Turn(block_s=0.006, settle_s=0.004, caches_filled_s=0.02)


class Worker:
    """The requests that the gate can make; a cell is named by `model`, `max_length` and `variant`."""

    _suite: "Suite"
    """What `open` has made."""

    def __init__(self) -> None:
        """Start with nothing loaded, on the cores that this process may use."""
        self._plugins: list[str] = []
        self._calls: dict[str, Callable[[], Any]] = {}
        self._classifiers: dict[str, Callable[[Any], Any]] = {}
        self._model = ""
        self._allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()

    def open(
        self,
        plugins: list[str],
        dataset: str,
        models: list[str],
        max_lengths: list[int],
        variants: str,
        *,
        lenient: bool,
    ) -> dict[str, Any]:
        """Make the suite; return the names of `models`, in order, and `variants`; `lenient` skips unknown variants."""
        self._plugins = plugins
        for name in plugins:
            importlib.import_module(name)
        from qbert import variants as table

        datasets = first_module("qbert.inputs.dataset", "qbert.dataset")
        wanted = [name.strip() for name in variants.split(",")]
        if lenient:
            known = {variant.name for variant in table.select("all")} | {"default", "all"}
            wanted = [name for name in wanted if name in known]
        chosen = [variant.name for variant in table.select(",".join(wanted))] if wanted else []
        self._suite = first_module(*RUNS[0]).Suite(datasets.load(dataset), models, max_lengths=max_lengths)
        names = dict(zip(dict.fromkeys(models), self._suite.models, strict=True))
        return {"models": [names[model] for model in models], "variants": chosen}

    def fingerprints(self) -> dict[str, Any]:
        """Return `same`, which identifies code, libraries, models and dataset of the side, and the code's `files`."""
        geometries = first_module("qbert.inputs.training", "qbert.training", "qbert.train").GEOMETRIES
        suite, sources = self._suite, own_module("system", "sources")
        modules = [*(first_name(*names) for names in RUNS), *self._plugins]
        installed = {f"{package.name} {package.version}" for package in importlib.metadata.distributions()}
        return {
            "same": {
                "code": sources.sha256(*modules),
                "libraries": [sys.version, *sorted(installed)],
                "models": [
                    model.source if model.source in geometries else suite.checkpoint(model, suite.max_lengths[0]).sha256
                    for model in suite.models.values()
                ],
                "dataset": suite.dataset.sha256,
            },
            "files": sorted(map(str, sources.files(*modules).values())),
        }

    def prepare(self, **named: Any) -> dict[str, Any]:  # noqa: ANN401
        """Build the cell's folder and load it once; return the cell's description, its size, and how to load it."""
        cell = self._suite.cell(**named)
        encoding = cell.encoder.fill(cell.suite.dataset, cell.max_length)
        if not np.isfinite(cell.classifier(encoding)).all():
            raise first_module(*ERRORS).CannotRunError(
                f"{cell.name} answers with nan or infinity: leave the model or the variant out"
            )
        return cell.describe(cell.classifier.evidence) | {
            "disk_bytes": cell.disk_bytes,
            "load": {
                "plugins": self._plugins,
                "loading": timing.loading(cell.variant.load, cell.folder, cell.variant.options),
                "encoding": {name: ids.tolist() for name, ids in encoding.items()},
            },
        }

    def judge(self, documents: int | None, **named: Any) -> dict[str, Any]:  # noqa: ANN401
        """Return the cell's answers for the test documents (Metric.record), and its drop against fp32."""
        accuracy = first_module(*RUNS[1])
        cell = self._suite.cell(**named)
        rows = cell.suite.dataset.documents(documents)
        logits, _ = accuracy.run(cell.classifier, cell.encoder, rows, cell.max_length)
        comparison, _ = cell.judge(rows, logits)
        if hasattr(cell, "metric"):
            answers = cell.metric.record(cell.metric.truth(cell.dataset, rows), logits)
            return {"answers": answers, "drop": comparison.drop, "max_drop": cell.variant.max_drop}
        # Its qbert is of a time when all was judged by F1.
        labels = own_module("inputs", "labels")
        if getattr(cell.checkpoint.config, "problem_type", None) != labels.MULTI_LABEL:
            true = labels.one_hot(rows["label"].to_numpy(), logits.shape[1])
            predicted = labels.predicted(logits, labels.SINGLE_LABEL)
            if order := getattr(cell.model, "label_order", ()):
                true = true[:, order]
        elif hasattr(cell.checkpoint, "problem_type"):
            true = getattr(cell, "dataset", cell.suite.dataset).indicators(rows)
            predicted = labels.predicted(logits, labels.MULTI_LABEL)
        else:
            raise first_module(*ERRORS).InputError(
                "its qbert is of a time before multi-label models: compare with a newer one"
            )
        return {
            "answers": labels.answers(true, predicted, logits),
            "drop": comparison.f1_drop,  # type: ignore[attr-defined]
            "max_drop": cell.variant.max_f1_drop,
        }

    def peak_memory(self, **named: Any) -> int:  # noqa: ANN401
        """Return the peak resident memory, in bytes, of a process that only runs this cell."""
        footprint = first_module(*RUNS[3])
        cell = self._suite.cell(**named)
        encoding = cell.encoder.fill(cell.suite.dataset, cell.max_length)
        return int(footprint.measure(cell.variant, cell.folder, encoding).peak_rss_bytes)

    def build(self, cell: str, model: str, load: dict[str, Any]) -> float:
        """Load the cell by the `load` that `prepare` answered, and warm it up; return the seconds of one call.

        It reads neither dataset nor tokenizer, and imports only the libraries that the runtime needs: more would take
        longer than timing.
        """
        self._run_on(self._allowed)
        if model != self._model:  # classifiers of another model are dropped to save memory
            self._model = model
            self._calls.clear()
            self._classifiers.clear()
        for name in load["plugins"]:
            importlib.import_module(name)
        key = json.dumps(load["loading"])
        if key not in self._classifiers:  # all lengths may share one classifier
            self._classifiers[key] = timing.load(**load["loading"])
        classifier = self._classifiers[key]
        encoding = {name: np.array(ids, dtype=np.int64) for name, ids in load["encoding"].items()}
        self._calls[cell] = lambda: classifier(encoding)
        return float(timing.warm_up(lambda: timing.time_call(self._calls[cell])))

    def _run_on(self, cores: set[int]) -> None:
        if self._allowed:  # empty if the system does not let a process choose its cores
            os.sched_setaffinity(0, cores)

    def time(self, cell: str, cost_s: float, slowdown: float) -> float:
        """Return the median seconds of a block's calls; each call is followed by idling for its share `slowdown`."""
        if gc.isenabled():
            gc.collect()
            gc.disable()
        self._run_on({max(self._allowed, default=0)})  # as in qbert.system.machine.one_core
        for _ in range(TURN.settling_calls(cost_s)):
            self._calls[cell]()
        return statistics.median(seconds(self._calls[cell], slowdown) for _ in range(TURN.timed_calls(cost_s)))


def seconds(call: "Callable[[], Any]", slowdown: float = 0.0) -> float:
    """Return the seconds of one call, including idling after it for the share `slowdown` of its time."""
    called_s = float(timing.time_call(call))
    if not slowdown:
        return called_s
    end = time.perf_counter()
    while (idle_s := time.perf_counter() - end) < slowdown * called_s:
        pass
    return called_s + idle_s


if __name__ == "__main__":
    timing.answer_requests(Worker())
