"""From a checkpoint to a classifier: make a variant's files, keep them in the cache, load them."""

import contextlib
import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbert.inputs.labels import IDENTITY
from qbert.inputs.tokenizer import Encoding
from qbert.system import machine, sources
from qbert.system.cache import MANIFEST, build_kept, cache_dir, seal
from qbert.system.errors import CannotRunError, InputError, reason
from qbert.system.record import write_record
from qbert.system.terminal import say, silent
from qbert.variants import eager, held, readme
from qbert.variants.base import Classifier, Variant, qualified

if TYPE_CHECKING:
    from qbert.inputs.checkpoint import Checkpoint
    from qbert.inputs.dataset import Dataset

CALIBRATION_DOCUMENTS = 192  # NNCF's default of 300 takes longer and flips as many labels of SST-2 and MRPC
UNTRAINED_DOCUMENTS = 6  # of random weights only the latency is of interest, not the ranges


def build(
    variant: Variant, checkpoint: "Checkpoint", dataset: "Dataset | None" = None, max_length: int | None = None
) -> Classifier:
    """Return `checkpoint` as `variant` runs it: prepare and load."""
    return load(variant, checkpoint, prepare(variant, checkpoint, dataset, max_length))


def load(variant: Variant, checkpoint: "Checkpoint", folder: Path) -> Classifier:
    """Return the classifier in `folder`, which prepare returned, after one call.

    Raises:
        InputError: the runtime cannot run this model.
    """
    with _in_one_sentence(variant, "run", checkpoint):
        classifier = load_folder(variant, folder)
        classifier(checkpoint.encoder("a", max_length=checkpoint.positions))
    return classifier


def prepare(
    variant: Variant, checkpoint: "Checkpoint", dataset: "Dataset | None" = None, max_length: int | None = None
) -> Path:
    """Return the folder that `variant` is loaded from: the checkpoint's, or one in the cache that its export filled.

    A calibrated variant is calibrated on training documents of `dataset`; one of a single length is made for
    `max_length`, by default the checkpoint's. One of floats is held against PyTorch's fp32.

    Raises:
        InputError: the runtime cannot convert this model or computes something else, or the cache cannot be written to.
    """
    if variant.export is None:
        return checkpoint.folder

    def fill(stage: Path) -> None:
        say_making(variant, checkpoint)
        _export(variant, checkpoint, stage, dataset, max_length)

    # Variants that load the same files differently share them.
    folder = build_kept(place(variant, variant.export, checkpoint, dataset, max_length), fill)
    if variant.kernels:
        load_folder(variant, folder)  # what the first load makes is made now, where nothing is measured
    if not variant.precision.startswith("int8"):  # of int8 its exporter holds the floats that it quantizes
        _hold(variant, checkpoint, folder, max_length)
    return folder


def say_making(variant: Variant, checkpoint: "Checkpoint") -> None:
    """Print that `variant` is being made of `checkpoint`."""
    say(f"making {variant.name} of {checkpoint.folder.name}, once")


def place(
    variant: Variant,
    export: Callable[..., None],
    checkpoint: "Checkpoint",
    dataset: "Dataset | None",
    max_length: int | None,
) -> Path:
    """Return the folder of the cache for what `export`, that of `variant`, makes."""
    read = ["qbert.inputs.dataset"] if variant.calibrated else []
    ingredients = [
        checkpoint.sha256,
        qualified(export),
        # Edited code makes it again.
        sources.sha256(export.__module__, __name__, "qbert.inputs.checkpoint", *read),
        _options(variant, checkpoint, max_length),
        _calibration(variant, checkpoint, dataset),
        machine.instruction_sets(),
        machine.hidden(),
        machine.versions(*variant.packages),
    ]
    name = f"{export.__module__.rpartition('.')[2]}-{export.__name__}-{_key(ingredients)}"
    return cache_dir() / "variants" / name


def _key(ingredients: list[Any]) -> str:
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]


def _hold(variant: Variant, checkpoint: "Checkpoint", folder: Path, max_length: int | None) -> None:
    """Hold what is loaded from `folder` against PyTorch's fp32, once for these files and this way to load them.

    Raises:
        CannotRunError: it computes something else.
    """
    import torch

    options = accepted_options(variant.load, variant.options)
    options.pop("threads", None)
    ingredients = [
        (folder / MANIFEST).read_text(encoding="utf-8"),
        checkpoint.sha256,
        variant.precision,
        qualified(variant.load),
        options,
        sources.sha256(variant.load.__module__, held.__name__),
        machine.instruction_sets(),
        machine.hidden(),
        machine.versions(*variant.to_load),
    ]

    def fill(stage: Path) -> None:
        threads = torch.get_num_threads()
        try:
            with silent(), _in_one_sentence(variant, "run", checkpoint):
                off = held.hold(
                    f"variant {variant.name}",
                    checkpoint,
                    load_folder(variant, folder),
                    precision=variant.precision,
                    max_length=max_length or checkpoint.max_length if variant.of_one_length else None,
                )
        finally:
            torch.set_num_threads(threads)  # loading it may have set another number
        (stage / "off.json").write_text(json.dumps(off), encoding="utf-8")

    build_kept(cache_dir() / "held" / _key(ingredients), fill)


def write_artefact(
    variant: Variant,
    checkpoint: "Checkpoint",
    folder: Path,
    dataset: "Dataset | None" = None,
    max_length: int | None = None,
    kernels: Sequence[str] = (),
) -> None:
    """Fill the empty `folder` with weights or graph, tokenizer, record and README of `variant`.

    What the cache has already is copied, not made again. The `kernels` are those of Variant.pack.

    Raises:
        InputError: it cannot be made, or its tokenizer would encode otherwise than the checkpoint's.
    """
    calibration = _calibration(variant, checkpoint, dataset)
    if variant.export is None:
        _export(variant, checkpoint, folder, dataset, max_length)
    else:
        shutil.copytree(prepare(variant, checkpoint, dataset, max_length), folder, dirs_exist_ok=True)
    if kernels and variant.pack:
        variant.pack(folder, kernels)
    record = {
        "calibration": calibration,
        "checkpoint_sha256": checkpoint.sha256,
        "definition": variant.definition,
        "inputs": checkpoint.encoder.inputs,
        "labels": checkpoint.labels,
        "max_length": max_length or checkpoint.max_length,
        "module": own_module(variant),
        "problem_type": checkpoint.problem_type,
        **({} if checkpoint.activation == IDENTITY else {"activation": checkpoint.activation}),
        "positions": max_length or checkpoint.max_length if variant.of_one_length else checkpoint.positions,
        "split_special_tokens": checkpoint.encoder.tokenizer.split_special_tokens,
        "truncation_side": checkpoint.encoder.tokenizer.truncation_side,
        "untrained": not checkpoint.trained,
        "variant": variant.name,
        "versions": machine.versions(*variant.packages),
    }
    checkpoint.encoder.check_kept(folder)
    write_record(folder, record)
    (folder / readme.README).write_text(readme.text(variant, checkpoint.folder.name, record), encoding="utf-8")
    seal(folder)


def _export(
    variant: Variant, checkpoint: "Checkpoint", folder: Path, dataset: "Dataset | None", max_length: int | None
) -> None:
    export, options = variant.export or eager.export, _options(variant, checkpoint, max_length)
    if dataset is not None and variant.calibrated:
        options["calibration"] = calibration_encodings(checkpoint, dataset)
    # Exporters print bars, advice, and graphs that they cannot convert.
    with silent(), _in_one_sentence(variant, "be made of", checkpoint, (InputError, OSError)):
        export(checkpoint, folder, **options)
    checkpoint.config.save_pretrained(folder)
    _name_labels(folder / "config.json", checkpoint)
    checkpoint.encoder.tokenizer.save_pretrained(folder)


def calibration_encodings(checkpoint: "Checkpoint", dataset: "Dataset") -> list[Encoding]:
    """Return the training documents of `dataset` that calibrated variants of `checkpoint` are calibrated on."""
    texts = dataset.training_texts(_documents(checkpoint))
    return [checkpoint.encoder(*text, max_length=checkpoint.max_length) for text in texts]


def _name_labels(path: Path, checkpoint: "Checkpoint") -> None:
    """Write the labels' names into the config.json at `path`: transformers leaves out those that equal its defaults."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["id2label"] = dict(enumerate(checkpoint.labels))
    config["label2id"] = {name: label for label, name in enumerate(checkpoint.labels)}
    config["problem_type"] = checkpoint.problem_type
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def own_module(variant: Variant) -> str:
    """Return the module of a user's own `variant`, which probably registers it; empty where it is qbert's."""
    modules = [function.__module__ for function in (variant.load, variant.export) if function]
    return next((name for name in modules if not name.startswith("qbert.")), "")


@contextlib.contextmanager
def _in_one_sentence(
    variant: Variant, verb: str, checkpoint: "Checkpoint", passing: tuple[type[Exception], ...] = (InputError,)
) -> Iterator[None]:
    """Raise what runtimes and exporters raise, without a common class, as a CannotRunError in one sentence."""
    try:
        yield
    except passing:
        raise
    except Exception as error:
        raise CannotRunError(
            f"variant {variant.name} cannot {verb} {checkpoint.folder}, a {checkpoint.config.model_type} "
            f"({reason(error)}): leave it out"
        ) from error


def accepted_options(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `options` that `function` accepts."""
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in options.items() if takes_all or name in parameters}


def _options(variant: Variant, checkpoint: "Checkpoint", max_length: int | None) -> dict[str, Any]:
    return accepted_options(
        variant.export or eager.export, {"max_length": max_length or checkpoint.max_length, **variant.options}
    )


def _documents(checkpoint: "Checkpoint") -> int:
    return CALIBRATION_DOCUMENTS if checkpoint.trained else UNTRAINED_DOCUMENTS


def _calibration(variant: Variant, checkpoint: "Checkpoint", dataset: "Dataset | None") -> dict[str, Any] | None:
    """Return what identifies the documents that `variant` is calibrated on; None where it is not calibrated."""
    if not variant.calibrated:
        return None
    if dataset is None:
        raise InputError(f"variant {variant.name} is calibrated on training documents: name their dataset (--dataset)")
    return {
        "dataset_sha256": dataset.sha256,
        "documents": _documents(checkpoint),
        "max_length": checkpoint.max_length,
    }


def load_folder(variant: Variant, folder: Path) -> Classifier:
    """Return the classifier in `folder`, which the export of `variant` filled or which is a checkpoint's.

    Raises:
        InputError: it cannot be loaded here, or claims int8 and runs no quantized operation.
    """
    try:
        classifier = variant.load(folder, **accepted_options(variant.load, variant.options))
    except InputError:
        raise
    except Exception as error:  # each runtime raises its own, without a common class
        raise CannotRunError(
            f"variant {variant.name} cannot run {folder} here ({reason(error)}): leave it out"
        ) from error
    check_evidence(variant, classifier.evidence)
    return classifier


def check_evidence(variant: Variant, evidence: Mapping[str, Any]) -> None:
    """Raise InputError where `variant` claims int8 and the `evidence` of its classifier has no quantized operation."""
    if variant.precision.startswith("int8") and not evidence.get("quantized_ops"):
        raise InputError(
            f"variant {variant.name} claims int8 and runs no quantized operation: it would only seem to be"
        )
