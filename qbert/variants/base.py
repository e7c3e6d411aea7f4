"""What a variant is: the row of the table, and the classifier that its function returns."""

import importlib.util
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qbert.errors import EXTRAS, pip_install

if TYPE_CHECKING:
    import numpy.typing as npt

    from qbert.tokenizer import Encoding

    Run = Callable[[Encoding], npt.NDArray[np.float32]]

CONVERTERS = ("torch", "transformers")
"""What every variant is made with, and PyTorch eager's are run with."""
MAX_F1_DROP = 0.01  # what users of quantized classifiers commonly accept; 500 documents can just tell it from 0


Products = Iterator[tuple[str, str, Callable[[], Any]]]
"""Of a runtime: precision, library, and the call of one matrix product; roofline.py measures their rate."""


@dataclass(frozen=True)
class Classifier:
    """A built variant: one encoding in, logits out; threads may share it."""

    run: "Run"
    """From arrays of shape `(1, length)` to logits of shape `(1, num_labels)`."""
    evidence: Mapping[str, Any]
    """What shows that it is what its name says: `threads`, `precision`, `quantized_ops` of what really runs.

    `stated` is true where no module of this project counted the quantized operations, but whoever made the classifier
    says that there are some.
    """
    concurrent: bool = False
    """Whether calls of `run` may overlap, as its runtime documents; else there is one at a time, and others wait."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Mark as stated what anybody may have written, or copied from a classifier whose operations were counted."""
        if self.evidence.get("quantized_ops"):
            object.__setattr__(self, "evidence", {**self.evidence, "stated": True})

    @classmethod
    def counted(cls, run: "Run", evidence: Mapping[str, Any], *, concurrent: bool = False) -> "Classifier":
        """Return what a module of this project made of a runtime's model, with what it counted in what runs."""
        classifier = cls(run, evidence, concurrent)
        object.__setattr__(classifier, "evidence", dict(evidence))
        return classifier

    def __call__(self, encoding: "Encoding") -> "npt.NDArray[np.float32]":
        """Return the logits, `(1, num_labels)`, of one encoding."""
        if self.concurrent:
            return self.run(encoding)
        with self._lock:
            return np.array(self.run(encoding))  # a copy: the next call may write where this one's answer lies


@dataclass(frozen=True)
class Variant:
    """One way to run a checkpoint."""

    name: str
    runtime: str
    precision: str
    """`fp32`, `bf16`, `int8`, or `int8-bf16`; one that says int8 has to show quantized operations."""
    load: Callable[..., Classifier]
    """`load(folder, **options)`: read what `export` wrote, or the checkpoint itself where there is no export."""
    export: Callable[..., None] | None = None
    """`export(checkpoint, folder, **options)`: fill an empty folder with what `load` reads."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """For `load` and `export`; each is passed those that it takes."""
    calibrated: bool = False
    """Whether `export` also takes `calibration`, a list of encodings of training documents."""
    packages: tuple[str, ...] = ()
    """What has to be installed to make it, beside torch and transformers, which make every variant."""
    packages_to_load: tuple[str, ...] | None = None
    """What has to be installed to load what was made; `packages` unless told."""
    needs: str = "nothing more"
    """What it needs, in words."""
    unsupported: Callable[[], str] = lambda: ""
    """Why this machine cannot run it, in words; empty where it can. Answers at once, without importing the runtime."""
    unmakeable: Callable[[], str] = lambda: ""
    """What this machine lacks to make it, which loading does without, in the same way."""
    default: bool = True
    """Whether it runs where nobody chose variants and it is available."""
    max_f1_drop: float = MAX_F1_DROP

    @property
    def of_one_length(self) -> bool:
        """Whether `export` also takes `max_length`, the number of tokens that its graph is of."""
        return self.export is not None and "max_length" in inspect.signature(self.export).parameters

    @property
    def definition(self) -> dict[str, Any]:
        """What identifies this way of running in a saved run."""
        return {
            "export": self.export and qualified(self.export),
            "load": qualified(self.load),
            "options": dict(self.options),
            "precision": self.precision,
            "runtime": self.runtime,
        }

    def missing(self, *, made: bool = False) -> str:
        """Say why it cannot be made and run here, or, where it was `made` already, why not run; empty where it can."""
        to_load = self.packages if self.packages_to_load is None else self.packages_to_load
        needed = to_load if made else (*CONVERTERS, *self.packages)
        absent = [name for name in needed if importlib.util.find_spec(name) is None]
        if absent:
            extras = dict.fromkeys(EXTRAS.get(name, "") for name in absent)
            command = pip_install(*extras) if all(extras) else f"pip install {' '.join(absent)}"
            return f"{' and '.join(absent)} not installed: {command}"
        return self.unsupported() or ("" if made else self.unmakeable())


def qualified(function: Callable[..., Any]) -> str:
    """Return the name by which saved runs and artefacts know `function`."""
    return f"{function.__module__}.{function.__qualname__}"
