"""One side of `qbert gate`: a process that builds cells of its own tree and environment, and times them when asked.

It reads a request a line from standard input, `{"do": NAME, ...}`, and answers each with a line of JSON,
`{"answer": ...}` or `{"error": SENTENCE}`. The gate runs this very file for both sides, so that both are timed by the
same lines; what it imports of qbert is the side's own. What the side's may be too old to have lies beside this file.
"""

import gc
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import math
import operator
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

    from qbert.suite import Cell, Suite

WARM_UP_S = 0.15  # as qbert.latency's, and for its reasons; here so that another tree's cannot differ
# What disturbs a shared machine comes in bursts of 50 ms and more, so turns are short: in such a burst the medians of a
# second's turns of 50 ms spread by 5 %, those of 10 ms by 1 % (BERT-tiny int8, AMD Zen 5).
BLOCK_S = 0.006
SETTLE_S = 0.004
CACHES_FILLED_S = 0.02
RUNS = ("qbert.suite", "qbert.accuracy", "qbert.evaluate", "qbert.latency", "qbert.footprint")
"""What of qbert a side runs, by its names now and before, beside all that these import and its plugins."""


def _beside(name: str) -> "ModuleType":
    """Return the module `name` that lies beside this file, whether or not the side's qbert has such a one."""
    spec = importlib.util.spec_from_file_location(f"_gate_{name}", Path(__file__).parents[1] / f"{name}.py")
    assert spec is not None  # noqa: S101  it is a Python file
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _first(*names: str) -> "ModuleType":
    """Return the first of the modules `names` that the side's qbert has: of its name now, and of a release ago."""
    name = next((one for one in names if importlib.util.find_spec(one)), names[0])
    return importlib.import_module(name)


class Worker:
    """What the gate can ask for; a cell is named by `model`, `max_length` and `variant`."""

    def __init__(self) -> None:
        """Begin without a suite: `open` makes it."""
        self._suite: Suite | None = None
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
        """Return the names of `models`, in their order, and of `variants`; `lenient` leaves out those not here."""
        self._plugins = plugins
        for name in plugins:
            importlib.import_module(name)
        from qbert import dataset as datasets
        from qbert import variants as table
        from qbert.suite import Suite

        wanted = [name.strip() for name in variants.split(",")]
        if lenient:
            here = {variant.name for variant in table.select("all")} | {"default", "all"}
            wanted = [name for name in wanted if name in here]
        chosen = [variant.name for variant in table.select(",".join(wanted))] if wanted else []
        self._suite = Suite(datasets.load(dataset), models, max_lengths=max_lengths)
        names = dict(zip(dict.fromkeys(models), self._suite.models, strict=True))
        return {"models": [names[model] for model in models], "variants": chosen}

    def fingerprints(self) -> dict[str, Any]:
        """Return what decides what this side does, `same` where the other's is equal, and the `files` of its code."""
        geometries = _first("qbert.training", "qbert.train").GEOMETRIES

        assert self._suite is not None, "open comes first"  # noqa: S101  the gate's mistake, no person's
        suite, sources = self._suite, _beside("sources")
        installed = {f"{found.name} {found.version}" for found in importlib.metadata.distributions()}
        return {
            "same": {
                "code": sources.sha256(*RUNS, *self._plugins),
                "libraries": [sys.version, *sorted(installed)],
                "models": [
                    model.source if model.source in geometries else suite.checkpoint(model, suite.max_lengths[0]).sha256
                    for model in suite.models.values()
                ],
                "dataset": suite.dataset.sha256,
            },
            "files": sorted(map(str, sources.files(*RUNS, *self._plugins).values())),
        }

    def _cell(self, model: str, max_length: int, variant: str) -> "Cell":
        assert self._suite is not None, "open comes first"  # noqa: S101  the gate's mistake, no person's
        return self._suite.cell(model, max_length, variant)

    def prepare(self, **named: Any) -> dict[str, Any]:  # noqa: ANN401
        """Make what the cell is loaded from and load it once; return its description, its size, and how to load it."""
        cell = self._cell(**named)
        load = cell.variant.load
        parameters = inspect.signature(load).parameters
        every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        encoding = cell.encoder.fill(cell.suite.dataset, cell.max_length)
        if not np.isfinite(cell.classifier(encoding)).all():
            raise _first("qbert.errors", "qbert").CannotRunError(
                f"{cell.name} answers with nan or infinity: leave the model or the variant out"
            )
        return cell.describe(cell.classifier.evidence) | {
            "disk_bytes": cell.disk_bytes,
            "load": {
                "plugins": self._plugins,
                "module": load.__module__,
                "function": load.__qualname__,
                "options": {name: one for name, one in cell.variant.options.items() if every or name in parameters},
                "folder": str(cell.folder.resolve()),
                "encoding": {name: ids.tolist() for name, ids in encoding.items()},
            },
        }

    def judge(self, documents: int | None, **named: Any) -> dict[str, Any]:  # noqa: ANN401
        """Return what the cell answers for the test documents (labels.answers), and its F1 drop against fp32."""
        accuracy = _first("qbert.accuracy", "qbert.evaluate")

        cell = self._cell(**named)
        rows = cell.suite.dataset.documents(documents)
        logits, _ = accuracy.run(cell.classifier, cell.encoder, rows, cell.max_length)
        labels = _beside("labels")
        if getattr(cell.checkpoint.config, "problem_type", None) != labels.MULTI_LABEL:
            true = labels.one_hot(rows["label"].to_numpy(), logits.shape[1])
            predicted = labels.predicted(logits, labels.SINGLE_LABEL)
        elif hasattr(cell.checkpoint, "problem_type"):
            true, predicted = cell.suite.dataset.indicators(rows), labels.predicted(logits, labels.MULTI_LABEL)
        else:
            raise _first("qbert.errors", "qbert").InputError(
                "its qbert is of a time before multi-label models: compare with a newer one"
            )
        comparison, _ = cell.judge(rows, logits)
        return {
            "answers": labels.answers(true, predicted, logits),
            "f1_drop": comparison.f1_drop,
            "max_f1_drop": cell.variant.max_f1_drop,
        }

    def peak_memory(self, **named: Any) -> int:  # noqa: ANN401
        """Return the greatest resident size of a process that only runs this cell, in bytes."""
        from qbert import footprint

        cell = self._cell(**named)
        encoding = cell.encoder.fill(cell.suite.dataset, cell.max_length)
        return footprint.measure(cell.variant, cell.folder, encoding).peak_rss_bytes

    def build(self, cell: str, model: str, load: dict[str, Any]) -> float:
        """Load the cell as `prepare` said and warm it up; return the seconds of one call.

        Neither dataset nor tokenizer is read, and no library that its runtime does without: that takes longer than
        timing does.
        """
        self._run_on(self._allowed)
        if model != self._model:  # those of another model go, to keep within memory
            self._model = model
            self._calls.clear()
            self._classifiers.clear()
        for name in load["plugins"]:
            importlib.import_module(name)
        key = json.dumps(load | {"encoding": None})
        if key not in self._classifiers:  # else it is another length of the same
            function = operator.attrgetter(load["function"])(importlib.import_module(load["module"]))
            self._classifiers[key] = function(Path(load["folder"]), **load["options"])
        classifier = self._classifiers[key]
        encoding = {name: np.array(ids, dtype=np.int64) for name, ids in load["encoding"].items()}
        self._calls[cell] = lambda: classifier(encoding)
        calls: list[float] = []
        while sum(calls) < WARM_UP_S:
            calls.append(seconds(self._calls[cell]))
        return statistics.median(calls[len(calls) // 2 :])

    def _run_on(self, cores: set[int]) -> None:
        if self._allowed:  # else the system does not let a process choose
            os.sched_setaffinity(0, cores)

    def time(self, cell: str, cost_s: float, slowdown: float) -> float:
        """Return the seconds of one call, the median of a block; `slowdown` is a share of each call, spent idling."""
        if gc.isenabled():
            gc.collect()
            gc.disable()
        self._run_on({max(self._allowed, default=0)})  # as qbert.latency's, and for its reasons
        call = self._calls[cell]
        settling, timed = block(cost_s)
        for _ in range(settling):
            call()
        return statistics.median(seconds(call, slowdown) for _ in range(timed))


def block(cost_s: float) -> tuple[int, int]:
    """Return how many calls of `cost_s` seconds a side's turn begins with untimed, and how many it times.

    The first find caches as the other side left them; a long call refills them by itself. Of short calls a turn holds
    as many as fill BLOCK_S: the clock and the scheduler are coarser than one.
    """
    return 0 if cost_s >= CACHES_FILLED_S else math.ceil(SETTLE_S / cost_s), max(1, round(BLOCK_S / cost_s))


def seconds(call: "Callable[[], Any]", slowdown: float = 0.0) -> float:
    """Return the seconds of one call, and of the idling after it that makes it slower by the share `slowdown`."""
    start = time.perf_counter()
    call()
    end = time.perf_counter()
    if slowdown:
        until = end + slowdown * (end - start)
        while (end := time.perf_counter()) < until:
            pass
    return end - start


def told(error: Exception) -> dict[str, Any]:
    """Return what the gate is told of an error: a sentence, and whose mistake it is."""
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    known = {kind.__name__ for kind in type(error).__mro__}  # by name: a side has its own classes
    kind = "" if "InputError" in known else f"{type(error).__name__}: "
    return {
        "error": kind + (lines[0] if lines else "no message"),
        "mistake": not kind,
        "cannot": type(error).__name__ == "CannotRunError",
    }


def main() -> None:
    """Answer requests until there are no more, or the gate has ended."""
    children = _beside("children")
    children.end_with_parent()
    children.answer_requests(Worker(), told)


if __name__ == "__main__":
    main()
