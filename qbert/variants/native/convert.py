"""Quantize a checkpoint's weights for the native encoder, in steps of one size for each output."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert.inputs.tokenizer import Encoding
from qbert.system.errors import CannotRunError
from qbert.variants import families
from qbert.variants.native import ranges, rounding
from qbert.variants.native.compiler import load_library
from qbert.variants.native.encoder import (
    ACTIVATIONS,
    FORMAT,
    HEAD_ACTIVATIONS,
    WEIGHTS,
    WIDE_FORMAT,
    Geometry,
    Kept,
    header,
)

if TYPE_CHECKING:
    from qbert.inputs.checkpoint import Checkpoint

Array = npt.NDArray[Any]

COUNT_FROM_PADDING = ("camembert", "roberta", "xlm-roberta")
"""Architectures whose positions start after the padding token's id."""
SPELLINGS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}


def export(checkpoint: "Checkpoint", folder: Path, kept: Kept = (), rounded: Path | None = None) -> None:
    """Write the weights of `checkpoint` to `folder`: products in int8, word embeddings in bf16, the rest in fp32.

    The products `kept` are in bf16; None writes every product in int8 and in bf16. Numbers are rounded to the nearest
    step; or the int8 weights are those of the file `rounded`, which an export of the same checkpoint wrote.

    Raises:
        InputError: its architecture or activation is unknown.
    """
    from safetensors.numpy import load_file, save_file

    config = checkpoint.config
    family = families.of(checkpoint, "int8-native")
    activation = SPELLINGS.get(families.activation(config), families.activation(config))
    if activation not in ACTIVATIONS:
        raise CannotRunError(f"int8-native knows the activations {', '.join(ACTIVATIONS)}, not {activation!r}")
    weights = {name: tensor.numpy() for name, tensor in checkpoint.load().state_dict().items()}
    checkpoint_name = partial(module_name, checkpoint)
    word, place = (f"{checkpoint_name(name)}.weight" for name in ("embeddings.word", "embeddings.position"))
    weights[word], weights[place] = ranges.near_zero(weights[word], weights[place])
    words = weights[word]
    types = weights.get(f"{checkpoint_name('embeddings.type')}.weight", ())
    geometry = Geometry(
        vocabulary=len(words),
        embedding=words.shape[1],
        types=len(types) or 1,
        positions=checkpoint.positions,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        layers=config.num_hidden_layers,
        intermediate=len(weights[f"{checkpoint_name('layers.0.up')}.weight"]),
        labels=config.num_labels,
        activation=ACTIVATIONS.index(activation),
        head_activation=HEAD_ACTIVATIONS.index(family.head_activation),
        padding=config.pad_token_id if config.model_type in COUNT_FROM_PADDING else -1,
        epsilon=families.epsilon(config),
    )
    wide = ranges.need_floats(geometry, lambda name: weights[_source(name, checkpoint_name)])
    load_library(wide=wide)  # compiled now rather than at the first load
    tensors = {
        name: _tensor(name, kind, shape, weights, checkpoint_name)
        for name, (kind, shape) in geometry.tensors(kept).items()
    }
    if rounded:
        tensors |= {name: tensor for name, tensor in load_file(rounded).items() if name in tensors}
    save_file(tensors, folder / WEIGHTS, metadata(geometry, kept, wide=wide))


def export_calibrated(checkpoint: "Checkpoint", folder: Path, calibration: Sequence[Encoding]) -> None:
    """Write what `export` does, with int8 weights that are rounded by least squares over the texts `calibration`.

    Raises:
        InputError: its architecture or activation is unknown.
    """
    from safetensors.numpy import load_file, save_file

    export(checkpoint, folder)
    geometry, _, wide = header(folder / WEIGHTS)
    tensors = load_file(folder / WEIGHTS)
    modules = {name: module_name(checkpoint, name) for name in geometry.products()}
    weights = checkpoint.load().state_dict()
    for name, squares in rounding.squares_of(checkpoint, modules, calibration).items():
        weight, step = weights[f"{modules[name]}.weight"].numpy(), tensors[f"{name}.step"]
        tensors[f"{name}.weight"] = rounding.least_squares(weight, step[:, None], squares).astype(np.int8)
    save_file(tensors, folder / WEIGHTS, metadata(geometry, wide=wide))


def module_name(checkpoint: "Checkpoint", name: str) -> str:
    """Return what `checkpoint` calls our module `name`."""
    family, prefix = families.of(checkpoint, "int8-native"), checkpoint.skeleton.base_model_prefix
    if name.startswith("layers."):
        _, number, module = name.split(".")
        return f"{prefix}.{family.body['layers']}.{number}.{family.body[module]}"
    return family.head.get(name) or f"{prefix}.{family.body[name]}"


def _source(name: str, checkpoint_name: Callable[[str], str]) -> str:
    """Return what the checkpoint calls the tensor that `name` is made from."""
    module, _, part = name.rpartition(".")
    if module == "embeddings":  # a table, not a layer with weight and bias
        module, part = name, "weight"
    return f"{checkpoint_name(module)}.{'bias' if part == 'bias' else 'weight'}"


def metadata(geometry: Geometry, kept: Kept = (), *, wide: bool = False) -> dict[str, str]:
    """Return the header of the file; `wide` where the model needs floats between products."""
    products = kept if kept is None else sorted(kept)
    return {
        "format": WIDE_FORMAT if wide else FORMAT,
        "geometry": json.dumps(geometry.values()),
        "kept": json.dumps(products),
    }


def _tensor(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    weights: Mapping[str, Array],
    checkpoint_name: Callable[[str], str],
) -> Array:
    source_name = _source(name, checkpoint_name)
    if name == "embeddings.type" and source_name not in weights:  # an architecture without token types
        return np.zeros(shape, dtype=np.float32)
    source = weights[source_name]
    if kind == "U16":
        return bf16(source)
    if kind == "I8" or name.endswith(".step"):
        steps, step = quantize(source)
        return steps if kind == "I8" else step
    return np.ascontiguousarray(source[: shape[0]], dtype=np.float32)


def quantize(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return `weight` in whole steps from -127 to 127, `(outputs, inputs)`, and the size of each output's step."""
    step = np.abs(weight).max(axis=1) / np.float32(127)
    step[step == 0] = 1
    return np.rint(weight / step[:, None]).astype(np.int8), step


def bf16(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return `numbers` as the bits of bf16, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
