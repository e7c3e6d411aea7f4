"""The file of quantized weights, and the encoder that runs them: numpy and safetensors, no torch."""

import ctypes
import itertools
import json
import weakref
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError

from qbert.inputs.tokenizer import Encoding
from qbert.system.cache import file_sha256
from qbert.system.errors import InputError, reason
from qbert.variants.base import Classifier
from qbert.variants.native import packed
from qbert.variants.native.compiler import Library, load_library, load_to_pack

WEIGHTS = "native.safetensors"
FORMAT = "2"
WIDE_FORMAT = "3"  # the same for a model that needs floats between products (ranges.py)
INT8_ALONE = "1"  # the format before these, which has no kept products
ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
HEAD_ACTIVATIONS = ("tanh", "gelu", "relu")
PRODUCTS = ("query", "key", "value", "output", "up", "down")
"""Of each layer."""
PROJECTION = "embeddings.project"
LARGEST_SIZE = 1 << 20  # of any in a geometry
EXPONENT = np.uint16(0x7F80)  # of a bf16; all ones in infinity and nan
DAMAGE = OSError, SafetensorError, ValueError, KeyError, TypeError
"""What reading a damaged file raises."""
PRESENT = 1  # in place of the address of a tensor that is not read
WIDEST = 1 << 16  # inputs of a product: sums of more products of 255 * 127 could overflow 32 bits

Kept = Collection[str] | None
"""The names of the products that are kept in float; None: the file has every product in int8 and in float."""
Specification = dict[str, tuple[str, tuple[int, ...]] | None]
"""Of each tensor by its name: the type, as safetensors names it, and the shape; None where a file does without it."""


class Geometry(ctypes.Structure):
    """The sizes of an encoder; the fields are in the order of Geometry in encoder.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("vocabulary", "embedding", "types", "positions", "hidden", "heads")),
        *((name, ctypes.c_int64) for name in ("layers", "intermediate", "labels", "activation", "head_activation")),
        ("padding", ctypes.c_int64),
        ("epsilon", ctypes.c_double),
    )
    vocabulary: int
    embedding: int
    types: int
    positions: int
    hidden: int
    heads: int
    layers: int
    intermediate: int
    labels: int
    activation: int
    head_activation: int
    padding: int
    epsilon: float

    def values(self) -> dict[str, Any]:
        """Return the value of each field by its name."""
        return {field[0]: getattr(self, field[0]) for field in self._fields_}

    def check(self) -> None:
        """Raise ValueError where the sizes cannot be an encoder's."""
        sizes = [value for name, value in self.values().items() if name not in {"activation", "head_activation"}]
        widest = max(self.hidden, self.intermediate, self.embedding)
        if not all(1 <= size <= LARGEST_SIZE for size in sizes[:9]) or self.hidden % self.heads or widest > WIDEST:
            raise ValueError(f"sizes {self.values()}")
        if not (0 <= self.activation < len(ACTIVATIONS) and 0 <= self.head_activation < len(HEAD_ACTIVATIONS)):
            raise ValueError(f"activations {self.activation} and {self.head_activation}")
        if not (-1 <= self.padding < LARGEST_SIZE and 0 < self.epsilon < 1):
            raise ValueError(f"padding {self.padding}, epsilon {self.epsilon}")

    def products(self) -> dict[str, tuple[int, int]]:
        """Return outputs and inputs of each int8 or kept product, by its name, in the order in which they run."""
        hidden, wide = self.hidden, self.intermediate
        shapes = dict.fromkeys(PRODUCTS, (hidden, hidden)) | {"up": (wide, hidden), "down": (hidden, wide)}
        projection = {} if self.embedding == hidden else {PROJECTION: (hidden, self.embedding)}
        layers = range(self.layers)
        return projection | {f"layers.{layer}.{name}": shape for layer in layers for name, shape in shapes.items()}

    def tensors(self, kept: Kept = ()) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return type and shape of each tensor of a file."""
        return {name: what for group in self.groups(kept) for name, what in group.items() if what}

    def groups(self, kept: Kept = ()) -> Iterator[Specification]:
        """Yield the tensors of the embeddings, each layer and the head, in the order of the structs in encoder.h."""
        shapes = self.products()

        def product(name: str) -> Specification:
            outputs, inputs = shapes[name]
            int8, floats = kept is None or name not in kept, kept is None or name in kept
            return {
                f"{name}.weight": ("I8", (outputs, inputs)) if int8 else None,
                f"{name}.step": ("F32", (outputs,)) if int8 else None,
                f"{name}.kept": ("U16", (outputs, inputs)) if floats else None,  # bf16
                f"{name}.bias": ("F32", (outputs,)),
            }

        def vectors(size: int, *names: str) -> Specification:
            return dict.fromkeys(names, ("F32", (size,)))

        yield {
            "embeddings.word": ("U16", (self.vocabulary, self.embedding)),  # bf16
            "embeddings.position": ("F32", (self.positions + self.padding + 1, self.embedding)),
            "embeddings.type": ("F32", (self.types, self.embedding)),
            **vectors(self.embedding, "embeddings.norm.weight", "embeddings.norm.bias"),
            **(product(PROJECTION) if PROJECTION in shapes else {}),
        }
        for layer in (f"layers.{number}" for number in range(self.layers)):
            group: Specification = {}
            for name in PRODUCTS:
                group |= product(f"{layer}.{name}")
            norms = [f"{layer}.{norm}.{part}" for norm in ("attention_norm", "norm") for part in ("weight", "bias")]
            yield group | vectors(self.hidden, *norms)
        yield {
            "head.dense.weight": ("F32", (self.hidden, self.hidden)),
            **vectors(self.hidden, "head.dense.bias"),
            "head.labels.weight": ("F32", (self.labels, self.hidden)),
            **vectors(self.labels, "head.labels.bias"),
        }


class Encoder:
    """A loaded encoder: token ids in, logits out. One call at a time: all calls use the same memory."""

    weights = packed.IN_MEMORY
    """Where the weights are."""

    def __init__(self, path: Path, kernel: str = "", *, library: Library | None = None, share: bool = False) -> None:
        """Read the weights in `path`, for the fastest kernel here, the kernel of that name, or the given `library`.

        Where they are to be shared, they are mapped from a file (packed.py), if they can be.

        Raises:
            InputError: the file is damaged, or `export` did not write it.
        """
        try:
            self.geometry, self.stored, wide = header(path)
        except DAMAGE as error:
            raise _damaged(path, error) from error
        self.kept = frozenset(self.stored or ())
        """The products that are not int8."""
        self.native = library or load_library(kernel, wide=wide)
        self._mapped, read = None, path
        if share:
            self._mapped, read, self.weights = packed.shared(
                path, self.native, lambda: Encoder(path, library=self.native).pieces()
            )
        try:
            self._read(path)
        except DAMAGE as error:
            raise _damaged(read, error) from error

    def _read(self, path: Path) -> None:
        content = self._mapped
        mapped = (None, 0) if content is None else (content.ctypes.data, content.nbytes)
        handle = self.native.qbert_new(ctypes.byref(self.geometry), *mapped)
        if not handle:
            raise MemoryError
        self._handle = handle
        weakref.finalize(self, self.native.qbert_delete, handle)
        groups = list(self.geometry.groups(self.stored))
        setters = ["set_embeddings", *["add_layer"] * self.geometry.layers, "set_head"]
        for group, setter in zip(groups, setters, strict=True):
            if content is None:
                tensors = _tensors(path, group)
                addresses = [None if tensor is None else tensor.ctypes.data for tensor in tensors]
            else:
                addresses = [PRESENT if what else None for what in group.values()]
            pointers = (ctypes.c_void_p * len(addresses))(*addresses)
            if not getattr(self.native, f"qbert_{setter}")(handle, pointers):
                raise MemoryError if content is None else ValueError(f"{content.nbytes} bytes of weights")

    def pieces(self) -> Iterator[memoryview]:
        """Yield the weights as they were packed for the kernel, in parts that are to be copied at once."""
        start, size = ctypes.c_void_p(), ctypes.c_int64()
        for number in itertools.count():
            if not self.native.qbert_weights(self._handle, number, ctypes.byref(start), ctypes.byref(size)):
                return
            yield memoryview((ctypes.c_uint8 * size.value).from_address(start.value or 0))

    @property
    def instructions(self) -> list[str]:
        """The instruction sets that run."""
        names: bytes = self.native.qbert_instructions()
        return names.decode().split()

    @property
    def floats(self) -> str:
        """The type of what is not int8: attention, and kept products."""
        return "bfloat16" if "avx512_bf16" in self.instructions else "float32"

    def keep(self, kept: Collection[str]) -> None:
        """Run the products `kept` in float and all others in int8; the file has to have them in both.

        Raises:
            ValueError: the file has a product in another precision alone, or does not have it.
        """
        products = self.geometry.products()
        if unknown := set(kept) - products.keys():
            raise ValueError(f"no product {min(unknown)}")
        for name in products:
            layer, product = (-1, 0) if name == PROJECTION else (int(name.split(".")[1]), _number(name))
            if not self.native.qbert_keep(self._handle, layer, product, name in kept):
                raise ValueError(f"{name} has one precision alone")
        self.kept = frozenset(kept)

    def __call__(self, encoding: Encoding) -> npt.NDArray[np.float32]:
        """Return the logits, `(1, num_labels)`, of one encoding; padding after the text is not computed.

        Raises:
            ValueError: an id is beyond the vocabulary, there are more tokens than positions, or arrays differ in shape.
        """
        return self._run([_rows(encoding)])

    def many(self, encodings: Sequence[Encoding]) -> npt.NDArray[np.float32]:
        """Return the logits of several encodings, `(encodings, num_labels)`, to the bit those of one at a time.

        The weights are read once for all of them.

        Raises:
            ValueError: as for one.
        """
        return self._run(list(map(_rows, encodings)))

    def _run(self, texts: "list[list[npt.NDArray[np.int64]]]") -> npt.NDArray[np.float32]:
        """Return the logits of `texts`, each the ids of its tokens and, if the model has them, their types."""
        with_types = any(len(rows) > 1 for rows in texts)
        whole = [
            [rows[0], rows[1] if len(rows) > 1 else np.zeros_like(rows[0])] if with_types else rows for rows in texts
        ]
        arrays = [np.concatenate(rows) for rows in zip(*whole, strict=True)]
        lengths = np.array([ids.size for ids, *_ in texts], dtype=np.int64)
        logits = np.empty((len(texts), self.geometry.labels), dtype=np.float32)
        ids, types = [*(array.ctypes.data for array in arrays), None][:2]
        done = self.native.qbert_run(self._handle, ids, types, lengths.ctypes.data, len(texts), logits.ctypes.data)
        if done < 0:
            raise MemoryError
        if not done:
            sizes, known = self.geometry, arrays[0]
            least, most = (int(known.min()), int(known.max())) if known.size else (0, 0)
            raise ValueError(
                f"{lengths.max()} tokens with ids from {least} to {most}: this model "
                f"has {sizes.positions} positions, {sizes.vocabulary} ids and {sizes.types} token types"
            )
        return logits


def _rows(encoding: Encoding) -> list[npt.NDArray[np.int64]]:
    """Return the ids of an encoding's tokens and, if it has them, their types, without padding.

    Raises:
        ValueError: its arrays differ in shape, it is not of one text, or it has padding elsewhere than at its end.
    """
    ids = encoding["input_ids"]
    mask = encoding.get("attention_mask")
    tokens = ids.shape[1] if mask is None else int(mask.sum())
    types = encoding.get("token_type_ids")
    if ids.shape[0] != 1 or (mask is not None and not mask[0, :tokens].all()):
        raise ValueError("one text at a time, and padding only after it")
    if any(array is not None and array.shape != ids.shape for array in (mask, types)):
        raise ValueError("the arrays of one encoding have one shape")
    return [row[0, :tokens].astype(np.int64) for row in (ids, types) if row is not None]


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged or not int8-native's ({reason(error)}): make it again with qbert quantize")


def _number(product: str) -> int:
    """Return the number of the layer's product of that name in LayerTensors."""
    return PRODUCTS.index(product.rpartition(".")[2])


def header(path: Path) -> tuple[Geometry, Kept, bool]:
    """Read sizes, kept products and whether it needs floats between products from the header of `path`.

    They are checked, and every tensor's type and shape.
    """
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") not in {FORMAT, WIDE_FORMAT, INT8_ALONE}:
            raise ValueError(f"format {metadata.get('format')}, not {FORMAT} or {WIDE_FORMAT}")
        values = json.loads(metadata["geometry"])
        geometry = Geometry(**values)
        if values.keys() != geometry.values().keys():
            raise ValueError(f"geometry {sorted(values)}")
        geometry.check()
        kept: Kept = () if metadata["format"] == INT8_ALONE else json.loads(metadata["kept"])
        if kept is not None and (unknown := set(kept) - geometry.products().keys()):
            raise ValueError(f"kept product {min(unknown)}")
        specified = geometry.tensors(kept)
        if specified.keys() != set(file.keys()):
            raise ValueError(f"tensor {min(specified.keys() ^ set(file.keys()))} is missing or unknown")
        for name, what in specified.items():
            tensor = file.get_slice(name)
            if (tensor.get_dtype(), tuple(tensor.get_shape())) != what:
                raise ValueError(f"{name} is {tensor.get_dtype()} {tensor.get_shape()}")
    return geometry, kept, metadata["format"] == WIDE_FORMAT


def _tensors(path: Path, group: Specification) -> list[npt.NDArray[Any] | None]:
    """Read the tensors of one group; the file is closed after each group, so that it does not stay in memory."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) if what else None for name, what in group.items()}
    for name, tensor in tensors.items():
        if tensor is None or tensor.dtype == np.int8 or name == "embeddings.word":
            continue
        finite = np.isfinite(tensor) if tensor.dtype == np.float32 else tensor & EXPONENT != EXPONENT
        if not finite.all():
            raise ValueError(f"{name} has numbers that are not finite")
    return list(tensors.values())


def pack(folder: Path, kernels: Sequence[str]) -> None:
    """Write the weights in `folder` once more for each of the `kernels`, so that processes there map and share them.

    Raises:
        InputError: there is no compiler, and it takes one.
    """
    path = folder / WEIGHTS
    for kernel in dict.fromkeys(kernels):
        library = load_to_pack(kernel, wide=header(path)[2])
        packed.write(path, file_sha256(path), library, Encoder(path, library=library).pieces, folder)


def unread(folder: Path, kernel: str = "") -> tuple[str, ...]:
    """Return the files in `folder` of which `load` reads nothing that is not checked otherwise."""
    try:
        wide = header(folder / WEIGHTS)[2]
    except DAMAGE:  # load tells
        return ()
    return (WEIGHTS,) if packed.is_unread(folder / WEIGHTS, load_library(kernel, wide=wide)) else ()


def load(folder: Path, kernel: str = "") -> Classifier:
    """Return the encoder whose weights `export` wrote to `folder`, run by `kernel` or the fastest that there is here.

    Raises:
        InputError: the weights are damaged or of another format, or the library cannot be compiled.
    """
    encoder = Encoder(folder / WEIGHTS, kernel, share=True)
    layers = encoder.geometry.layers
    return Classifier.counted(
        encoder,
        {
            "attention": encoder.floats,
            "fused_ops": {"Attention": layers, "BiasGelu": layers, "SkipLayerNormalization": 2 * layers},
            "instructions": encoder.instructions,
            "library": encoder.native.made,
            **({"kept_ops": sorted(encoder.kept), "kept_precision": encoder.floats} if encoder.kept else {}),
            "precision": "float32",
            "quantized_ops": len(encoder.geometry.products().keys() - encoder.kept),
            "threads": 1,
            "weights": encoder.weights,
        },
        run_many=encoder.many,
    )
