"""Weights that lead beyond 16-bit floats cost int8-native no more of the answers than plain int8 loses of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from native_cases import ROUNDING, text
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from qbert.inputs.checkpoint import Checkpoint
from qbert.variants import native
from qbert.variants.native import convert, ranges
from qbert.variants.native.encoder import WEIGHTS, Encoder, header

pytestmark = pytest.mark.skipif(bool(native.unsupported()), reason=native.unsupported() or "it runs here")

SHAPE = {"vocab_size": 60, "max_position_embeddings": 66, "num_labels": 5, "pad_token_id": 1}
SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
MODELS = {
    "bert": ("bert", SIZE),
    "bert with relu": ("bert", SIZE | {"hidden_act": "relu"}),
    "distilbert": ("distilbert", {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}),
    "electra": ("electra", SIZE | {"embedding_size": 32}),
    "roberta": ("roberta", SIZE),
}
PLACES = ("embeddings", "embeddings.norm", "value", "up", "attention_norm", "norm")
CALIBRATED = -1.0
TOKENS = (1, 2, 7, 16, 30, 64)


@cache
def model(name: str) -> torch.nn.Module:
    """A model whose numbers are spread as a trained one's are."""
    import transformers

    family, size = MODELS[name]
    config = transformers.AutoConfig.for_model(family, **SHAPE, **size)
    made = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    for key, parameter in made.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2 and "embeddings." not in key:
            drawn /= parameter.shape[1] ** 0.5
        elif "norm" in key.lower() and key.endswith("weight"):
            drawn = 1 + drawn / 10
        elif parameter.ndim == 1:
            drawn /= 10
        parameter.data = drawn
    return made


@dataclass
class Rescaled:
    """A checkpoint with numbers of another size between its products; most functions of them are as before."""

    checkpoint: Checkpoint
    tensors: dict[str, torch.Tensor]

    def scale(self, factor: float, *names: str, parts: tuple[str, ...] = ("weight", "bias")) -> None:
        for name in names:
            module = convert.module_name(self.checkpoint, name)
            for part in parts:
                if f"{module}.{part}" in self.tensors:
                    self.tensors[f"{module}.{part}"] *= factor

    def apply(self, place: str, layer: int, factor: float) -> None:
        """Make the numbers at `place` that many times as great, and undo it where they are read."""
        own, last = f"layers.{layer}.", layer + 1 == self.checkpoint.config.num_hidden_layers
        undo = partial(self.scale, 1 / factor, parts=("weight",))
        if place == "embeddings":
            self.scale(factor, "embeddings.word", "embeddings.position")
            if self.checkpoint.config.model_type != "distilbert":
                self.scale(factor, "embeddings.type")
        elif place == "embeddings.norm":
            self.scale(factor, place)
            if hasattr(self.checkpoint.skeleton.base_model, "embeddings_project"):
                return undo("embeddings.project")
            undo(*(f"layers.0.{name}" for name in ("query", "key", "value")))
            self.scale(factor, "layers.0.output")
        elif place == "value":
            self.scale(factor, f"{own}value")
            undo(f"{own}output")
        elif place == "up":  # another function, unless it is ReLU
            self.scale(factor, f"{own}up")
            undo(f"{own}down")
        elif place == "attention_norm":
            self.scale(factor, own + place, f"{own}down")
            undo(f"{own}up")
        elif last:
            self.scale(factor, own + place)
            undo("head.dense")
        else:
            self.scale(factor, own + place, f"layers.{layer + 1}.output")
            undo(*(f"layers.{layer + 1}.{name}" for name in ("query", "key", "value")))
        return None


def rescaled(name: str, factors: dict[tuple[str, int], float], folder: Path) -> Checkpoint:
    import transformers

    made = model(name)
    made.config.save_pretrained(folder)
    tensors = {key: tensor.clone() for key, tensor in made.state_dict().items()}
    change = Rescaled(Checkpoint(folder), tensors)
    for (place, layer), factor in factors.items():
        change.apply(place, layer, factor)
    transformers.AutoModelForSequenceClassification.from_config(made.config).save_pretrained(folder, state_dict=tensors)
    return Checkpoint(folder)


def plain_int8(checkpoint: Checkpoint, products: list[str], kept: list[str], steps: int) -> torch.nn.Module:
    """The model in float64, with int8 weights by output and rows in steps by token, or of those `kept` bf16 weights."""

    def by_token(_: object, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        low, high = inputs[0].amin(-1, keepdim=True), inputs[0].amax(-1, keepdim=True)
        step = (high - low) / steps
        return (low + torch.where(step > 0, ((inputs[0] - low) / step).round(), 0) * step,)

    made = checkpoint.load().double()
    for name in products:
        module = made.get_submodule(convert.module_name(checkpoint, name))
        if name in kept:
            module.weight.data = module.weight.data.bfloat16().double()
            continue
        step = module.weight.data.abs().amax(1, keepdim=True) / 127
        module.weight.data = (module.weight.data / step).round() * step
        module.register_forward_pre_hook(by_token)
    return made


def texts(path: Path) -> Iterator[dict[str, np.ndarray]]:
    geometry, *_ = header(path)
    for tokens in TOKENS:
        for seed in range(3):
            encoding = text(geometry, tokens, seed)
            encoding["input_ids"] = np.where(encoding["input_ids"] == 1, 2, encoding["input_ids"])  # no padding
            yield encoding


def rms(logits: list[np.ndarray], true: list[np.ndarray]) -> float:
    return float(np.sqrt(np.mean((np.concatenate(logits) - np.concatenate(true)) ** 2)))


def logits_of(made: torch.nn.Module, encodings: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    with torch.inference_mode():
        return [made(**{key: torch.from_numpy(ids) for key, ids in text.items()}).logits.numpy() for text in encodings]


def ratio(checkpoint: Checkpoint, folder: Path, share: float = 0) -> float:
    """The error of int8-native, with about that share of its products kept, or calibrated, over that of plain int8."""
    native.export(checkpoint, folder)
    geometry, *_ = header(folder / WEIGHTS)
    encodings = list(texts(folder / WEIGHTS))
    drawn = np.random.default_rng(0).random(len(geometry.products()))
    kept = [product for product, number in zip(geometry.products(), drawn, strict=True) if number < share]
    if share == CALIBRATED:  # then none is kept
        native.export_calibrated(checkpoint, folder, encodings)
    else:
        native.export(checkpoint, folder, kept)
    encoder = Encoder(folder / WEIGHTS)
    steps = next(rounding[1] for key, rounding in ROUNDING.items() if key in encoder.instructions)
    true = logits_of(checkpoint.load().double(), encodings)
    plain = rms(logits_of(plain_int8(checkpoint, [*geometry.products()], kept, steps), encodings), true)
    return rms([encoder(text) for text in encodings], true) / plain


places = st.tuples(st.sampled_from(PLACES), st.integers(0, 1))
factors = st.floats(-8, 8).map(lambda exponent: 10**exponent)


def check(place: Path, name: str, factors: dict[tuple[str, int], float], share: float = 0) -> None:
    # Of 340 draws half were below 0.56, where plain int8 itself has the first token in no more bits than the others,
    # and the worst was 1.04; with 16-bit floats for all they went up to 233.
    assert ratio(rescaled(name, factors, place), place, share) < 1.5


CASES = [
    *(({("value", layer): factor for layer in (0, 1)}, "bert") for factor in (1e5, 1e-7)),
    *(({("up", layer): factor for layer in (0, 1)}, "bert with relu") for factor in (1e5, 1e-7)),
    *(({(norm, layer): 1e6 for norm in ("attention_norm", "norm") for layer in (0, 1)}, name) for name in MODELS),
]


@pytest.mark.parametrize(("factors", "name"), CASES)
def test_numbers_between_products_beyond_16_bits_cost_no_more_answers_than_plain_int8(
    tmp_path: Path, factors: dict[tuple[str, int], float], name: str
) -> None:
    check(tmp_path, name, factors)


@pytest.mark.slow
@settings(deadline=None, max_examples=60, phases=set(Phase) - {Phase.shrink}, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(list(MODELS)),
    st.dictionaries(places, factors),
    st.sampled_from([0, 0, 0.4, CALIBRATED]),
)
def test_whatever_the_size_of_numbers_between_products_the_error_is_plain_int8s(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    factors: dict[tuple[str, int], float],
    share: float,
) -> None:
    check(tmp_path_factory.mktemp("ranges"), name, factors, share)


@pytest.mark.parametrize("size", [100, 1000])
def test_words_that_have_much_in_common_are_told_apart(tmp_path: Path, size: float) -> None:
    name, generator = "bert", torch.Generator().manual_seed(1)
    checkpoint = rescaled(name, {}, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    common = size * torch.randn(64, generator=generator).numpy()
    tensors["bert.embeddings.word_embeddings.weight"] += common + size * torch.randn(60, 1, generator=generator).numpy()
    tensors["bert.embeddings.position_embeddings.weight"] -= common
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert ratio(checkpoint, tmp_path) < 1.5


@pytest.mark.parametrize("name", MODELS)
def test_an_ordinary_model_keeps_16_bits_and_the_format_of_its_file(tmp_path: Path, name: str) -> None:
    native.export(rescaled(name, {}, tmp_path), tmp_path)
    with safe_open(tmp_path / WEIGHTS, framework="numpy") as file:
        assert file.metadata()["format"] == "2"
        words = model(name).base_model.embeddings.word_embeddings.weight.detach().numpy()
        assert np.array_equal(file.get_tensor("embeddings.word"), convert.bf16(words))


@given(st.integers(0, 1000), st.sampled_from([1, 3]), st.sampled_from([8, 32]))
def test_no_text_goes_beyond_the_bounds(seed: int, rows: int, width: int) -> None:
    """The rows that reach a product's bounds are those that point the way of its weights."""
    generator = np.random.default_rng(seed)
    numbers = ranges.Numbers(generator.normal(size=(rows, width)), generator.normal(size=rows))
    directions = np.concatenate([numbers.spread, generator.normal(size=(50, width))])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    reached = directions @ numbers.spread.T
    found = np.concatenate([numbers.centre + reached, numbers.centre - reached])
    assert np.abs(found).max() <= numbers.greatest() * (1 + 1e-9)
    assert numbers.greatest() <= np.abs(found).max() * (1 + 1e-9)
    assert np.linalg.norm(found, axis=1).max() <= numbers.length() * (1 + 1e-9)
