"""What an exporter makes computes what PyTorch's fp32 does, or is refused with the figure."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from qbert import variants
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.tokenizer import Encoding
from qbert.system.errors import CannotRunError, InputError
from qbert.variants import VARIANTS, Classifier, Variant, eager, held

SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
Run = Callable[[Encoding], Any]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def write(trained: Checkpoint, tmp_path: Path) -> Callable[..., Checkpoint]:
    """Write an untrained checkpoint of another configuration, with the tokenizer of `trained`."""

    def make(kind: str, **settings: Any) -> Checkpoint:
        tokenizer, folder = trained.encoder.tokenizer, tmp_path / kind
        names = {"vocab_size": len(tokenizer), "num_labels": 3, "pad_token_id": tokenizer.pad_token_id}
        config = transformers.AutoConfig.for_model(kind, **(names | SIZE | settings))
        transformers.set_seed(0)
        transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return Checkpoint.open(folder)

    return make


def own(change: Callable[[Run], Run], precision: str = "fp32", **row: Any) -> Variant:
    """A user's own variant: its export writes the weights, and its load computes what `change` makes of them."""

    def export(checkpoint: Checkpoint, folder: Path) -> None:
        eager.export(checkpoint, folder)

    def load(folder: Path) -> Classifier:
        return Classifier(change(eager.load(folder).run), {"quantized_ops": 1})

    return Variant("mine", "mine", precision, load, export, **row)


@pytest.mark.skipif(bool(VARIANTS["fp32-onnxruntime"].missing()), reason="needs onnxruntime")
@pytest.mark.parametrize("name", ["fp32-onnxruntime", "int8-onnxruntime"])
def test_an_embedding_that_the_optimizer_loses_is_refused_with_the_figure(
    name: str, write: Callable[..., Checkpoint]
) -> None:
    ernie = write("ernie", use_task_id=True)
    said = (
        r"does not compute what PyTorch's fp32 does of .*, a ernie: to \d+ tokens it gives the logit .* instead of .*"
    )
    with pytest.raises(CannotRunError, match=said + "allowed: leave it out"):
        variants.prepare(VARIANTS[name], ernie)


@pytest.mark.skipif(bool(VARIANTS["int8-openvino"].missing()), reason="needs openvino")
def test_the_floats_that_are_quantized_are_held(
    trained: Checkpoint, news: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qbert.variants import openvino

    convert = openvino.convert

    def damaged(checkpoint: Checkpoint, model: Any) -> Any:
        with torch.no_grad():
            model.bert.embeddings.token_type_embeddings.weight[1].neg_()
        return convert(checkpoint, model)

    monkeypatch.setattr(openvino, "convert", damaged)
    with pytest.raises(CannotRunError, match="OpenVINO's graph does not compute"):
        variants.prepare(VARIANTS["int8-openvino"], trained, news)


def only(condition: Callable[[Encoding], bool]) -> Callable[[Run], Run]:
    """Be wrong where `condition` holds."""
    return lambda run: lambda encoding: run(encoding) + 0.5 * np.eye(1, 5, dtype=np.float32) * condition(encoding)


@pytest.mark.parametrize(
    "condition",
    [
        lambda encoding: encoding["token_type_ids"].any(),
        lambda encoding: encoding["input_ids"].size > 300,
        lambda encoding: encoding["input_ids"].size < 8,
    ],
    ids=["pairs", "long", "short"],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_own_export_that_is_wrong_for_some_texts_is_refused(
    condition: Callable[[Encoding], bool], precision: str, trained: Checkpoint
) -> None:
    with pytest.raises(CannotRunError, match="variant mine does not compute what PyTorch's fp32 does"):
        variants.prepare(own(only(condition), precision), trained)


def test_nan_is_refused_where_fp32_gives_a_number(trained: Checkpoint) -> None:
    with pytest.raises(CannotRunError, match="gives the logit nan instead of"):
        variants.prepare(own(lambda run: lambda encoding: run(encoding) * np.float32("nan")), trained)


def test_another_way_to_load_the_same_files_is_held_too(trained: Checkpoint) -> None:
    right = own(lambda run: run)
    variants.prepare(right, trained)
    wrong = dataclasses.replace(right, load=own(lambda run: lambda encoding: -run(encoding)).load, options={"x": 1})
    wrong.load.__qualname__ = "another"
    with pytest.raises(CannotRunError, match="does not compute"):
        variants.prepare(wrong, trained)


def test_rounding_to_bf16_passes_as_bf16_and_not_as_fp32(trained: Checkpoint) -> None:
    def rounded(run: Run) -> Run:
        return lambda encoding: torch.from_numpy(run(encoding)).bfloat16().float().numpy()

    variants.prepare(own(rounded, "bf16"), trained)
    with pytest.raises(CannotRunError, match="does not compute"):
        variants.prepare(own(rounded), trained)


def test_what_was_held_is_not_held_again(
    trained: Checkpoint, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    hold = held.hold
    monkeypatch.setattr(held, "hold", lambda *args, **kwargs: calls.append(args) or hold(*args, **kwargs))
    row = own(lambda run: run)
    folders = {variants.prepare(row, trained) for _ in range(3)}
    assert len(folders) == len(calls) == 1
    (figures,) = (json.loads(path.read_text()) for path in empty_cache.glob("held/*/off.json"))
    assert 0 <= figures["greatest"] <= figures["allowed"]


def test_int8_is_no_float(trained: Checkpoint) -> None:
    variants.prepare(own(lambda run: lambda encoding: 2 * run(encoding), "int8"), trained)


def test_the_threads_of_who_makes_one_stay_as_they_are(trained: Checkpoint) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        variants.prepare(own(lambda run: run), trained)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


FLOATS = [row for name in ("fp32-onnxruntime", "fp32-openvino") for row in [VARIANTS[name]] if not row.missing()]


@pytest.mark.parametrize("row", FLOATS, ids=lambda row: row.name)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert", {"type_vocab_size": 1}),
        ("bert", {"max_position_embeddings": 8}),
        ("roberta", {"max_position_embeddings": 40, "type_vocab_size": 1}),
        ("albert", {"embedding_size": 32}),
        ("ernie", {"use_task_id": False}),
    ],
    ids=["one-type", "few-positions", "roberta", "albert", "ernie"],
)
def test_what_is_right_passes(
    row: Variant, kind: str, settings: dict[str, Any], write: Callable[..., Checkpoint]
) -> None:
    variants.prepare(row, write(kind, **settings), max_length=8)


def test_a_model_whose_fp32_gives_nan_is_not_blamed_on_the_exporter(
    write: Callable[..., Checkpoint],
) -> None:
    from safetensors.torch import load_file, save_file

    path = write("bert").folder / "model.safetensors"
    tensors = load_file(path)
    tensors["classifier.weight"].fill_(3e38)
    tensors["bert.pooler.dense.bias"].fill_(9)
    save_file(tensors, path, metadata={"format": "pt"})
    variants.prepare(own(lambda run: run), Checkpoint.open(path.parent))


def test_a_graph_that_fails_on_some_length_is_one_sentence(trained: Checkpoint) -> None:
    def short(run: Run) -> Run:
        def call(encoding: Encoding) -> Any:
            if encoding["input_ids"].size > 100:
                raise RuntimeError("Got invalid dimensions for input")
            return run(encoding)

        return call

    with pytest.raises(InputError, match=r"variant mine cannot run .*, a bert \(Got invalid dimensions for input\)"):
        variants.prepare(own(short), trained)
