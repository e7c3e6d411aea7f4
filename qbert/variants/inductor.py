"""TorchInductor: the model exported and compiled ahead of time, in fp32, bf16, and int8 by torchao.

The program is for this processor, one thread and any length. Compiling needs a C++ compiler, and minutes for a large
model, so these variants run only where they are named.
"""

import collections
import os
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbert.inputs.tokenizer import Encoding
from qbert.system import machine
from qbert.system.cache import cache_dir, check_trusted
from qbert.system.errors import CannotRunError, InputError, reason
from qbert.variants import eager, held
from qbert.variants.base import Classifier

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qbert.inputs.checkpoint import Checkpoint

PACKAGE = "model.pt2"
INSTRUCTION_SETS = "instruction_sets.txt"
COMPILERS = ("c++", "g++", "clang++")
QUANTIZED = ("_qlinear_pointwise_tensor", "_qlinear_pointwise_binary_tensor", "_int_mm_out")
FUSED = ("_linear_pointwise", "_linear_pointwise_binary", "_scaled_dot_product_flash_attention_for_cpu")


def lacks_compiler() -> str:
    """Return what TorchInductor lacks; empty where there is a C++ compiler."""
    if any(shutil.which(name) for name in (os.environ.get("CXX", ""), *COMPILERS)):
        return ""
    return "no C++ compiler: install g++ or clang++ (on Debian apt install g++), or name one in CXX"


def lacks_x86() -> str:
    """Return why torchao's quantizer for x86 cannot run here; empty where it can."""
    return "" if machine.is_x86() else "torchao's X86InductorQuantizer is for x86"


def export(checkpoint: "Checkpoint", folder: Path, *, dtype: str = "float32") -> None:
    """Compile `checkpoint` in `dtype`."""
    import torch

    model = eager.positional(checkpoint.load(dtype=getattr(torch, dtype)), checkpoint.encoder.inputs)
    _compile(model, checkpoint, folder)


def export_static(checkpoint: "Checkpoint", folder: Path, *, calibration: Sequence[Encoding]) -> None:
    """Compile `checkpoint` with int8 linear layers; the ranges of activations are measured on `calibration`.

    Source: the PyTorch 2 export quantization tutorial for x86 CPUs, with its default configuration.
    """
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    exported = _export(eager.positional(checkpoint.load(), checkpoint.encoder.inputs), checkpoint).module()
    with torch.no_grad():
        held.hold(
            "torch.export's graph", checkpoint, lambda text: exported(*map(torch.from_numpy, text.values())).numpy()
        )
        prepared = prepare_pt2e(exported, quantizer)
        for encoding in calibration:
            prepared(*map(torch.from_numpy, encoding.values()))
        model = convert_pt2e(prepared)
    _compile(model, checkpoint, folder)


def export_torchao(checkpoint: "Checkpoint", folder: Path) -> None:
    """Compile `checkpoint` with torchao's dynamic int8: a scale for each token and for each output channel."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    from torchao.utils import unwrap_tensor_subclass

    model = eager.positional(checkpoint.load(), checkpoint.encoder.inputs)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    unwrap_tensor_subclass(model)
    _compile(model, checkpoint, folder)


def load(folder: Path) -> Classifier:
    """Return the classifier that was compiled into `folder`.

    Raises:
        InputError: it is damaged, was compiled for another processor, or others can write to it.
    """
    import torch

    try:
        lacking = set((folder / INSTRUCTION_SETS).read_text().split()) - set(machine.instruction_sets())
        if lacking:
            raise InputError(
                f"{folder} was compiled for a processor with {', '.join(sorted(lacking))}, which this one lacks: "
                "make it here with qbert quantize"
            )
        check_trusted(folder / PACKAGE)
        evidence = _evidence(folder / PACKAGE)
        model = torch._inductor.aoti_load_package(str(folder / PACKAGE), run_single_threaded=True)  # noqa: SLF001  documented
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        if "dlopen" in str(error):
            raise CannotRunError(
                f"{folder / PACKAGE} cannot be run from the folder for temporary files ({reason(error)}): if that is "
                "mounted noexec, name another place (TMPDIR)"
            ) from error
        raise InputError(
            f"{folder / PACKAGE} is damaged ({reason(error)}): make it again with qbert quantize"
        ) from error
    eager.one_thread()

    def run(encoding: Encoding) -> "npt.NDArray[np.float32]":
        with torch.inference_mode():
            return model(*map(torch.from_numpy, encoding.values())).numpy()  # type: ignore[no-any-return]

    return Classifier.counted(run, {**evidence, "threads": torch.get_num_threads()})


def _evidence(package: Path) -> dict[str, Any]:
    with zipfile.ZipFile(package) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".wrapper.cpp"))
        source = archive.read(name).decode()
    calls = collections.Counter(re.findall(r"aoti_torch_cpu_(\w+)\(", source))
    return {
        "fused_ops": {name.strip("_"): calls[name] for name in FUSED if calls[name]},
        "precision": "bfloat16" if ".dtype = cached_torch_dtype_bfloat16" in source else "float32",
        "quantized_ops": sum(calls[name] for name in QUANTIZED),
    }


def _export(model: Any, checkpoint: "Checkpoint") -> Any:  # noqa: ANN401  torch modules and programs
    import torch

    arrays = eager.example(checkpoint)
    shapes = torch.export.ShapesCollection()
    for array in arrays:
        shapes[array] = {1: torch.export.Dim("length", min=2, max=checkpoint.positions)}
    with torch.no_grad():
        return torch.export.export(model, arrays, dynamic_shapes=shapes.dynamic_shapes(model, arrays))


def _compile(model: Any, checkpoint: "Checkpoint", folder: Path) -> None:  # noqa: ANN401  a torch module
    import torch

    programs = Path(os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor")))
    check_trusted(programs)
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(  # noqa: SLF001  documented
            _export(model, checkpoint),
            package_path=str(folder / PACKAGE),
            inductor_configs={"cpp.threads": 1, "freezing": True},
        )
    (folder / INSTRUCTION_SETS).write_text("\n".join(machine.instruction_sets()))
