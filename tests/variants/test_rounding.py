"""Weights rounded by least squares are int8 as before, and their products with the calibration texts are nearer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from qbert import variants
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.inputs.metrics import F1_OF_ONE
from qbert.inputs.tokenizer import Encoding
from qbert.variants import VARIANTS, native
from qbert.variants.native import convert, rounding
from qbert.variants.native.encoder import WEIGHTS, Encoder

CALIBRATED = "int8-native-calibrated"
needs_native = pytest.mark.skipif(bool(native.unsupported()), reason=native.unsupported() or "it runs here")


def errors(steps: np.ndarray, step: np.ndarray, weight: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The squared error of each output over `rows`."""
    return (((steps * step - weight) @ rows.T) ** 2).sum(axis=1)


@given(
    st.integers(1, 9),
    st.integers(1, 300),
    st.sampled_from([0, 1, 5, 400]),
    st.sampled_from([0, 0.5]),
    st.sampled_from([7, 127]),
    st.integers(0, 1000),
)
def test_steps_are_whole_and_in_range_and_no_output_is_farther_than_the_nearest(
    outputs: int, inputs: int, texts: int, dead: float, greatest: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(outputs, inputs)).astype(np.float32)
    rows = (generator.normal(size=(texts, inputs)) @ generator.normal(size=(inputs, inputs))).astype(np.float32)
    rows[:, generator.random(inputs) < dead] = 0  # inputs that no text has
    step = np.abs(weight).max(axis=1, keepdims=True) / np.float32(greatest)
    found = rounding.least_squares(weight, step, rows.T @ rows, greatest)
    assert np.array_equal(found, np.rint(found))
    assert np.abs(found).max() <= greatest
    nearest = np.rint(weight / step)
    least = errors(nearest, step, weight, rows)
    assert (errors(found, step, weight, rows) <= least + 1e-4 * (1 + least)).all()


def test_inputs_that_go_together_make_up_for_one_anothers_errors() -> None:
    generator = np.random.default_rng(0)
    rows = (generator.normal(size=(500, 8)) @ generator.normal(size=(8, 64))).astype(np.float32)
    weight = generator.normal(size=(32, 64)).astype(np.float32)
    step = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    found = rounding.least_squares(weight, step, rows.T @ rows)
    nearest = np.rint(weight / step)
    assert errors(found, step, weight, rows).sum() < 0.1 * errors(nearest, step, weight, rows).sum()


@pytest.fixture
def texts(trained: Checkpoint, news: Dataset) -> Callable[[int, int], list[Encoding]]:
    """Training texts, encoded."""
    return lambda start, stop: [trained.encoder(*text, max_length=32) for text in news.training_texts(stop)[start:]]


def test_squares_are_those_of_the_rows_that_the_encoder_multiplies(
    trained: Checkpoint, texts: Callable[[int, int], list[Encoding]]
) -> None:
    layers, encodings = trained.config.num_hidden_layers, texts(0, 3)
    inside = "bert.encoder.layer.{}.attention.self.{}".format
    modules = {
        f"layers.{layer}.{part}": inside(layer, part) for layer in range(layers) for part in ("query", "key", "value")
    }
    found = rounding.squares_of(trained, modules, encodings)
    model = trained.load()
    with torch.inference_mode():
        states = [
            model(**{name: torch.from_numpy(ids) for name, ids in text.items()}, output_hidden_states=True)
            for text in encodings
        ]
    for layer in range(layers):
        rows = [text.hidden_states[layer][0].numpy() for text in states]
        for part in ("query", "key", "value"):
            first_token = layer == layers - 1 and part == "query"
            seen = np.concatenate([row[:1] for row in rows] if first_token else rows)
            np.testing.assert_allclose(found[f"layers.{layer}.{part}"], seen.T @ seen, rtol=1e-3, atol=1e-3)


@needs_native
def test_a_calibrated_file_differs_in_its_int8_weights_alone_and_its_logits_are_nearer(
    trained: Checkpoint, texts: Callable[[int, int], list[Encoding]], tmp_path: Path
) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "calibrated").mkdir()
    native.export(trained, tmp_path / "plain")
    native.export_calibrated(trained, tmp_path / "calibrated", texts(0, 40))
    plain, calibrated = (load_file(tmp_path / name / WEIGHTS) for name in ("plain", "calibrated"))
    assert plain.keys() == calibrated.keys()
    for name, tensor in plain.items():
        assert tensor.dtype == calibrated[name].dtype
        int8 = tensor.dtype == np.int8
        assert np.array_equal(tensor, calibrated[name]) != int8, name
        assert not int8 or (calibrated[name].min() >= -127 and np.abs(calibrated[name] - tensor.astype(int)).max() < 64)
    model, unseen = trained.load(), texts(40, 100)
    with torch.inference_mode():
        fp32 = np.concatenate(
            [model(**{name: torch.from_numpy(ids) for name, ids in text.items()}).logits.numpy() for text in unseen]
        )
    changes = {}
    for name in ("plain", "calibrated"):
        encoder = Encoder(tmp_path / name / WEIGHTS)
        errors = F1_OF_ONE.errors(np.concatenate([encoder(text) for text in unseen]), fp32)
        changes[name] = (errors**2).sum(axis=1).mean()
    assert changes["calibrated"] < 0.8 * changes["plain"]


@needs_native
def test_an_export_takes_the_int8_weights_of_another_file(trained: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    rounded = variants.prepare(VARIANTS[CALIBRATED], trained, news) / WEIGHTS
    native.export(trained, tmp_path, ["layers.0.up"], rounded)
    written, taken = load_file(tmp_path / WEIGHTS), load_file(rounded)
    assert {name for name in written if written[name].dtype == np.int8} == {
        name for name in taken if taken[name].dtype == np.int8
    } - {"layers.0.up.weight"}
    assert all(np.array_equal(written[name], taken[name]) for name in written if name in taken)
    assert np.array_equal(
        written["layers.0.up.kept"],
        convert.bf16(trained.load().state_dict()["bert.encoder.layer.0.intermediate.dense.weight"].numpy()),
    )
