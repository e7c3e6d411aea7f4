"""Whether 16-bit floats hold a model's numbers, whatever the text: bounds from its weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qbert.variants.native.encoder import PROJECTION, Geometry

Array = npt.NDArray[Any]

GREATEST = 1 << 15  # half of the greatest 16-bit float: the rest is for what quantization adds
ROUNDED = 2.0**-25  # at most lost of a number too small for a mantissa of 11 bits
NEGLIGIBLE = 2.0**-10  # of a row's spread: an eighth of what rounding to 8 bits changes


class Numbers(NamedTuple):
    """A row of numbers that depends on the text: `centre` and `spread` times a vector of length 1 at most."""

    spread: Array
    """A matrix, or its diagonal."""
    centre: Array

    def times(self, weight: Array, bias: Array) -> "Numbers":
        """Return what a product makes of the row."""
        spread = weight * self.spread if self.spread.ndim == 1 else weight @ self.spread
        return Numbers(spread, weight @ self.centre + bias)

    def greatest(self) -> float:
        """Return what no number exceeds."""
        return float((np.linalg.norm(self.spread, axis=1) + abs(self.centre)).max())

    def length(self) -> float:
        """Return what the row's length does not exceed: of the matrix, the root of its square's norm is a bound."""
        matrix = self.spread if len(self.spread) < self.spread.shape[1] else self.spread.T
        return float(np.linalg.norm(matrix @ matrix.T) ** 0.5 + np.linalg.norm(self.centre))


def need_floats(geometry: Geometry, tensor: Callable[[str], Array]) -> bool:
    """Return whether a text might lead beyond 16-bit floats, or below what they tell apart.

    `tensor` returns the checkpoint's tensor of our name. A normalized row of n numbers is at most sqrt(n) long, before
    its weights and biases; attention's means are no longer than the values, and the functions between products make no
    number greater.
    """

    def normalized(name: str) -> Numbers:
        weight = tensor(f"{name}.weight")
        return Numbers(np.sqrt(np.float32(len(weight))) * weight, tensor(f"{name}.bias"))

    def product(name: str) -> tuple[Array, Array]:
        return tensor(f"{name}.weight"), tensor(f"{name}.bias")

    def added(name: str, norm: str, residual: Numbers, length: Array) -> bool:
        """Whether the product `name` of rows up to that length, in parts, and those rows are within halves."""
        weight, bias = product(name)
        greatest = np.linalg.norm(weight.reshape(len(weight), len(length), -1), axis=2) @ length + abs(bias)
        # What rounding loses, and the sum's spread, after the normalization that follows.
        gain, lost = abs(tensor(f"{norm}.weight")), ROUNDED * (1 + np.linalg.norm(weight, axis=1))
        spread = np.linalg.norm(residual.spread.reshape(len(weight), -1), axis=1) / np.sqrt(residual.spread.shape[-1])
        visible = NEGLIGIBLE * np.sqrt(np.mean((gain * spread) ** 2))
        return bool(greatest.max() <= GREATEST and (gain * lost).max() <= visible)

    with np.errstate(all="ignore"):  # what is infinite or nan is not within
        rows = normalized("embeddings.norm")
        if geometry.embedding != geometry.hidden:
            rows = rows.times(*product(PROJECTION))
        for layer in (f"layers.{number}" for number in range(geometry.layers)):
            value = rows.times(*product(f"{layer}.value"))
            heads = [Numbers(*parts) for parts in zip(*(np.split(part, geometry.heads) for part in value), strict=True)]
            lengths = np.array([head.length() for head in heads])
            attended = normalized(f"{layer}.attention_norm")
            up = attended.times(*product(f"{layer}.up"))
            if not (
                max(value.greatest(), up.greatest()) <= GREATEST
                and added(f"{layer}.output", f"{layer}.attention_norm", rows, lengths)
                and added(f"{layer}.down", f"{layer}.norm", attended, np.array([up.length()]))
            ):
                return True
            rows = normalized(f"{layer}.norm")
    return False


def near_zero(words: Array, positions: Array) -> tuple[Array, Array]:
    """Return both tables of embeddings, for the same normalized sums, such that words lose little as bf16.

    Where what all words have in common is most of them, positions get it instead, and what all numbers of a word have
    in common, which the normalization subtracts, is left out.
    """
    common = words.mean(axis=0)
    own = words - common
    own -= own.mean(axis=1, keepdims=True)
    if np.linalg.norm(words) <= 2 * np.linalg.norm(own):
        return words, positions
    return own, positions + common
