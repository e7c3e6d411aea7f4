"""The table of variants: each one way to run a checkpoint, a runtime and a precision.

A new variant is one function and one row: `load(folder, **options)` reads a checkpoint and returns a
Classifier. Where something is worth keeping on disk (quantized weights, an exported graph), a second
function, `export(checkpoint, folder, **options)`, writes it, and `load` reads that folder instead.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qbert import InputError, machine
from qbert.cache import build_folder, cache_dir
from qbert.checkpoint import RECORD, Checkpoint, Encoding, write_record
from qbert.variants import eager

BASELINE = "fp32"
MAX_F1_DROP = 0.01  # what users of quantized classifiers commonly accept; 500 documents can just tell it from 0


@dataclass(frozen=True)
class Classifier:
    """A built variant: one encoding in, logits out."""

    run: Callable[[Encoding], npt.NDArray[np.float32]]
    """From arrays of shape `(1, length)` to logits of shape `(1, num_labels)`."""
    evidence: Mapping[str, Any]
    """What shows that it is what its name says: `threads`, `precision`, `quantized_ops` of what really runs."""

    def __call__(self, encoding: Encoding) -> npt.NDArray[np.float32]:
        """Return the logits, `(1, num_labels)`, of one encoding."""
        return self.run(encoding)


@dataclass(frozen=True)
class Variant:
    """One way to run a checkpoint."""

    name: str
    runtime: str
    precision: str
    """`fp32`, `bf16` or `int8`; one that says int8 has to show quantized operations."""
    load: Callable[..., Classifier]
    """`load(folder, **options)`: read what `export` wrote, or the checkpoint itself where there is no export."""
    export: Callable[..., None] | None = None
    """`export(checkpoint, folder, **options)`: fill an empty folder with what `load` reads."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Passed to `load` and `export`."""
    needs: str = "nothing more"
    """What it needs, in words."""
    missing: Callable[[], str] = lambda: ""
    """Why it cannot run here, in words; empty where it can. Answers at once, without importing the runtime."""
    default: bool = True
    """Whether it runs where nobody chose variants and it is available."""
    max_f1_drop: float = MAX_F1_DROP

    @property
    def definition(self) -> dict[str, Any]:
        """What identifies this way of running in a saved run."""
        return {
            "export": self.export and f"{self.export.__module__}.{self.export.__qualname__}",
            "load": f"{self.load.__module__}.{self.load.__qualname__}",
            "options": dict(self.options),
            "precision": self.precision,
            "runtime": self.runtime,
        }


VARIANTS: dict[str, Variant] = {}


def register(variant: Variant) -> None:
    """Add a row to the table.

    Raises:
        InputError: the name is taken, or would not do in a test id.
    """
    if variant.name in VARIANTS:
        raise InputError(f"variant {variant.name!r} is in the table already: choose another name")
    if not variant.name or not set(variant.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_."):
        raise InputError(f"variant name {variant.name!r}: take lower-case letters, digits, '-', '_' and '.'")
    VARIANTS[variant.name] = variant


for row in (
    Variant(BASELINE, "PyTorch eager", "fp32", eager.load),
    Variant(
        "bf16",
        "PyTorch eager",
        "bf16",
        eager.load,
        eager.export,
        options={"dtype": "bfloat16"},
        needs="bf16 instructions",
        missing=eager.no_bf16,
    ),
    Variant(
        "int8-dynamic",
        "PyTorch eager",
        "int8",
        eager.load_dynamic,
        eager.export_dynamic,
        options={"engine": "x86", "per_channel": False},
        needs="x86 with AVX2",
        missing=eager.no_avx2,
    ),
    Variant(
        "int8-dynamic-onednn",
        "PyTorch eager",
        "int8",
        eager.load_dynamic,
        eager.export_dynamic,
        options={"engine": "onednn", "per_channel": False},
        missing=eager.no_onednn,
    ),
    Variant(
        "int8-dynamic-per-channel",
        "PyTorch eager",
        "int8",
        eager.load_dynamic,
        eager.export_dynamic,
        options={"engine": "x86", "per_channel": True},
        needs="x86 with AVX2",
        missing=eager.no_avx2,
    ),
    Variant(
        "int8-dynamic-qnnpack",
        "PyTorch eager",
        "int8",
        eager.load_dynamic,
        eager.export_dynamic,
        options={"engine": "qnnpack", "per_channel": False},
        needs="made for ARM, slow elsewhere",
        default=not machine.is_x86(),  # on x86 it takes 1.8 times as long as fp32 (BERT-base, AMD Zen 5)
    ),
):
    register(row)


def select(names: str) -> list[Variant]:
    """Return the variants of a comma-separated list; `default` and `all` stand for those that can run here.

    Raises:
        InputError: a name is unknown, or that variant cannot run here.
    """
    chosen: dict[str, Variant] = {}
    for name in (name.strip() for name in names.split(",")):
        if name in {"default", "all"}:
            chosen |= {
                key: variant
                for key, variant in VARIANTS.items()
                if (variant.default or name == "all") and not variant.missing()
            }
        else:
            chosen[name] = get(name)
    return list(chosen.values())


def get(name: str) -> Variant:
    """Return the variant `name`.

    Raises:
        InputError: there is none, or it cannot run here.
    """
    if name not in VARIANTS:
        raise InputError(f"unknown variant {name!r}: there are {', '.join(VARIANTS)}, and 'default' and 'all'")
    variant = VARIANTS[name]
    if reason := variant.missing():
        raise InputError(f"variant {name} cannot run here: {reason}")
    return variant


def build(variant: Variant, checkpoint: Checkpoint) -> Classifier:
    """Return `checkpoint` as `variant` runs it; what its export wrote is kept in the cache."""
    if variant.export is None:
        return _load(variant, checkpoint.folder)
    source = Path(inspect.getfile(variant.export)).read_text(encoding="utf-8")  # an edited export is made anew
    key = json.dumps([checkpoint.sha256, variant.definition, source, machine.versions()], sort_keys=True)
    name = f"{variant.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder = build_folder(cache_dir() / "variants" / name, lambda stage: write_artefact(variant, checkpoint, stage))
    return _load(variant, folder)


def write_artefact(variant: Variant, checkpoint: Checkpoint, folder: Path) -> None:
    """Fill the empty `folder` with what `variant` needs to run: weights or graph, tokenizer, and a record."""
    checkpoint.config.save_pretrained(folder)
    checkpoint.encoder.tokenizer.save_pretrained(folder)
    (variant.export or eager.export)(checkpoint, folder, **variant.options)
    write_record(
        folder,
        {
            "checkpoint_sha256": checkpoint.sha256,
            "definition": variant.definition,
            "max_length": checkpoint.max_length,
            "untrained": not checkpoint.trained,
            "variant": variant.name,
            "versions": machine.versions(),
        },
    )


def load_artefact(folder: Path) -> tuple[Variant, Classifier]:
    """Return the classifier in a folder that write_artefact made, and which variant it is.

    Raises:
        InputError: the folder is no such artefact, or its variant is not what it was when it was made.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        name, definition = record["variant"], record["definition"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is no quantized artefact (no 'variant' in its {RECORD}): make one with qbert quantize"
        ) from error
    variant = get(name)
    if definition != json.loads(json.dumps(variant.definition)):
        raise InputError(
            f"{folder} was made by another definition of variant {name}: make it again with qbert quantize"
        )
    return variant, _load(variant, folder)


def _load(variant: Variant, folder: Path) -> Classifier:
    classifier = variant.load(folder, **variant.options)
    if variant.precision.startswith("int8") and not classifier.evidence.get("quantized_ops"):
        raise InputError(
            f"variant {variant.name} claims int8 and runs no quantized operation: it would only seem to be"
        )
    return classifier
