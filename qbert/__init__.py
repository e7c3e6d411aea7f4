"""How much faster a quantized BERT text classifier is on this processor, and what it costs in F1."""

import importlib
import os
from typing import TYPE_CHECKING, Any

from qbert.system import former
from qbert.system.errors import InputError

if TYPE_CHECKING:
    from qbert.api import benchmark, choose, evaluate, load, quantize, runs, train
    from qbert.variants import Classifier, Variant, register
    from qbert.variants.serving import Prediction, TextClassifier

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "InputError",
    "Prediction",
    "TextClassifier",
    "Variant",
    "benchmark",
    "choose",
    "evaluate",
    "load",
    "quantize",
    "register",
    "runs",
    "train",
]

_MODULES = {"Classifier": "qbert.variants", "Variant": "qbert.variants", "register": "qbert.variants"}
_MODULES |= {"Prediction": "qbert.variants.serving", "TextClassifier": "qbert.variants.serving"}
"""The modules of names in `__all__` that are not in qbert.api. Each is imported at first use."""

# ONNX Runtime's wheels look up a telemetry host and keep a device id unless this is set before their first import.
# Child processes inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

former.install()


def __getattr__(name: str) -> Any:  # noqa: ANN401  of any type
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "qbert.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
