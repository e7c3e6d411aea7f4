"""PyTorch eager: fp32, bf16, and dynamic quantization, which is what the published experiment measures.

`torch.ao.quantization.quantize_dynamic` is deprecated, yet it is what people run and what was published.
Only this module calls it. The result is kept as safetensors: int8 weights and scales of each quantized
layer, everything else in fp32.
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbert.inputs.tokenizer import Encoding
from qbert.system import machine
from qbert.system.errors import InputError, reason
from qbert.system.terminal import quiet, quiet_transformers
from qbert.variants.base import Classifier, Products

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from qbert.inputs.checkpoint import Checkpoint

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # nobody can act on the warnings of the engine qnnpack

WEIGHTS = "quantized.safetensors"
_INITIALIZING = threading.Lock()
"""no_init_weights changes the whole process: of two at once the second would restore what the first had changed."""


def lacks_bf16() -> str:
    """Return why bf16 would only be emulated here; empty where the processor has it."""
    if machine.has_bf16():
        return ""
    return "this processor has no bf16 instructions (AVX512-BF16, AMX or ARM's bf16)"


def lacks_avx2() -> str:
    """Return why PyTorch's engine x86 cannot run here; empty where it can."""
    return "" if machine.has("avx2") else "PyTorch's engine x86 needs a processor with AVX2"


def lacks_onednn() -> str:
    """Return why PyTorch's engine onednn cannot run here; empty where it can."""
    return "" if machine.is_x86() or sys.platform == "linux" else "PyTorch has no oneDNN on this system"


def load(folder: Path, dtype: str = "float32", threads: int = 1) -> Classifier:
    """Return the checkpoint in `folder`, run in `dtype` on `threads` threads."""
    import torch

    from qbert.inputs.checkpoint import Checkpoint

    return classifier(Checkpoint(folder).load(dtype=getattr(torch, dtype)), threads)


def export(checkpoint: "Checkpoint", folder: Path, dtype: str = "float32") -> None:
    """Write the weights of `checkpoint` to `folder` as `dtype`."""
    import torch

    with quiet_transformers():
        checkpoint.load(dtype=getattr(torch, dtype)).save_pretrained(folder, save_original_format=False)


def export_dynamic(checkpoint: "Checkpoint", folder: Path, *, engine: str, per_channel: bool) -> None:
    """Quantize every nn.Linear of `checkpoint` and write the weights to `folder`."""
    import torch
    from safetensors.torch import save_file
    from torch.ao import quantization

    _choose_engine(engine)
    configuration = quantization.per_channel_dynamic_qconfig if per_channel else quantization.default_dynamic_qconfig
    with quiet():  # it warns that the function is deprecated
        model = quantization.quantize_dynamic(checkpoint.load(), {torch.nn.Linear: configuration}, dtype=torch.qint8)
    tensors = {}
    for name, module in _quantized(model).items():
        weight, bias = module._weight_bias()  # noqa: SLF001  torch has no public reader of both
        tensors[f"{name}.weight"] = weight.int_repr()
        tensors[f"{name}.scales"] = (
            weight.q_per_channel_scales() if per_channel else torch.tensor(weight.q_scale(), dtype=torch.float64)
        )
        if bias is not None:
            tensors[f"{name}.bias"] = bias
    quantized = tuple(f"{name}." for name in _quantized(model))
    tensors |= {
        name: tensor.contiguous() for name, tensor in model.state_dict().items() if not name.startswith(quantized)
    }
    save_file(tensors, folder / WEIGHTS)


def load_dynamic(folder: Path, *, engine: str, threads: int = 1) -> Classifier:
    """Return the model whose weights export_dynamic wrote to `folder`, on `threads` threads.

    Raises:
        InputError: the weights are damaged or another model's.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torch.ao.nn.quantized import dynamic

    _choose_engine(engine)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / WEIGHTS} is damaged ({error}): make it again with qbert quantize") from error
    with quiet_transformers():
        from transformers import AutoConfig, AutoModelForSequenceClassification
        from transformers.initialization import no_init_weights

        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with _INITIALIZING, no_init_weights():  # random numbers for BERT-base take half of the time to load it
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    layers = {}
    try:
        for name, linear in linears:
            weight = _quantize(tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.scales"))
            layers[name] = dynamic.Linear(linear.in_features, linear.out_features, dtype=torch.qint8)
            layers[name].set_weight_bias(weight, tensors.pop(f"{name}.bias", None))
            model.set_submodule(name, torch.nn.Identity())  # the rest of the weights is loaded without it
        model.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        raise InputError(
            f"{folder / WEIGHTS} holds another model's weights ({reason(error, -1)}): make it again with qbert quantize"
        ) from error
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return classifier(model, threads)


def _quantize(steps: "torch.Tensor", scales: "torch.Tensor") -> "torch.Tensor":
    """Return the quantized weight of the int8 `steps` `(out, in)`; `scales` is one number, or one for each row."""
    import torch

    # The numbers are whole multiples of the scale, so quantizing gives the same int8 values again.
    weight = (steps.double() * scales.reshape(-1, 1)).float()
    with quiet():  # these functions are deprecated too
        if not scales.ndim:
            return torch.quantize_per_tensor(weight, float(scales), 0, torch.qint8)
        points = torch.zeros(len(scales), dtype=torch.int64)
        return torch.quantize_per_channel(weight, scales, points, 0, torch.qint8)


def _choose_engine(engine: str) -> None:
    """Make torch pack weights for `engine`; a packed weight always runs on the engine that it was packed for."""
    import torch

    if engine not in torch.backends.quantized.supported_engines:
        raise InputError(f"this build of torch has no quantization engine {engine!r}: take another variant or build")
    torch.backends.quantized.engine = engine


def _quantized(model: Any) -> dict[str, Any]:  # noqa: ANN401  a torch module
    from torch.ao.nn.quantized import dynamic

    return {name: module for name, module in model.named_modules() if isinstance(module, dynamic.Linear)}


def one_thread(threads: int = 1) -> None:
    """Keep all of torch's work in this process on one thread, or each operation on `threads`."""
    import torch

    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        torch.set_num_interop_threads(1)


def positional(model: Any, names: Sequence[str]) -> Any:  # noqa: ANN401  torch modules
    """Return `model` in the form for exporters: the arrays of an encoding as positional arguments, logits alone out."""
    import torch

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *arrays: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(**dict(zip(names, arrays, strict=True))).logits
            return logits.float()

    return Positional().eval()


def example(checkpoint: "Checkpoint") -> "tuple[torch.Tensor, ...]":
    """Return the arrays of a short encoding, with which exporters trace."""
    import torch

    return tuple(map(torch.from_numpy, checkpoint.encoder("a b c d e f", max_length=16).values()))


def classifier(model: Any, threads: int = 1) -> Classifier:  # noqa: ANN401  a torch module
    """Return a classifier that runs `model`, of transformers in evaluation mode, on `threads` without autograd."""
    import torch

    one_thread(threads)
    quantized_ops = len(_quantized(model))

    def run(encoding: Encoding) -> "npt.NDArray[np.float32]":
        with torch.inference_mode():
            logits = model(**{name: torch.from_numpy(array) for name, array in encoding.items()}).logits
            return logits.float().numpy()  # type: ignore[no-any-return]

    return Classifier.counted(
        run,
        {
            "precision": str(next(model.parameters()).dtype).removeprefix("torch."),
            "quantized_ops": quantized_ops,
            "threads": torch.get_num_threads(),
        },
        # PyTorch, "CPU threading": threads may run a model's forward pass on inputs of their own. For quantized layers
        # this fails: with the engine onednn one of 12,000 calls of 8 threads was wrong (PyTorch 2.13, AMD Zen 3).
        concurrent=not quantized_ops,
    )


def products(inputs: int, outputs: int) -> Products:
    """Yield the products that nn.Linear and torchao call, and those of TorchInductor: oneDNN with packed weights."""
    import torch

    one_thread()

    def floats(weight: torch.Tensor, rows: int) -> Callable[[], Any]:
        return partial(torch.nn.functional.linear, torch.rand(rows, inputs).to(weight.dtype), weight)

    def packed(weight: torch.Tensor, rows: int) -> Callable[[], Any]:
        onednn, x = torch.ops.mkldnn, torch.rand(rows, inputs).to(weight.dtype)
        reordered = onednn._reorder_linear_weight(weight, rows)  # noqa: SLF001  what TorchInductor calls
        return partial(onednn._linear_pointwise, x, reordered, None, "none", [], "")  # noqa: SLF001

    def integers(weight: torch.Tensor, rows: int) -> Callable[[], Any]:
        x = torch.randint(-127, 128, (rows, inputs), dtype=torch.int8)
        return partial(torch._int_mm, x, weight.t())  # noqa: SLF001  what torchao calls

    def quantized(weight: torch.Tensor, rows: int) -> Callable[[], Any]:
        x = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8)
        packed = torch.ops.onednn.qlinear_prepack(weight, [rows, inputs])
        scales, points = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
        # No bias; scale, zero point and type of the result; nothing after it. Where bf16 is emulated, a call of 6 ms to
        # fp32 takes 11 s to bf16 (AMD Zen 3).
        result: tuple[Any, ...] = (None, 1.0, 0, torch.bfloat16 if has_bf16 else torch.float32, "none", [], "")
        return partial(torch.ops.onednn.qlinear_pointwise, x, 1.0, 0, packed, scales, points, *result)

    # ONEDNN_MAX_CPU_ISA can hide the instructions from oneDNN. torch has no public function that tells.
    has_bf16 = machine.has_bf16() and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if precision == "fp32" or machine.has_bf16():
            weight = torch.rand(outputs, inputs).to(dtype)
            yield precision, "PyTorch", partial(floats, weight)
            if torch.backends.mkldnn.is_available() and (precision == "fp32" or has_bf16):
                yield precision, "oneDNN", partial(packed, weight)
    steps = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    yield "int8", "oneDNN", partial(integers, steps)
    if machine.is_x86() and torch.backends.mkldnn.is_available():
        yield "int8", "oneDNN", partial(quantized, steps)
