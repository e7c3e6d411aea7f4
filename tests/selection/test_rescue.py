"""`qbert rescue` keeps the layers in float whose int8 costs the answers, and no others."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import fragile
import nncf
import numpy as np
import onnx
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from qbert import variants
from qbert.cli import main
from qbert.inputs import dataset as datasets
from qbert.inputs import metrics, training
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.measure.cells import Cell, Suite
from qbert.selection.rescue import judging, run, search
from qbert.selection.rescue.native import NativeMixes
from qbert.selection.rescue.onnxruntime import OnnxMixes
from qbert.selection.rescue.openvino import AccuracyControl
from qbert.selection.rescue.search import Product
from qbert.system.errors import InputError
from qbert.variants import native, onnxruntime, openvino
from qbert.variants.artefact import Artefact
from qbert.variants.build import calibration_encodings
from qbert.variants.native.encoder import WEIGHTS

needs_native = pytest.mark.skipif(bool(native.unsupported()), reason=native.unsupported() or "it runs here")
needs_bf16 = pytest.mark.skipif(bool(openvino.lacks_bf16()), reason=openvino.lacks_bf16() or "it runs here")
VARIANTS = [
    pytest.param("int8-native", "layers.0.output", marks=needs_native),
    pytest.param(
        "int8-onnxruntime", "/model/bert/encoder/layer.0/attention/output/dense/MatMul", marks=pytest.mark.slow
    ),
    pytest.param(
        "int8-openvino",
        "__module.bert.encoder.layer.0.attention.output.dense/aten::linear/MatMul",
        marks=pytest.mark.slow,
    ),
]
"""Each with its name of the layer that fragile.py makes fragile."""


@given(st.integers(1, 300), st.integers(0, 400))
def test_the_fewest_are_found_in_few_trials(count: int, needed: int) -> None:
    tried: list[int] = []
    found = search.fewest(count, lambda number: tried.append(number) or number >= needed)  # type: ignore[func-returns-value]
    assert found == (max(needed, 1) if needed <= count else None)
    assert len(tried) <= 2 + np.log2(count)


def test_products_are_in_the_order_of_error_saved_for_each_second() -> None:
    products = [Product("a", 1, 0, 1), Product("b", 3, 0, 4), Product("c", 1, 0, 0.5), Product("d", 0, 0, 1)]
    assert [product.name for product in search.in_order(products)] == ["c", "a", "b", "d"]


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
def test_prices_are_smooth_and_above_0(by_multiplications: float, by_weights: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    work = {str(n): (float(n % 5 + 1) * (n % 3 + 1), float(n % 3 + 1)) for n in range(12)}
    true = {name: by_multiplications * a + by_weights * b for name, (a, b) in work.items()}
    found = search.prices(true, work)
    assert found == pytest.approx(true, rel=1e-6, abs=1e-9) or not any(true.values())
    noisy = search.prices({name: value + generator.normal() for name, value in true.items()}, work)
    assert min(noisy.values()) > 0


def test_what_is_the_same_for_all_labels_is_no_error_where_one_of_them_is_the_answer() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    one, several, number = (
        judging.Judge(cast("Dataset", None), metric, 0.01)
        for metric in (metrics.F1_OF_ONE, metrics.F1_OF_SEVERAL, metrics.CORRELATION)
    )
    assert one.squared_errors(logits + np.float32(4), logits) == pytest.approx(0, abs=1e-9)
    assert one.squared_errors(logits + np.array([[3, 0, 0]], np.float32), logits) == pytest.approx(6)
    assert several.squared_errors(logits + np.float32(4), logits) == pytest.approx(48)
    assert number.squared_errors(logits[:, :1] + np.float32(4), logits[:, :1]) == pytest.approx(16)


@given(st.integers(0, 10_000), st.sampled_from([metrics.F1_OF_ONE, metrics.F1_OF_SEVERAL]), st.floats(0.01, 3))
def test_a_change_within_the_margin_changes_no_answer(seed: int, metric: metrics.Metric, size: float) -> None:
    generator = np.random.default_rng(seed)
    before = generator.normal(size=(50, 4)).astype(np.float32)
    after = (before + size * generator.normal(size=(50, 4))).astype(np.float32)
    within = metric.changes(after, before) < metric.margins(before)
    assert (metric.answers(before) == metric.answers(after))[within].all()


def baseline(checkpoint: Checkpoint, dataset: Dataset, max_length: int) -> Cell:
    suite = Suite(dataset, [str(checkpoint.folder)], max_lengths=[max_length])
    return suite.cell(next(iter(suite.models)), max_length, "fp32")


@pytest.fixture(scope="module")
def taught(made: Callable[..., Path], news: Dataset) -> Checkpoint:
    """BERT-tiny that has learned something: its answers depend on the texts."""
    recipe = training.Recipe(epochs=10, learning_rate=1e-3, batch_size=16, warmup=0.1, masked=0.15, shortest=0.25)
    return Checkpoint.open(
        made("taught", lambda folder: training.train(news, "bert-tiny", folder, max_length=32, recipe=recipe))
    )


@pytest.fixture
def arguments(taught: Checkpoint, news: Dataset, tmp_path: Path) -> Callable[..., list[str]]:
    """What makes a checkpoint that is fragile by a factor, and returns the arguments of the command for it."""

    def make(factor: float, *more: object) -> list[str]:
        model = fragile.write(taught.folder, tmp_path / "fragile", factor)
        named = {"--model": model, "--dataset": news.folder, "--output": tmp_path / "out", "--max-length": 32}
        # Its own answers are the labels, so that each answer that int8 changes is a mistake.
        rows = datasets.load("news_mini").test
        rows = rows[~rows["text"].isin(news.test["text"])]
        answers = judging.ask(baseline(taught, news, 32), rows, "fp32").baseline.argmax(axis=1)
        rows.assign(label=answers).to_csv(tmp_path / "held-out.csv", index=False)
        named["--validation"] = tmp_path / "held-out.csv"
        return ["rescue", *(str(word) for pair in named.items() for word in pair), *map(str, more)]

    return make


def test_a_fragile_checkpoint_answers_as_before(taught: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(fragile.write(taught.folder, tmp_path / "fragile", 300, layers=(0, 1)))
    before, after = (judging.ask(baseline(one, news, 32), news.test, "fp32").baseline for one in (taught, checkpoint))
    assert not np.array_equal(after, before)
    assert np.abs(after - before).max() < 1e-3


@pytest.mark.parametrize(("variant", "name"), VARIANTS)
def test_the_product_that_was_made_fragile_is_kept_and_no_other(
    variant: str, name: str, arguments: Callable[..., list[str]], news: Dataset, tmp_path: Path
) -> None:
    done = CliRunner().invoke(main, arguments(3000, "--max-f1-drop", 0.05, "--variant", variant))
    assert done.exit_code == 0, done.stderr
    record = json.loads((tmp_path / "out" / run.REPORT).read_text(encoding="utf-8"))
    assert record["kept"] == [name]
    assert f"with 1 layer in {record['precision']} ({name}) the guard holds" in " ".join(done.stdout.split())
    assert record["plain_at_most"] > 0.05 >= record["chosen_at_most"]
    evidence = Artefact.open(tmp_path / "out").load().evidence
    assert evidence["kept_ops"] == [name]
    assert evidence["kept_precision"] == {"fp32": "float32", "bf16": "bfloat16"}[record["precision"]]
    plain = variants.build(variants.get(variant), Checkpoint.open(tmp_path / "fragile"), news, 32).evidence
    assert evidence["quantized_ops"] == plain["quantized_ops"] - 1  # some processors' attention is in int8, too
    assert max(map(len, done.stdout.splitlines()[:6])) <= 80
    answered = CliRunner().invoke(main, ["predict", "--model", str(tmp_path / "out"), "球队赢得比赛"])
    assert answered.exit_code == 0, answered.stderr


def test_weights_that_were_rounded_by_least_squares_stay_so(
    arguments: Callable[..., list[str]], news: Dataset, tmp_path: Path
) -> None:
    done = CliRunner().invoke(main, arguments(3000, "--max-f1-drop", 0.05, "--variant", "int8-native-calibrated"))
    assert done.exit_code == 0, done.stderr
    model = Checkpoint.open(tmp_path / "fragile")
    rounded = load_file(variants.prepare(variants.get("int8-native-calibrated"), model, news, 32) / WEIGHTS)
    written = load_file(tmp_path / "out" / WEIGHTS)
    int8 = [name for name, tensor in written.items() if tensor.dtype == np.int8]
    assert all(np.array_equal(written[name], rounded[name]) for name in int8)
    kept = Artefact.open(tmp_path / "out").load().evidence["kept_ops"]
    assert len(int8) + len(kept) == sum(tensor.dtype == np.int8 for tensor in rounded.values())


@pytest.mark.parametrize(("variant", "name"), VARIANTS)
def test_where_int8_holds_the_guard_nothing_is_kept(
    variant: str, name: str, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    done = CliRunner().invoke(main, arguments(1, "--max-f1-drop", 0.05, "--variant", variant))
    assert done.exit_code == 0, done.stderr
    assert "int8 holds the guard already, so no layer has to be in float" in done.stdout
    assert name not in done.stdout
    assert "kept_ops" not in Artefact.open(tmp_path / "out").load().evidence


def hide_behind(number: float, weights: Path) -> None:
    """Add `number` to all values of the first attention, and subtract it behind its output: in fp32 it cancels out."""
    tensors, attention = load_file(weights), "bert.encoder.layer.0.attention"
    tensors[f"{attention}.self.value.bias"] += np.float32(number)
    tensors[f"{attention}.output.dense.bias"] -= number * tensors[f"{attention}.output.dense.weight"].sum(axis=1)
    save_file(tensors, weights, {"format": "pt"})


@needs_native
def test_where_nothing_holds_the_guard_the_exit_code_is_1(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    # The weights of a product that is not int8 are bf16: what their rounding leaves of the number hides all else.
    named = arguments(1, "--max-f1-drop", 0.05)
    hide_behind(1e5, tmp_path / "fragile" / "model.safetensors")
    done = CliRunner().invoke(main, named)
    assert done.exit_code == 1, done.stderr
    assert "Nothing holds the guard: with no layer in int8, F1 drops by" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@needs_bf16
def test_an_accuracy_control_that_ends_without_the_guard_writes_nothing(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    # NNCF judges in fp32; in bf16 nothing but the number is left of the values.
    named = arguments(1, "--max-f1-drop", 0.05, "--variant", "int8-bf16-openvino")
    hide_behind(1000, tmp_path / "fragile" / "model.safetensors")
    done = CliRunner().invoke(main, named)
    assert done.exit_code == 1, done.stderr
    assert "Nothing holds the guard: with 12 layers of 13 in int8, F1 drops by" in done.stdout
    assert not (tmp_path / "out").exists()


@needs_native
def test_documents_that_are_not_asked_again_would_have_answered_the_same(
    taught: Checkpoint, news: Dataset, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(fragile.write(taught.folder, tmp_path / "fragile", 100))
    documents = judging.ask(baseline(checkpoint, news, 32), news.train, "all")
    plain = variants.prepare(variants.get("int8-native"), checkpoint, news, 32) / WEIGHTS
    found = search.Search(NativeMixes(checkpoint, plain), tmp_path / "prices")
    guard = judging.Judge(news, metrics.F1_OF_ONE, 0.02)
    near = guard.near(documents, found.logits([], documents.encodings))
    assert 0 < len(near) < len(documents)
    for kept in ([], found.names[:3], ["layers.0.output"], found.names):
        of_all = guard.judge(documents, found.logits(kept, documents.encodings))
        logits = found.logits(kept, [documents.encodings[number] for number in near])
        assert guard.judge(documents, logits, near) == of_all


def test_an_interrupted_run_asks_the_baseline_for_nothing_twice(
    trained: Checkpoint, news: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = judging.ask(baseline(trained, news, 30), news.test, "fp32")
    monkeypatch.setattr(Cell, "text_classifier", lambda _: pytest.fail("asked again"))
    assert np.array_equal(judging.ask(baseline(trained, news, 30), news.test, "fp32").baseline, first.baseline)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "name"), VARIANTS[:2])
def test_the_same_inputs_give_the_same_products_at_the_same_prices(
    variant: str, name: str, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    command = arguments(3000, "--max-f1-drop", 0.05, "--variant", variant)
    records = []
    for _ in range(2):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.stderr
        records.append(json.loads((tmp_path / "out" / run.REPORT).read_text(encoding="utf-8")))
        shutil.rmtree(tmp_path / "out")
    assert records[0]["kept"] == records[1]["kept"] == [name]
    assert records[0]["products"] == records[1]["products"], "times that are measured anew are never the same"
    assert records[0]["priced"] == records[1]["priced"] is not None


@needs_native
def test_prices_that_were_not_kept_whole_are_measured_again(taught: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    calibration = judging.ask(baseline(taught, news, 32), news.test, "calibration")
    plain = variants.prepare(variants.get("int8-native"), taught, news, 32) / WEIGHTS
    place = tmp_path / "prices"

    def measured() -> list[Product]:
        guard = judging.Judge(news, metrics.F1_OF_ONE, 0.02)
        return search.Search(NativeMixes(taught, plain), place).measure(guard, calibration, lambda _: None)[0]

    first = measured()
    assert measured() == first
    (place / search.SECONDS).write_bytes((place / search.SECONDS).read_bytes()[:-20])
    second = measured()
    assert second != first
    assert measured() == second


def test_a_mix_is_the_graph_that_quantization_with_nodes_left_out_gives(trained: Checkpoint, tmp_path: Path) -> None:
    fused, whole, excluded = (tmp_path / f"{name}.onnx" for name in ("fused", "whole", "excluded"))
    onnxruntime.fuse(trained, trained.load(attn_implementation="eager"), fused)
    onnxruntime.quantize(fused, whole)
    mixes = OnnxMixes(trained)
    names = mixes.names
    assert len(names) == onnxruntime.classifier(whole).evidence["quantized_ops"]
    for kept in ((), names[:1], names[1:4], names[::2], names):
        onnxruntime.quantize(fused, excluded, kept)
        expected, found = onnx.load(excluded).graph, mixes.graph(kept).graph
        assert (found.input, found.output) == (expected.input, expected.output)
        # Nodes may be in any order in which each comes after those that it reads.
        assert sorted(map(str, found.node)) == sorted(map(str, expected.node))
        weights = [
            {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer} for graph in (found, expected)
        ]
        assert weights[0].keys() == weights[1].keys()
        for name, weight in weights[0].items():
            assert weight.dtype == weights[1][name].dtype
            assert np.array_equal(weight, weights[1][name])


@pytest.mark.slow
def test_smoothed_and_then_quantized_is_the_variant_itself(taught: Checkpoint, news: Dataset) -> None:
    cell = replace(baseline(taught, news, 32), variant=variants.get("int8-openvino"))
    texts = judging.ask(cell.baseline_cell, news.test, "fp32")
    calibration = calibration_encodings(taught, news)
    smoothed = AccuracyControl(taught, cell.folder, calibration, "f32").smoothed
    sample = openvino.measured(calibration)
    again = nncf.quantize(
        smoothed,
        nncf.Dataset(sample),
        advanced_parameters=openvino.parameters(-1),
        **openvino.settings(smoothed, len(sample)),
    )
    run = openvino.runner(openvino.compile_model(again, "f32"))
    assert np.array_equal(np.concatenate([*map(run, texts.encodings)]), judging.answers(cell, news.test, "int8"))


@pytest.mark.slow
def test_a_killed_search_leaves_nothing_and_asks_int8_for_nothing_twice(
    arguments: Callable[..., list[str]], tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    command = [sys.executable, "-m", "qbert", *arguments(3000, "--max-f1-drop", 0.05, "--variant", "int8-onnxruntime")]
    environment = os.environ | {"QBERT_CACHE": str(tmp_path / "cache")}
    documents = len(pd.read_csv(tmp_path / "held-out.csv"))

    def asked() -> int:
        files = (tmp_path / "cache" / "answers").glob("int8-onnxruntime-*")
        return sum(line.startswith("[") for file in files for line in file.read_text().splitlines())

    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: asked() == documents, seconds=120)
        process.kill()
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "fragile", "held-out.csv"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "with 1 layer in fp32" in done.stdout
    assert asked() == documents + json.loads((tmp_path / "out" / run.REPORT).read_text())["test"]["documents"]


@pytest.mark.slow
def test_two_searches_at_once_share_their_answers_and_end_with_the_same_products(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "qbert", *arguments(3000, "--max-f1-drop", 0.05, "--variant", "int8-onnxruntime")]
    environment = os.environ | {"QBERT_CACHE": str(tmp_path / "cache")}
    outputs = [tmp_path / "first", tmp_path / "second"]
    running = [
        subprocess.Popen([*command, "--output", str(output)], env=environment, stderr=subprocess.DEVNULL)
        for output in outputs
    ]
    assert [process.wait() for process in running] == [0, 0]
    first, second = (json.loads((output / run.REPORT).read_text(encoding="utf-8")) for output in outputs)
    assert all(first[name] == second[name] for name in ("kept", "products", "priced"))
    for file in (tmp_path / "cache" / "answers").iterdir():
        keys = [json.loads(line)[0] for line in file.read_text().splitlines() if line]
        assert len(keys) == len(set(keys)), "an answer was computed twice"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--variant", "int8-dynamic"),
            "no int8 layers to keep in float: name one of int8-onnxruntime, int8-openvino, int8-bf16-openvino, int8-",
        ),
        (("--variant", "fp32-onnxruntime"), "variant fp32-onnxruntime has no int8 layers to keep"),
        (("--max-f1-drop", 0), "0.0 is not in the range 0<x<=1"),
        (("--max-f1-drop", 0.0001), "cannot show that F1 drops by 0.0001 at most, even if no answer changes"),
        (("--documents", 20), "20 held-out documents cannot show that F1 drops by 0.01 at most"),
        (("--validation", "missing.csv"), "missing.csv"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: Callable[..., list[str]], more: tuple[object, ...], message: str) -> None:
    done = CliRunner().invoke(main, arguments(1, *more))
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_documents_to_choose_by_are_new_to_calibration_and_to_the_test_split(news: Dataset, tmp_path: Path) -> None:
    small = datasets.Dataset(news.folder, news.label_names, news.train[:80], news.test, news.sha256)
    with pytest.raises(InputError, match=r"train\.csv has 80 rows, too few .* \(--validation\)"):
        small.to_choose_by(None, run.CALIBRATION_DOCUMENTS, None)
    rows, said = news.to_choose_by(None, run.CALIBRATION_DOCUMENTS, news.sha256)
    assert not set(news.calibration(run.CALIBRATION_DOCUMENTS).index) & set(rows.index)
    assert not rows.index.is_monotonic_increasing, "in random order: a file may be sorted by label"
    assert "which the model was trained on" in said
    path = tmp_path / "more.csv"
    news.train[:50].to_csv(path, index=False)
    assert "50 of them are in train.csv" in news.to_choose_by(path, 64, None)[1]
    for text, message in (
        ("text,label\n球队,nothing\n", r"more\.csv, line 2: label 'nothing' is not in label\.json"),
        ("text,text_pair,label\n球队,球队,0\n", r"has the columns text, text_pair, label, not text, label"),
        (news.test[:3].to_csv(index=False), r"3 of 3 rows are in test\.csv too"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            news.to_choose_by(path, 64, None)
