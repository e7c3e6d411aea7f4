"""What a variant is: the row of the table, and the classifier that its function returns."""

import importlib.util
import inspect
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qbert.system import forks
from qbert.system.errors import EXTRAS, pip_install

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from qbert.inputs.tokenizer import Encoding

    Run = Callable[[Encoding], npt.NDArray[np.float32]]
    RunMany = Callable[[Sequence[Encoding]], npt.NDArray[np.float32]]

CONVERTERS = ("torch", "transformers")
"""The packages that make every variant, and that run those of PyTorch eager."""
SLOW_IMPORTS = {"transformers": ("transformers.modeling_utils", "transformers.models.auto.modeling_auto")}
"""What a package imports only when it is asked for: 5 s of a core for PyTorch's variants."""
MAX_DROP = 0.01  # commonly accepted of quantized classifiers; the least that 500 documents can tell from 0


TOKENS_AT_ONCE = 512
"""Of several texts in one call: their activations stay in the caches."""

Products = Iterator[tuple[str, str, Callable[[int], Callable[[], Any]]]]
"""For each of a runtime's products with one weight: precision, library, and what makes a call for a number of rows."""


@dataclass(frozen=True)
class Classifier:
    """A built variant: one encoding in, logits out; threads may share it."""

    run: "Run"
    """Takes arrays of shape `(1, length)`, returns logits of shape `(1, num_labels)`."""
    evidence: Mapping[str, Any]
    """Shows that it is what its name says: `threads`, `precision`, `quantized_ops` of what really runs.

    `stated` is true where the author of the classifier states the quantized operations, and no module of this project
    counted them.
    """
    concurrent: bool = False
    """Whether the runtime documents that calls of `run` may overlap; else calls wait for one another."""
    run_many: "RunMany | None" = None
    """Takes several encodings and returns logits `(encodings, num_labels)`, to the bit those of `run` one by one."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Mark the evidence as stated; only `counted` removes the mark."""
        if self.evidence.get("quantized_ops"):
            object.__setattr__(self, "evidence", {**self.evidence, "stated": True})

    @classmethod
    def counted(
        cls, run: "Run", evidence: Mapping[str, Any], *, concurrent: bool = False, run_many: "RunMany | None" = None
    ) -> "Classifier":
        """Return a classifier made by a module of this project, which counted the operations that run."""
        classifier = cls(run, evidence, concurrent, run_many)
        object.__setattr__(classifier, "evidence", dict(evidence))
        return classifier

    def __call__(self, encoding: "Encoding") -> "npt.NDArray[np.float32]":
        """Return the logits, `(1, num_labels)`, of one encoding."""
        with forks.call():
            if self.concurrent:
                return self.run(encoding)
            with self._lock:
                return np.array(self.run(encoding))  # a copy: the next call may overwrite the array

    def many(self, encodings: "Sequence[Encoding]") -> "npt.NDArray[np.float32]":
        """Return the logits, `(encodings, num_labels)`, of several encodings: in one call where the runtime has that.

        Others classify one after the other: padding, and scales that are of a whole batch, would change answers.
        """
        if self.run_many is None:
            return np.concatenate([self(encoding) for encoding in encodings])
        logits = []
        for together in _groups(encodings):  # a lock for each: other threads, and forks, wait for one alone
            with forks.call(), self._lock:
                logits.append(np.array(self.run_many(together)))
        return np.concatenate(logits)


def _groups(encodings: "Sequence[Encoding]") -> "Iterator[list[Encoding]]":
    """Yield the encodings that go into a call together: TOKENS_AT_ONCE, or one that has more."""
    together: list[Encoding] = []
    tokens = 0
    for encoding in encodings:
        own = encoding["input_ids"].shape[1]
        if together and tokens + own > TOKENS_AT_ONCE:
            yield together
            together, tokens = [], 0
        together.append(encoding)
        tokens += own
    if together:
        yield together


@dataclass(frozen=True)
class Variant:
    """One way to run a checkpoint."""

    name: str
    runtime: str
    precision: str
    """`fp32`, `bf16`, `int8` or `int8-bf16`; with int8 there must be evidence of quantized operations."""
    load: Callable[..., Classifier]
    """`load(folder, **options)`: read what `export` wrote, or the checkpoint itself where there is no export."""
    export: Callable[..., None] | None = None
    """`export(checkpoint, folder, **options)`: fill an empty folder with what `load` reads."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for `load` and `export`; each gets those that it accepts."""
    calibrated: bool = False
    """Whether `export` also takes `calibration`, a list of encodings of training documents."""
    packages: tuple[str, ...] = ()
    """The packages that making it needs, besides torch and transformers, which every variant needs."""
    packages_to_load: tuple[str, ...] | None = None
    """The packages that loading it needs; None: the same as `packages`."""
    needs: str = "nothing more"
    """What it needs of the machine, in words."""
    kernels: tuple[str, ...] = ()
    """The kernels of our own that `pack` knows."""
    pack: "Callable[[Path, Sequence[str]], None] | None" = None
    """`pack(folder, kernels)`: add to what `export` wrote what `load` reads where the kernels of these names run."""
    batched: bool = False
    """Whether its classifier has `run_many`."""
    derived_from: str = ""
    """The name of the row that this one is, with a number of threads or of texts in a call; `all` leaves it out."""
    unread: Callable[..., Collection[str]] = lambda _: ()
    """`unread(folder, **options)`: the files there that `load` would not read now, so they need no check. Of another
    module than `load` it counts for nothing.
    """
    unsupported: Callable[[], str] = lambda: ""
    """Returns why this machine cannot run it; empty where it can. It is fast: it does not import the runtime."""
    unmakeable: Callable[[], str] = lambda: ""
    """Returns what this machine lacks to make it, though not to load it; empty where nothing."""
    default: bool = True
    """Whether `default`, which runs where no variants are named, includes it."""
    max_drop: float = MAX_DROP
    """The greatest drop of the score that is allowed where nobody says another one."""
    max_f1_drop: float | None = None
    """The former name of `max_drop`, for those who give it."""

    def __post_init__(self) -> None:
        """Take what is given by the former name."""
        if self.max_f1_drop is not None:
            object.__setattr__(self, "max_drop", self.max_f1_drop)
            object.__setattr__(self, "max_f1_drop", None)

    @property
    def of_one_length(self) -> bool:
        """Whether `export` takes `max_length`: its graph is for that number of tokens."""
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

    @property
    def to_load(self) -> tuple[str, ...]:
        """The packages that loading it needs."""
        return self.packages if self.packages_to_load is None else self.packages_to_load

    @property
    def modules(self) -> list[str]:
        """The modules that loading it imports, those that take long."""
        return [name for package in self.to_load for name in SLOW_IMPORTS.get(package, (package,))]

    def missing(self, *, made: bool = False) -> str:
        """Return why it cannot run here or, unless it was `made` already, be made; empty where it can."""
        needed = self.to_load if made else (*CONVERTERS, *self.packages)
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            extras = dict.fromkeys(EXTRAS.get(name, "") for name in missing)
            command = pip_install(*extras) if all(extras) else f"pip install {' '.join(missing)}"
            return f"{' and '.join(missing)} not installed: {command}"
        return self.unsupported() or ("" if made else self.unmakeable())


def qualified(function: Callable[..., Any]) -> str:
    """Return the name by which saved runs and artefacts know `function`."""
    return f"{function.__module__}.{function.__qualname__}"
