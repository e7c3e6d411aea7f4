"""The table of variants: each is one way to run a checkpoint, by its runtime and precision.

A new variant is one function and one row: `load(folder, **options)` reads a checkpoint and returns a
Classifier. Where something is worth keeping on disk (quantized weights, an exported graph), a second
function, `export(checkpoint, folder, **options)`, writes it, and `load` reads what that wrote.
"""

import inspect
import json
import warnings
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from qbert.system import machine
from qbert.system.cache import check_files
from qbert.system.errors import CannotRunError, InputError, reason
from qbert.system.record import RECORD
from qbert.system.terminal import counted
from qbert.variants import eager, inductor, native, onnxruntime, openvino
from qbert.variants.base import CONVERTERS, Classifier, Variant
from qbert.variants.build import (
    CALIBRATION_DOCUMENTS,
    accepted_options,
    build,
    check_evidence,
    load,
    load_folder,
    prepare,
    write_artefact,
)

__all__ = [
    "BASELINE",
    "CALIBRATION_DOCUMENTS",
    "VARIANTS",
    "Classifier",
    "Variant",
    "accepted_options",
    "build",
    "check_evidence",
    "get",
    "listed",
    "load",
    "load_artefact",
    "named",
    "prepare",
    "register",
    "select",
    "with_batch",
    "with_threads",
    "write_artefact",
]

BASELINE = "fp32"
GROUP = "qbert.variants"
"""The entry points by which an installed package adds variants: each names a module."""

VARIANTS: dict[str, Variant] = {}


class VariantWarning(UserWarning):
    """An installed package cannot add its variants."""


def register(variant: Variant) -> None:
    """Add a row to the table.

    Raises:
        InputError: the name is taken, or cannot be part of a test id.
    """
    if variant.name in VARIANTS:
        raise InputError(f"variant {variant.name!r} is in the table already: choose another name")
    if not variant.name or not set(variant.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_."):
        raise InputError(f"variant name {variant.name!r}: take lower-case letters, digits, '-', '_' and '.'")
    VARIANTS[variant.name] = variant


EAGER = partial(Variant, runtime="PyTorch eager", packages_to_load=CONVERTERS)
DYNAMIC = partial(EAGER, precision="int8", load=eager.load_dynamic, export=eager.export_dynamic)
ONNX_RUNTIME = partial(
    Variant,
    runtime="ONNX Runtime",
    load=onnxruntime.load,
    export=onnxruntime.export,
    packages=("onnx", "onnxruntime"),
    packages_to_load=("onnxruntime",),
    needs="onnxruntime",
)
OPENVINO = partial(
    Variant,
    runtime="OpenVINO",
    load=openvino.load,
    export=openvino.export,
    packages=("openvino",),
    packages_to_load=("openvino",),
    needs="openvino",
)
BY_NNCF = partial(OPENVINO, export=openvino.export_int8, calibrated=True, packages=("openvino", "nncf"))
OPENVINO_BF16: dict[str, Any] = {
    "options": {"hint": "bf16"},
    "needs": "openvino, bf16 instructions",
    "unsupported": openvino.lacks_bf16,
}
NATIVE = partial(
    Variant,
    runtime="qbert",
    precision="int8",
    load=native.load,
    export=native.export,
    batched=True,
    kernels=native.KERNEL_NAMES,
    pack=native.pack,
    unread=native.unread,
    needs=f"AVX2 or ARM's dot products, {native.made_by()}",
    unsupported=native.unsupported,
)
INDUCTOR = partial(
    Variant,
    runtime="TorchInductor",
    load=inductor.load,
    export=inductor.export,
    packages_to_load=("torch",),
    needs="a C++ compiler",
    unmakeable=inductor.lacks_compiler,
    default=False,
)
BY_TORCHAO = partial(INDUCTOR, precision="int8", packages=("torchao",), needs="torchao, a C++ compiler")

for row in (
    EAGER(BASELINE, precision="fp32", load=eager.load),
    EAGER(
        "bf16",
        precision="bf16",
        load=eager.load,
        export=eager.export,
        options={"dtype": "bfloat16"},
        needs="bf16 instructions",
        unsupported=eager.lacks_bf16,
    ),
    DYNAMIC(
        "int8-dynamic",
        options={"engine": "x86", "per_channel": False},
        needs="x86 with AVX2",
        unsupported=eager.lacks_avx2,
    ),
    DYNAMIC(
        "int8-dynamic-onednn",
        options={"engine": "onednn", "per_channel": False},
        unsupported=eager.lacks_onednn,
        default=not machine.is_x86(),  # on x86 the engine x86 is the published one, and as fast
    ),
    DYNAMIC(
        "int8-dynamic-per-channel",
        options={"engine": "x86", "per_channel": True},
        needs="x86 with AVX2",
        unsupported=eager.lacks_avx2,
        default=False,  # differs from int8-dynamic only in its weights' scales
    ),
    DYNAMIC(
        "int8-dynamic-qnnpack",
        options={"engine": "qnnpack", "per_channel": False},
        needs="made for ARM, slow elsewhere",
        default=not machine.is_x86(),  # on x86 it takes 1.8 times as long as fp32 (BERT-base, AMD Zen 5)
    ),
    ONNX_RUNTIME("fp32-onnxruntime", precision="fp32", options={"int8": False}),
    ONNX_RUNTIME("int8-onnxruntime", precision="int8", options={"int8": True}),
    OPENVINO("fp32-openvino", precision="fp32", options={"hint": "f32"}),
    OPENVINO("bf16-openvino", precision="bf16", **OPENVINO_BF16),
    BY_NNCF("int8-openvino", precision="int8", options={"hint": "f32"}),
    BY_NNCF("int8-bf16-openvino", precision="int8-bf16", **OPENVINO_BF16),
    NATIVE("int8-native"),
    NATIVE(
        "int8-native-calibrated",
        export=native.export_calibrated,
        calibrated=True,
        default=False,  # differs from int8-native only in how its weights are rounded
    ),
    NATIVE(
        "int8-native-vnni",
        options={"kernel": "avx512_bf16"},
        needs=f"AVX512-VNNI and AVX512-BF16, {native.made_by()}",
        unsupported=partial(native.unsupported, "avx512_bf16"),
        default=False,  # beside int8-native it shows what AMX brings
    ),
    NATIVE(
        "int8-native-avx2",
        options={"kernel": "avx2"},
        needs=f"AVX2, {native.made_by()}",
        unsupported=partial(native.unsupported, "avx2"),
        default=False,  # what int8-native is on a processor without VNNI
    ),
    INDUCTOR("fp32-inductor", precision="fp32"),
    INDUCTOR(
        "bf16-inductor",
        precision="bf16",
        options={"dtype": "bfloat16"},
        needs="a C++ compiler, bf16 instructions",
        unsupported=eager.lacks_bf16,
    ),
    BY_TORCHAO("int8-inductor", export=inductor.export_static, calibrated=True, unsupported=inductor.lacks_x86),
    BY_TORCHAO("int8-torchao", export=inductor.export_torchao),
):
    register(row)


def with_threads(variant: Variant, threads: int) -> Variant:
    """Return the row `variant` with its runtime on that many threads, under a name of its own in the table.

    Raises:
        CannotRunError: its runtime takes no number of threads here.
    """
    if "threads" not in inspect.signature(variant.load).parameters:
        raise CannotRunError("it computes on one thread alone")
    name = f"{variant.name}-{counted(threads, 'thread').replace(' ', '-')}"
    options = {**variant.options, "threads": threads}
    row = replace(variant, name=name, options=options, default=False, derived_from=variant.name)
    return VARIANTS.setdefault(name, row)


def with_batch(variant: Variant, batch: int) -> Variant:
    """Return the row `variant` with so many texts in a call, under a name of its own in the table.

    Raises:
        CannotRunError: its runtime classifies one text at a time.
    """
    if not variant.batched:
        raise CannotRunError("it classifies one text at a time")
    name, options = f"{variant.name}-batch-{batch}", {**variant.options, "batch": batch}
    row = replace(variant, name=name, options=options, default=False, derived_from=variant.name)
    return VARIANTS.setdefault(name, row)


@cache
def import_installed() -> None:
    """Import, once, the modules that installed packages name as entry points of the group GROUP.

    One that fails gives a warning: the other variants work without it. Loading an artefact of a variant in the table
    does without this: it takes 20 ms in an environment of 150 packages.
    """
    from importlib import metadata  # 20 ms

    for point in metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # noqa: BLE001  of any class: it is not our code
            message = f"the variants of {point.value} are left out: {reason(error)}"
            warnings.warn(message, VariantWarning, stacklevel=2)


def select(names: str) -> list[Variant]:
    """Return the variants of a comma-separated list, where `default` and `all` mean those that can run here.

    Raises:
        InputError: a name is unknown, or its variant cannot run here.
    """
    import_installed()
    chosen: dict[str, Variant] = {}
    for name in listed(names):
        if name in {"default", "all"}:
            chosen |= {
                key: variant
                for key, variant in VARIANTS.items()
                if (variant.default or (name == "all" and not variant.derived_from)) and not variant.missing()
            }
        else:
            chosen[name] = get(name)
    return list(chosen.values())


def named(names: str) -> set[str]:
    """Return the variants that a comma-separated list names, without those that `default` or `all` adds."""
    return set(listed(names)) - {"default", "all"}


def listed(names: str) -> list[str]:
    """Return the names in a comma-separated list, without the blanks around them."""
    return [name.strip() for name in names.split(",")]


def get(name: str, *, made: bool = False) -> Variant:
    """Return the variant `name`, which this machine can run and, unless it was `made` already, make.

    Raises:
        InputError: there is no such variant, or it cannot run here.
    """
    if name not in VARIANTS:
        import_installed()
    if name not in VARIANTS:
        raise InputError(f"unknown variant {name!r}: there are {', '.join(VARIANTS)}, and 'default' and 'all'")
    variant = VARIANTS[name]
    if why := variant.missing(made=made):
        raise InputError(f"variant {name} cannot run here: {why}")
    return variant


def load_artefact(folder: Path, *, verify: bool = True) -> tuple[Variant, Classifier]:
    """Return the variant and the classifier of a folder that write_artefact filled.

    Unless `verify` is false, the checksums of its files are checked first: 0.75 s for each GB (AMD Zen 3).

    Raises:
        InputError: the folder is no artefact or was changed, or its variant is defined differently now.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        name, definition = record["variant"], record["definition"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is no quantized artefact (no 'variant' in its {RECORD}): make one with qbert quantize"
        ) from error
    if name not in VARIANTS:
        import_installed()
    if name not in VARIANTS:
        module = record.get("module") or "MODULE"
        raise InputError(
            f"{folder} holds the variant {name!r}, which is not in the table: first import the module that adds it "
            f"(qbert -p {module})"
        )
    variant = get(name, made=True)
    if definition != json.loads(json.dumps(variant.definition)):
        raise InputError(
            f"{folder} was made by another definition of variant {name}: make it again with qbert quantize"
        )
    if verify:
        own = variant.unread.__module__ == variant.load.__module__
        unread = variant.unread(folder, **accepted_options(variant.unread, variant.options)) if own else ()
        check_files(folder, leave_out=unread)
    return variant, load_folder(variant, folder)
