"""Made-up models and texts for int8-native's encoder, and what it should compute from them."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy.special import erf

from qbert.variants.native import convert
from qbert.variants.native.encoder import ACTIVATIONS, HEAD_ACTIVATIONS, WEIGHTS, Geometry, Kept

FUNCTIONS = {
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
}

ROUNDING = {
    "amx_int8": (32, 255),
    "avx512_vnni": (16, 255),
    "avx_vnni": (8, 255),
    "avx2": (8, 127),
    "asimddp": (4, 255),
}
"""By the first of these instructions that it uses: up to how many columns a kernel fills rows, and a row's steps."""


def weights(
    geometry: Geometry, seed: int, outlier: float = 1, words: float = 1, kept: Kept = ()
) -> dict[str, np.ndarray]:
    """Draw weights as a trained model's are spread; one channel of each LayerNorm is `outlier` times the others."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, (kind, shape) in geometry.tensors(kept).items():
        numbers = generator.normal(size=shape).astype(np.float32)
        smaller = outlier**2 if "query" in name else 1  # scores of thousands would tell apart what bf16 cannot
        if name.endswith(".kept"):
            tensors[name] = convert.bf16(numbers / shape[1] ** 0.5 / smaller)
        elif kind == "U16":
            numbers[0] = 0  # a word of nothing but zeros
            tensors[name] = convert.bf16(numbers * words)
        elif kind == "I8":
            tensors[name], step = convert.quantize(numbers / shape[1] ** 0.5)
            tensors[name.replace("weight", "step")] = step / smaller
        elif name.endswith("norm.weight"):
            numbers = 1 + numbers / 10
            numbers[generator.integers(len(numbers))] *= outlier
            tensors[name] = numbers
        elif not name.endswith(".step"):
            tensors[name] = numbers / (shape[1] ** 0.5 if len(shape) == 2 else 10)
    return tensors


def write(folder: Path, geometry: Geometry, tensors: dict[str, np.ndarray], kept: Kept = ()) -> Path:
    save_file(tensors, folder / WEIGHTS, convert.metadata(geometry, kept))
    return folder / WEIGHTS


def text(geometry: Geometry, tokens: int, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    encoding = {"input_ids": generator.integers(0, geometry.vocabulary, (1, tokens))}
    if geometry.types > 1:
        encoding["token_type_ids"] = generator.integers(0, geometry.types, (1, tokens))
    return encoding | {"attention_mask": np.ones((1, tokens), dtype=np.int64)}


def reference(
    geometry: Geometry,
    tensors: dict[str, np.ndarray],
    encoding: dict[str, np.ndarray],
    instructions: list[str],
    *,
    wide: bool = False,
) -> np.ndarray:
    """Return the logits in float64, rounded where a kernel with `instructions` rounds: activations, and bf16.

    What lies between products is rounded to 16 bits, unless it is `wide`.
    """
    ids, types = encoding["input_ids"][0], encoding.get("token_type_ids", [None])[0]
    columns, steps = next(rounding for name, rounding in ROUNDING.items() if name in instructions)
    numbers = {
        name: (tensor.astype(np.uint32) << 16).view(np.float32) if tensor.dtype == np.uint16 else tensor
        for name, tensor in tensors.items()
    }
    numbers = {name: tensor.astype(np.float64) for name, tensor in numbers.items()}

    def quantized(rows: np.ndarray) -> np.ndarray:
        filled = np.pad(rows, ((0, 0), (0, -rows.shape[1] % columns)))
        low = filled.min(1, keepdims=True)
        step = (filled.max(1, keepdims=True) - low) / steps
        step[step == 0] = 1
        return low + np.rint((rows - low) / step) * step

    def half(numbers: np.ndarray) -> np.ndarray:
        if "avx512_bf16" not in instructions:
            return numbers
        return (convert.bf16(numbers).astype(np.uint32) << 16).view(np.float32).astype(np.float64)

    def kept(rows: np.ndarray) -> np.ndarray:  # between two products
        return rows if wide else rows.clip(-65504, 65504).astype(np.float16).astype(np.float64)

    def product(name: str, rows: np.ndarray) -> np.ndarray:
        if f"{name}.kept" in numbers:
            return half(rows) @ numbers[f"{name}.kept"].T + numbers[f"{name}.bias"]
        coarse = quantized(rows)
        coarse[:1] += quantized(rows[:1] - coarse[:1])  # the first token has 16 bits
        return coarse @ (numbers[f"{name}.weight"] * numbers[f"{name}.step"][:, None]).T + numbers[f"{name}.bias"]

    def norm(name: str, rows: np.ndarray) -> np.ndarray:
        deviation = np.sqrt(rows.var(1, keepdims=True) + geometry.epsilon)
        return (rows - rows.mean(1, keepdims=True)) / deviation * numbers[f"{name}.weight"] + numbers[f"{name}.bias"]

    counted = np.cumsum(ids != geometry.padding) + geometry.padding
    places = np.where(ids == geometry.padding, geometry.padding, counted)
    x = numbers["embeddings.word"][ids] + numbers["embeddings.position"][places]
    x = norm("embeddings.norm", x + numbers["embeddings.type"][0 if types is None else types])
    if geometry.embedding != geometry.hidden:
        x = product("embeddings.project", x)
    for layer in range(geometry.layers):
        name = f"layers.{layer}"
        q, k, v = (
            product(f"{name}.{part}", x).reshape(len(ids), geometry.heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        q /= np.log(2) * np.sqrt(geometry.hidden // geometry.heads)
        scores = half(q) @ half(k).swapaxes(1, 2)
        powers = 2 ** (scores - scores.max(-1, keepdims=True))
        context = (half(powers) @ half(v) / powers.sum(-1, keepdims=True)).swapaxes(0, 1).reshape(len(ids), -1)
        x = norm(f"{name}.attention_norm", x + kept(product(f"{name}.output", kept(context))))
        raised = kept(FUNCTIONS[ACTIVATIONS[geometry.activation]](product(f"{name}.up", x)))
        x = norm(f"{name}.norm", x + kept(product(f"{name}.down", raised)))
    hidden = x[0] @ numbers["head.dense.weight"].T + numbers["head.dense.bias"]
    hidden = FUNCTIONS[HEAD_ACTIVATIONS[geometry.head_activation]](hidden)
    return hidden @ numbers["head.labels.weight"].T + numbers["head.labels.bias"]


def case(
    geometry: Geometry,
    tensors: dict[str, np.ndarray],
    encodings: Sequence[dict[str, np.ndarray]],
    kept: Kept = (),
    *,
    together: bool = False,
) -> bytes:
    """Return a model and texts, to be classified one by one or `together`, as native_case.cpp reads them."""

    def numbers(values: object) -> bytes:
        return np.asarray(values, dtype=np.int64).tobytes()

    parts = [bytes(geometry)]
    for group in geometry.groups(kept):
        contents = [np.ascontiguousarray(tensors[name]).tobytes() if what else b"" for name, what in group.items()]
        parts += [numbers(len(contents)), *(part for content in contents for part in (numbers(len(content)), content))]
    for encoding in encodings:
        ids, types = encoding["input_ids"][0], encoding.get("token_type_ids")
        parts += [numbers(len(ids)), numbers(ids), numbers(types is not None)]
        parts += [] if types is None else [numbers(types[0])]
    return b"".join([*parts, numbers(0), numbers(together)])


class Emulated:
    """The encoder of another processor: `command` runs the program of native_case.cpp."""

    def __init__(
        self, command: list[str], path: Path, geometry: Geometry, tensors: dict[str, np.ndarray], kept: Kept = ()
    ) -> None:
        self.command, self.path, self.model = [*command, str(path)], path, (geometry, tensors, kept)

    def __call__(self, encoding: dict[str, np.ndarray]) -> np.ndarray:
        return self.many([encoding])

    def many(self, encodings: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
        geometry, tensors, kept = self.model
        self.path.write_bytes(case(geometry, tensors, encodings, kept, together=True))
        done = subprocess.run(self.command, check=True, capture_output=True, text=True)
        return np.array([line.split() for line in done.stdout.splitlines()], dtype=np.float32)
