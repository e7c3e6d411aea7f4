"""The table of variants: each one way to run a checkpoint, a runtime and a precision.

A new variant is one function and one row: `load(folder, **options)` reads a checkpoint and returns a
Classifier. Where something is worth keeping on disk (quantized weights, an exported graph), a second
function, `export(checkpoint, folder, **options)`, writes it, and `load` reads that folder instead.
"""

import hashlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert import InputError, machine, reason
from qbert.cache import build_kept, cache_dir
from qbert.checkpoint import RECORD, Checkpoint, Encoding, write_record
from qbert.terminal import say, silent
from qbert.variants import eager, inductor, native, onnxruntime, openvino

if TYPE_CHECKING:
    from qbert.dataset import Dataset

BASELINE = "fp32"
MAX_F1_DROP = 0.01  # what users of quantized classifiers commonly accept; 500 documents can just tell it from 0
CALIBRATION_DOCUMENTS = 192  # NNCF's default of 300 takes longer and flips as many labels of SST-2 and MRPC
UNTRAINED_DOCUMENTS = 24  # ranges of random weights: only the time that they take is of interest


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
    """What has to be installed beside this project's own dependencies."""
    extra: str = ""
    """The extra of this project that brings them."""
    needs: str = "nothing more"
    """What it needs, in words."""
    unsupported: Callable[[], str] = lambda: ""
    """Why this machine cannot run it, in words; empty where it can. Answers at once, without importing the runtime."""
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
            "export": self.export and _qualified(self.export),
            "load": _qualified(self.load),
            "options": dict(self.options),
            "precision": self.precision,
            "runtime": self.runtime,
        }

    def missing(self) -> str:
        """Say why it cannot run here; empty where it can."""
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if absent:
            wanted = f"'qbert[{self.extra}]'" if self.extra else " ".join(self.packages)
            return f"{' and '.join(absent)} not installed: pip install {wanted}"
        return self.unsupported()


def _qualified(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


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
        unsupported=eager.no_bf16,
    ),
    Variant(
        "int8-dynamic",
        "PyTorch eager",
        "int8",
        eager.load_dynamic,
        eager.export_dynamic,
        options={"engine": "x86", "per_channel": False},
        needs="x86 with AVX2",
        unsupported=eager.no_avx2,
    ),
    Variant(
        "int8-dynamic-onednn",
        "PyTorch eager",
        "int8",
        eager.load_dynamic,
        eager.export_dynamic,
        options={"engine": "onednn", "per_channel": False},
        unsupported=eager.no_onednn,
        default=not machine.is_x86(),  # there engine x86 is the published one, and as fast
    ),
    Variant(
        "int8-dynamic-per-channel",
        "PyTorch eager",
        "int8",
        eager.load_dynamic,
        eager.export_dynamic,
        options={"engine": "x86", "per_channel": True},
        needs="x86 with AVX2",
        unsupported=eager.no_avx2,
        default=False,  # as int8-dynamic in all but its weights' scales
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
    *(
        Variant(
            f"{precision}-onnxruntime",
            "ONNX Runtime",
            precision,
            onnxruntime.load,
            onnxruntime.export,
            options={"int8": precision == "int8"},
            packages=("onnx", "onnxruntime"),
            extra="onnxruntime",
            needs="onnxruntime",
        )
        for precision in ("fp32", "int8")
    ),
    *(
        Variant(
            f"{precision}-openvino",
            "OpenVINO",
            precision,
            openvino.load,
            openvino.export_int8 if "int8" in precision else openvino.export,
            options={"hint": "bf16" if "bf16" in precision else "f32"},
            calibrated="int8" in precision,
            packages=("openvino", "nncf") if "int8" in precision else ("openvino",),
            extra="openvino",
            needs="openvino" + (", bf16 instructions" if "bf16" in precision else ""),
            unsupported=openvino.no_bf16 if "bf16" in precision else lambda: "",
        )
        for precision in ("fp32", "bf16", "int8", "int8-bf16")
    ),
    Variant(
        "int8-onnxruntime-trimmed",
        "ONNX Runtime",
        "int8",
        onnxruntime.load,
        onnxruntime.export_trimmed,
        options={"int8": True},
        packages=("onnx", "onnxruntime"),
        extra="onnxruntime",
        needs="onnxruntime",
        default=False,  # for texts that fill the maximum length: shorter ones are padded
    ),
    *(
        Variant(
            f"{precision}-openvino-trimmed",
            "OpenVINO",
            precision,
            openvino.load,
            openvino.export_int8_trimmed if precision == "int8" else openvino.export_trimmed,
            options={"hint": "f32"},
            calibrated=precision == "int8",
            packages=("openvino", "nncf") if precision == "int8" else ("openvino",),
            extra="openvino",
            needs="openvino",
            default=False,  # likewise
        )
        for precision in ("fp32", "int8")
    ),
    Variant(
        "int8-native",
        "qbert",
        "int8",
        native.load,
        native.export,
        needs="AVX512-VNNI or AVX-VNNI, a C++ compiler",
        unsupported=native.unsupported,
    ),
    Variant(
        "fp32-inductor",
        "TorchInductor",
        "fp32",
        inductor.load,
        inductor.export,
        needs="a C++ compiler",
        unsupported=inductor.no_compiler,
        default=False,
    ),
    Variant(
        "bf16-inductor",
        "TorchInductor",
        "bf16",
        inductor.load,
        inductor.export,
        options={"dtype": "bfloat16"},
        needs="a C++ compiler, bf16 instructions",
        unsupported=inductor.no_bf16,
        default=False,
    ),
    Variant(
        "int8-inductor",
        "TorchInductor",
        "int8",
        inductor.load,
        inductor.export_static,
        calibrated=True,
        packages=("torchao",),
        extra="torchao",
        needs="torchao, a C++ compiler",
        unsupported=inductor.no_int8,
        default=False,
    ),
    Variant(
        "int8-torchao",
        "TorchInductor",
        "int8",
        inductor.load,
        inductor.export_torchao,
        packages=("torchao",),
        extra="torchao",
        needs="torchao, a C++ compiler",
        unsupported=inductor.no_compiler,
        default=False,
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
    if lack := variant.missing():
        raise InputError(f"variant {name} cannot run here: {lack}")
    return variant


def build(
    variant: Variant, checkpoint: Checkpoint, dataset: "Dataset | None" = None, max_length: int | None = None
) -> Classifier:
    """Return `checkpoint` as `variant` runs it: prepare and load."""
    return load(variant, checkpoint, prepare(variant, checkpoint, dataset, max_length))


def load(variant: Variant, checkpoint: Checkpoint, folder: Path) -> Classifier:
    """Return what prepare left in `folder`, after one call.

    Raises:
        InputError: the runtime cannot run this model.
    """
    classifier = _load(variant, folder)
    try:
        classifier(checkpoint.encoder("a", max_length=checkpoint.positions))
    except Exception as error:  # each runtime raises its own, without a common class
        raise InputError(_cannot(variant, "run", checkpoint, error)) from error
    return classifier


def prepare(
    variant: Variant, checkpoint: Checkpoint, dataset: "Dataset | None" = None, max_length: int | None = None
) -> Path:
    """Return the folder that `variant` is loaded from: the checkpoint's, or what its export wrote, kept in the cache.

    A calibrated variant sees training documents of `dataset`; one of a single length is made for `max_length`, the
    checkpoint's own unless told.

    Raises:
        InputError: the runtime cannot convert this model, or the cache cannot be written to.
    """
    if variant.export is None:
        return checkpoint.folder
    module = Path(inspect.getfile(variant.export))
    made_of = [
        checkpoint.sha256,
        _qualified(variant.export),
        module.read_text(encoding="utf-8"),  # an edited export is made anew
        _options(variant, checkpoint, max_length),
        _calibration(variant, checkpoint, dataset),
        machine.instruction_sets(),
        machine.versions(*variant.packages),
    ]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]

    def fill(stage: Path) -> None:
        say(f"making {variant.name} of {checkpoint.folder.name}, once")
        _export(variant, checkpoint, stage, dataset, max_length)

    # Variants that differ in how the same thing is loaded share it.
    return build_kept(cache_dir() / "variants" / f"{module.stem}-{variant.export.__name__}-{key}", fill)


def write_artefact(
    variant: Variant,
    checkpoint: Checkpoint,
    folder: Path,
    dataset: "Dataset | None" = None,
    max_length: int | None = None,
) -> None:
    """Fill the empty `folder` with what `variant` needs to run: weights or graph, tokenizer, and a record."""
    calibration = _calibration(variant, checkpoint, dataset)
    _export(variant, checkpoint, folder, dataset, max_length)
    write_record(
        folder,
        {
            "calibration": calibration,
            "checkpoint_sha256": checkpoint.sha256,
            "definition": variant.definition,
            "inputs": checkpoint.encoder.inputs,
            "labels": checkpoint.labels,
            "max_length": max_length or checkpoint.max_length,
            "positions": max_length or checkpoint.max_length if variant.of_one_length else checkpoint.positions,
            "truncation_side": checkpoint.encoder.tokenizer.truncation_side,
            "untrained": not checkpoint.trained,
            "variant": variant.name,
            "versions": machine.versions(*variant.packages),
        },
    )


def _export(
    variant: Variant, checkpoint: Checkpoint, folder: Path, dataset: "Dataset | None", max_length: int | None
) -> None:
    export, options = variant.export or eager.export, _options(variant, checkpoint, max_length)
    if dataset is not None and variant.calibrated:
        options["calibration"] = [
            checkpoint.encoder(*text, max_length=checkpoint.max_length)
            for text in dataset.training_texts(_documents(checkpoint))
        ]
    try:
        with silent():  # exporters print bars, advice, and graphs that they cannot do
            export(checkpoint, folder, **options)
    except (InputError, OSError):
        raise
    except Exception as error:  # likewise
        raise InputError(_cannot(variant, "be made of", checkpoint, error)) from error
    checkpoint.config.save_pretrained(folder)
    checkpoint.encoder.tokenizer.save_pretrained(folder)


def _cannot(variant: Variant, what: str, checkpoint: Checkpoint, error: Exception) -> str:
    family = checkpoint.config.model_type
    return f"variant {variant.name} cannot {what} {checkpoint.folder}, a {family} ({reason(error)}): leave it out"


def taken(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `options` that `function` takes."""
    parameters = inspect.signature(function).parameters
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in options.items() if every or name in parameters}


def _options(variant: Variant, checkpoint: Checkpoint, max_length: int | None) -> dict[str, Any]:
    """Return what `variant` passes to its export, calibration documents aside."""
    return taken(variant.export or eager.export, {"max_length": max_length or checkpoint.max_length, **variant.options})


def _documents(checkpoint: Checkpoint) -> int:
    return CALIBRATION_DOCUMENTS if checkpoint.trained else UNTRAINED_DOCUMENTS


def _calibration(variant: Variant, checkpoint: Checkpoint, dataset: "Dataset | None") -> dict[str, Any] | None:
    """Return what identifies the documents that `variant` is calibrated on, where it is."""
    if not variant.calibrated:
        return None
    if dataset is None:
        raise InputError(f"variant {variant.name} is calibrated on training documents: name their dataset (--dataset)")
    return {"dataset_sha256": dataset.sha256, "documents": _documents(checkpoint)}


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
    classifier = variant.load(folder, **taken(variant.load, variant.options))
    if variant.precision.startswith("int8") and not classifier.evidence.get("quantized_ops"):
        raise InputError(
            f"variant {variant.name} claims int8 and runs no quantized operation: it would only seem to be"
        )
    return classifier
