"""Made-up models and texts for int8-native's encoder: what the tests of the encoder and of its kernels share."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from qbert.variants.native import convert
from qbert.variants.native.encoder import FORMAT, WEIGHTS, Geometry


def weights(geometry: Geometry, seed: int, outlier: float = 1, words: float = 1) -> dict[str, np.ndarray]:
    """Draw weights as a trained model's are spread; one channel of each LayerNorm is `outlier` times the others."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, (kind, shape) in ((name, what) for group in geometry.groups() for name, what in group.items()):
        numbers = generator.normal(size=shape).astype(np.float32)
        if kind == "U16":
            numbers[0] = 0  # a word of nothing but zeros
            tensors[name] = convert.bf16(numbers * words)
        elif kind == "I8":
            tensors[name], step = convert.quantize(numbers / shape[1] ** 0.5)
            # Scores of thousands would tell apart what bf16 cannot.
            tensors[name.replace("weight", "step")] = step / (outlier**2 if "query" in name else 1)
        elif name.endswith("norm.weight"):
            numbers = 1 + numbers / 10
            numbers[generator.integers(len(numbers))] *= outlier
            tensors[name] = numbers
        elif not name.endswith(".step"):
            tensors[name] = numbers / (shape[1] ** 0.5 if len(shape) == 2 else 10)
    return tensors


def write(folder: Path, geometry: Geometry, tensors: dict[str, np.ndarray]) -> Path:
    save_file(tensors, folder / WEIGHTS, {"format": FORMAT, "geometry": json.dumps(geometry.values())})
    return folder / WEIGHTS


def text(geometry: Geometry, tokens: int, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    encoding = {"input_ids": generator.integers(0, geometry.vocabulary, (1, tokens))}
    if geometry.types > 1:
        encoding["token_type_ids"] = generator.integers(0, geometry.types, (1, tokens))
    return encoding | {"attention_mask": np.ones((1, tokens), dtype=np.int64)}
