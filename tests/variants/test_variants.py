"""Each variant is what its name says, and survives being written and read."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from qbert import variants
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.inputs.tokenizer import Encoding
from qbert.system import sources
from qbert.system.errors import CannotRunError, InputError
from qbert.variants import VARIANTS, Classifier, Variant, build_processes
from qbert.variants.build import CALIBRATION_DOCUMENTS

HERE = [variant for variant in VARIANTS.values() if not variant.missing()]
INT8 = [variant for variant in HERE if variant.precision.startswith("int8")]
DYNAMIC = [variant for variant in INT8 if variant.runtime == "PyTorch eager"]
names = {"ids": lambda variant: variant.name}


def bound(variant: Variant) -> float:
    """Greatest difference from the baseline's logits, of their spread."""
    if variant in DYNAMIC:  # one scale for a whole tensor
        return 0.15
    return {"fp32": 1e-6, "bf16": 0.02, "int8": 0.05, "int8-bf16": 0.05}[variant.precision]


READ = """
import sys, pathlib, numpy as np
from qbert import variants
for folder in map(pathlib.Path, map(str.rstrip, sys.stdin)):
    variant, classifier = variants.load_artefact(folder)
    np.save(folder.parent / "logits.npy", classifier(dict(np.load(folder.parent / "encoding.npz"))))
    print("read", flush=True)
"""


def marked(row: Variant, *, slow: bool) -> list[pytest.MarkDecorator]:
    """What TorchInductor compiles takes a quarter of a minute for each model, and what NNCF calibrates half of that."""
    return [pytest.mark.exhaustive] if row.runtime == "TorchInductor" else [pytest.mark.slow] * slow


def compiled_slowly(rows: list[Variant]) -> list[object]:
    """Compiling one small model with TorchInductor is slow."""
    return [pytest.param(row, marks=[pytest.mark.slow] * (row.runtime == "TorchInductor"), id=row.name) for row in rows]


def on_every_family(rows: list[Variant]) -> pytest.MarkDecorator:
    """Each variant on each family; the slow ones are calibrations, on BERT's relatives also what is no default."""

    def slow(row: Variant, family: str) -> bool:
        return row.calibrated and not row.default if family == "bert" else row.calibrated or not row.default

    pairs = [
        pytest.param(row, family, marks=marked(row, slow=slow(row, family)), id=f"{family}-{row.name}")
        for family in ("bert", "roberta", "distilbert", "electra", "modernbert")
        for row in rows
    ]
    return pytest.mark.parametrize(("variant", "family"), pairs, indirect=["family"])


def skip_where_refused(variant: Variant, family: Checkpoint, news: Dataset) -> None:
    """Of what only BERT's relatives have, another architecture is told so."""
    if variant.name.startswith("int8-native") and family.config.model_type == "modernbert":
        with pytest.raises(InputError, match=r"int8-native runs bert, .* is a modernbert: leave it out"):
            variants.build(variant, family, news)
        pytest.skip("refused, as it should be")


def changed(checkpoint: Checkpoint, folder: Path, **configuration: object) -> Checkpoint:
    """`checkpoint` with other keys in config.json."""
    shutil.copytree(checkpoint.folder, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | configuration), encoding="utf-8")
    return Checkpoint.open(folder)


def padded(encoding: Encoding) -> Encoding:
    """The same text with padding that the mask hides."""
    return {name: np.pad(array, ((0, 0), (0, 20))) for name, array in encoding.items()}


@on_every_family(HERE)
def test_logits_agree_with_the_baseline_on_every_family_length_and_pair(
    variant: Variant, family: Checkpoint, news: Dataset, pairs: Dataset
) -> None:
    skip_where_refused(variant, family, news)
    baseline, classifier = (variants.build(one, family, news) for one in (VARIANTS["fp32"], variant))
    for encoding in (
        family.encoder.fill(news, 128),
        family.encoder.fill(news, 384),
        family.encoder.fill(pairs, 64),
        family.encoder("体育", max_length=128),
        family.encoder("体育", "健康", max_length=128),
        padded(family.encoder("体育新闻", max_length=128)),
    ):
        logits = classifier(encoding)
        assert logits.dtype == np.float32
        assert logits.shape == (1, 5)
        expected = baseline(encoding)
        assert np.abs(logits - expected).max() < bound(variant) * np.ptp(expected)


@pytest.fixture(scope="module")
def built(trained: Checkpoint, news: Dataset) -> Callable[[str], Classifier]:
    """Build a variant once, as it may take a quarter of a minute."""
    return cache(lambda name: variants.build(VARIANTS[name], trained, news, 384))


@pytest.mark.parametrize("variant", compiled_slowly([row for row in HERE if row.precision == "fp32"]))
def test_fp32_gives_the_baselines_logits_on_real_text_of_every_length(
    variant: Variant, built: Callable[[str], Classifier], trained: Checkpoint, news: Dataset
) -> None:
    baseline, classifier = built("fp32"), built(variant.name)
    for length in (3, 16, 128, 256, 384):
        encoding = trained.encoder.fill(news, length)
        assert np.abs(classifier(encoding) - baseline(encoding)).max() < 1e-3


@pytest.mark.parametrize("variant", compiled_slowly(HERE))
def test_token_types_and_mask_reach_the_model(
    variant: Variant, built: Callable[[str], Classifier], trained: Checkpoint
) -> None:
    classifier = built(variant.name)
    encoding = trained.encoder("体育新闻", "健康新闻", max_length=32)
    logits = classifier(encoding)
    tolerance = bound(variant) * np.ptp(logits)
    for name in ("token_type_ids", "attention_mask"):
        changed = encoding | {name: encoding[name].copy()}
        changed[name][0, 5:] ^= 1
        assert np.abs(classifier(changed) - logits).max() > 0
    assert np.abs(classifier(padded(encoding)) - logits).max() < tolerance


@on_every_family(INT8)
def test_every_linear_layer_is_quantized(variant: Variant, family: Checkpoint, news: Dataset) -> None:
    import torch

    skip_where_refused(variant, family, news)
    model, layers = family.load(), family.config.num_hidden_layers
    every, encoder = (
        sum(isinstance(module, torch.nn.Linear) for module in part.modules()) for part in (model, model.base_model)
    )
    evidence = variants.build(variant, family, news).evidence
    if variant.runtime == "ONNX Runtime":  # its attention takes one product for query, key and value
        assert evidence["quantized_ops"] == every - 2 * evidence["fused_ops"].get("QAttention", 0)
    elif variant.runtime == "OpenVINO":  # the head's few rows may stay, and attention's own products may not
        assert encoder <= evidence["quantized_ops"] < every + 2 * layers
    elif variant.runtime == "qbert":  # the head's two layers are fp32
        assert evidence["quantized_ops"] == every - 2
    else:
        assert evidence["quantized_ops"] == every


@pytest.mark.parametrize("variant", compiled_slowly(HERE))
def test_precision_and_threads_are_as_claimed(
    variant: Variant, built: Callable[[str], Classifier], trained: Checkpoint, news: Dataset
) -> None:
    classifier = built(variant.name)
    assert classifier.evidence["threads"] == 1
    assert classifier.evidence["precision"] == ("bfloat16" if "bf16" in variant.precision else "float32")
    assert variant.runtime == "PyTorch eager" or sum(classifier.evidence["fused_ops"].values()) >= 2
    encoding = trained.encoder.fill(news, 384)
    classifier(encoding)
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < 0.3:
        classifier(encoding)
    assert time.process_time() - cpu < 1.2 * (time.perf_counter() - wall)


@pytest.fixture(scope="module")
def reader() -> Iterator[subprocess.Popen[str]]:
    """A process that reads artefacts and has made none."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", READ], **pipes, text=True) as process:
        yield process
        assert process.communicate() == ("", "")


@pytest.mark.parametrize(
    "variant", [pytest.param(row, marks=[pytest.mark.slow] * (not row.default), id=row.name) for row in HERE]
)
def test_an_artefact_gives_identical_logits_in_another_process(
    variant: Variant, trained: Checkpoint, news: Dataset, tmp_path: Path, reader: subprocess.Popen[str]
) -> None:
    encoding = trained.encoder.fill(news, 64)
    folder = tmp_path / "artefact"
    folder.mkdir()
    variants.write_artefact(variant, trained, folder, news)
    np.savez(tmp_path / "encoding.npz", **encoding)
    reader.stdin.write(f"{folder}\n")
    reader.stdin.flush()
    assert reader.stdout.readline() == "read\n"
    _, here = variants.load_artefact(folder)
    assert np.array_equal(np.load(tmp_path / "logits.npy"), here(encoding))


@pytest.mark.parametrize(
    "variant", [pytest.param(row, marks=marked(row, slow=row.calibrated), id=row.name) for row in INT8]
)
def test_half_precision_checkpoints_are_quantized_too(
    variant: Variant, trained: Checkpoint, news: Dataset, tmp_path: Path
) -> None:
    import torch

    trained.load(dtype=torch.float16).save_pretrained(tmp_path)
    trained.encoder.tokenizer.save_pretrained(tmp_path)
    half = Checkpoint.open(tmp_path)
    encoding = trained.encoder("体育新闻", max_length=16)
    baseline = variants.build(VARIANTS["fp32"], half)(encoding)
    assert np.abs(variants.build(variant, half, news)(encoding) - baseline).max() < bound(variant) * np.ptp(baseline)


@pytest.mark.parametrize("variant", DYNAMIC, **names)
def test_what_quantize_dynamic_makes_is_what_runs(variant: Variant, trained: Checkpoint, news: Dataset) -> None:
    import torch
    from torch.ao import quantization

    encoding = trained.encoder.fill(news, 64)
    logits = variants.build(variant, trained)(encoding)
    torch.backends.quantized.engine = variant.options["engine"]
    per_channel = variant.options["per_channel"]
    how = quantization.per_channel_dynamic_qconfig if per_channel else quantization.default_dynamic_qconfig
    with pytest.warns(DeprecationWarning, match="quantiz"):
        model = quantization.quantize_dynamic(trained.load(), {torch.nn.Linear: how}, dtype=torch.qint8)
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(array) for name, array in encoding.items()}).logits.numpy()
    assert np.array_equal(logits, expected)


def test_int8_weights_take_a_quarter_of_the_space(trained: Checkpoint, tmp_path: Path) -> None:
    variants.write_artefact(VARIANTS["int8-dynamic-onednn"], trained, tmp_path)
    linear = sum(
        shape[0] * shape[1]
        for name, shape in trained.weights.items()
        if name.endswith("weight") and len(shape) == 2 and "embeddings" not in name
    )
    saved = (trained.folder / "model.safetensors").stat().st_size - (tmp_path / "quantized.safetensors").stat().st_size
    assert saved == pytest.approx(3 * linear, rel=0.05)


def test_a_variant_that_claims_int8_and_has_none_is_refused(trained: Checkpoint) -> None:
    pretender = dataclasses.replace(VARIANTS["fp32"], name="int8-pretender", precision="int8")
    with pytest.raises(InputError, match="claims int8 and runs no quantized operation"):
        variants.build(pretender, trained)


@pytest.mark.parametrize("names_given", ["int8-imaginary", "fp32,", ""])
def test_unknown_variants_are_named_with_those_there_are(names_given: str) -> None:
    with pytest.raises(InputError, match=r"unknown variant .* there are fp32, bf16"):
        variants.select(names_given)


def test_a_variant_that_cannot_run_here_is_left_out_or_refused_with_the_reason() -> None:
    absent = dataclasses.replace(VARIANTS["fp32"], name="absent", unsupported=lambda: "no such processor")
    variants.register(absent)
    try:
        assert "absent" not in [variant.name for variant in variants.select("all")]
        with pytest.raises(InputError, match="variant absent cannot run here: no such processor"):
            variants.select("fp32,absent")
        with pytest.raises(InputError, match="in the table already"):
            variants.register(absent)
    finally:
        del VARIANTS["absent"]


def test_selection_keeps_the_order_and_drops_repeats() -> None:
    chosen = [variant.name for variant in variants.select("int8-dynamic-onednn, fp32,int8-dynamic-onednn")]
    assert chosen == ["int8-dynamic-onednn", "fp32"]


def test_a_name_that_would_not_do_in_a_test_id_is_refused() -> None:
    with pytest.raises(InputError, match="take lower-case letters"):
        variants.register(dataclasses.replace(VARIANTS["fp32"], name="my variant[1]"))


@pytest.fixture
def artefact(trained: Checkpoint, tmp_path: Path) -> Path:
    variants.write_artefact(VARIANTS["int8-dynamic-onednn"], trained, tmp_path)
    return tmp_path


@pytest.mark.parametrize("verify", [True, False])
def test_a_damaged_artefact_is_refused(artefact: Path, *, verify: bool) -> None:
    weights = artefact / "quantized.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"quantized\.safetensors is damaged"):
        variants.load_artefact(artefact, verify=verify)


def test_another_models_weights_are_refused(artefact: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = artefact / "quantized.safetensors"
    tensors = load_file(weights)
    for lacking in ("bert.encoder.layer.1.output.dense.weight", "bert.embeddings.LayerNorm.bias"):
        save_file({name: tensor for name, tensor in tensors.items() if name != lacking}, weights)
        with pytest.raises(InputError, match="another model's weights"):
            variants.load_artefact(artefact, verify=False)


def test_an_artefact_of_an_untrained_model_stays_untrained(trained: Checkpoint, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = Path(shutil.copytree(trained.folder, tmp_path / "headless"))
    tensors = load_file(folder / "model.safetensors")
    rest = {name: tensor for name, tensor in tensors.items() if "classifier" not in name}
    save_file(rest, folder / "model.safetensors")
    (tmp_path / "artefact").mkdir()
    variants.write_artefact(VARIANTS["fp32"], Checkpoint.open(folder), tmp_path / "artefact")
    assert not Checkpoint.open(tmp_path / "artefact").trained


def test_an_artefact_of_another_definition_is_refused(artefact: Path) -> None:
    record = artefact / "qbert.json"
    record.write_text(record.read_text().replace('"onednn"', '"other"'))
    with pytest.raises(InputError, match="another definition of variant int8-dynamic-onednn"):
        variants.load_artefact(artefact)


@pytest.mark.parametrize(
    "variant", compiled_slowly([row for row in HERE if row.export and row.runtime != "PyTorch eager"])
)
def test_a_truncated_artefact_is_one_sentence(
    variant: Variant, trained: Checkpoint, news: Dataset, tmp_path: Path
) -> None:
    variants.write_artefact(variant, trained, tmp_path, news)
    largest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"is damaged .*: make it again with qbert quantize"):
        variants.load_artefact(tmp_path, verify=False)


def test_a_calibrated_variant_wants_training_documents(trained: Checkpoint) -> None:
    calibrated = dataclasses.replace(VARIANTS["bf16"], name="calibrated", calibrated=True, unsupported=lambda: "")
    with pytest.raises(InputError, match="calibrated is calibrated on training documents: name their dataset"):
        variants.build(calibrated, trained)


def lengths(_: Checkpoint, folder: Path, *, calibration: list[Encoding]) -> None:
    """An export that keeps only how long the texts are that it is calibrated on."""
    (folder / "lengths.json").write_text(json.dumps([one["input_ids"].shape[1] for one in calibration]))


def test_what_is_calibrated_is_made_again_for_other_texts_and_for_a_hidden_processor(
    trained: Checkpoint, news: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = dataclasses.replace(VARIANTS["int8-openvino"], name="lengths", export=lengths)
    shorter = Path(shutil.copytree(trained.folder, tmp_path / "shorter"))
    record = json.loads((shorter / "qbert.json").read_text())
    (shorter / "qbert.json").write_text(json.dumps(record | {"max_length": 8}))
    folders = [variants.prepare(variant, Checkpoint.open(place), news) for place in (trained.folder, shorter)]
    assert set(json.loads((folders[1] / "lengths.json").read_text())) == {8}
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    folders.append(variants.prepare(variant, trained, news))
    monkeypatch.undo()
    hashed: list[str] = []
    sha256 = sources.sha256
    monkeypatch.setattr(sources, "sha256", lambda *names: hashed.extend(names) or sha256(*names))
    assert variants.prepare(variant, trained, news) == folders[0]
    assert "qbert.inputs.dataset" in hashed
    assert len(set(folders)) == 3


def test_processes_make_what_is_missing_of_a_large_checkpoint_and_leave_out_what_cannot_be_made(
    trained: Checkpoint,
    news: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path / "cache"))
    decoder = changed(trained, tmp_path / "decoder", is_decoder=True)
    rows = [VARIANTS[name] for name in ("fp32", "fp32-onnxruntime", "fp32-openvino", "int8-dynamic-onednn")]
    build_processes.make_missing(rows, decoder, news)
    assert not (tmp_path / "cache").exists()  # it is small
    monkeypatch.setattr(build_processes, "LARGE_BYTES", 0)
    build_processes.make_missing([rows[1]], decoder, news)
    assert not (tmp_path / "cache").exists()  # one alone
    build_processes.make_missing(rows, decoder, news)
    said = capsys.readouterr().err
    monkeypatch.setattr(sys.modules["qbert.variants.build"], "_export", None)  # nothing is made from here on
    made = [variants.prepare(row, decoder, news).name for row in rows[2:]]
    assert [name.partition("-")[0] for name in made] == ["openvino", "eager"]
    with pytest.raises(CannotRunError, match="fp32-onnxruntime does not compute what PyTorch's fp32 does"):
        variants.prepare(rows[1], decoder, news)
    assert not capsys.readouterr().err
    assert {line.split()[1] for line in said.splitlines() if line} == {row.name for row in rows[1:]}


def test_processes_that_die_while_they_make_variants_leave_them_to_this_one(
    trained: Checkpoint, news: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build_processes, "LARGE_BYTES", 0)
    monkeypatch.setattr(build_processes, "WORKER", "no.such.module")
    rows = [VARIANTS[name] for name in ("fp32-openvino", "int8-dynamic-onednn")]
    build_processes.make_missing(rows, trained, news)
    assert not list((tmp_path / "cache").glob("variants/*"))


def test_what_is_not_installed_is_named_with_the_command_that_brings_it() -> None:
    absent = dataclasses.replace(VARIANTS["fp32"], packages=("no_such_package",))
    assert absent.missing() == "no_such_package not installed: pip install no_such_package"


@pytest.mark.parametrize("variant", [row for row in HERE if row.runtime == "ONNX Runtime"], **names)
def test_onnxruntime_fuses_every_layer_of_the_families_that_it_knows(
    variant: Variant, family: Checkpoint, news: Dataset
) -> None:
    skip_where_refused(variant, family, news)
    fused = variants.build(variant, family, news).evidence["fused_ops"]
    if family.config.model_type == "modernbert":
        assert "Attention" not in fused
        return
    layers = family.config.num_hidden_layers
    attention = fused["QAttention" if variant.precision == "int8" else "Attention"]
    assert attention == layers
    assert fused["BiasGelu"] == layers
    assert fused["SkipLayerNormalization"] >= 2 * layers


@pytest.mark.skipif("int8-onnxruntime" not in [row.name for row in HERE], reason="needs onnxruntime")
def test_an_attention_that_is_not_fused_is_refused(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path / "cache"))
    load = Checkpoint.load
    monkeypatch.setattr(Checkpoint, "load", lambda self, **_: load(self, attn_implementation="sdpa"))
    with pytest.raises(InputError, match="fused the attention of 0 of 2 layers"):
        variants.prepare(VARIANTS["fp32-onnxruntime"], trained)


@pytest.mark.skipif("fp32-onnxruntime" not in [row.name for row in HERE], reason="needs onnxruntime")
def test_a_decoder_is_refused_with_no_word_of_another_release(trained: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match=r"^(?!.*another release).*leave it out"):
        variants.prepare(VARIANTS["fp32-onnxruntime"], changed(trained, tmp_path / "decoder", is_decoder=True))


def test_a_checkpoint_is_no_artefact(trained: Checkpoint) -> None:
    with pytest.raises(InputError, match="is no quantized artefact"):
        variants.load_artefact(trained.folder)


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(row, marks=marked(row, slow=row.runtime == "OpenVINO"), id=row.name)
        for row in HERE
        if row.export and row.default
    ],
)
def test_a_damaged_export_in_the_cache_is_made_again_and_said(
    variant: Variant,
    trained: Checkpoint,
    news: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path))
    encoding = trained.encoder.fill(news, 64)
    logits = variants.build(variant, trained, news)(encoding)
    (folder,) = (tmp_path / "variants").iterdir()
    for damage in (lambda path: path.write_bytes(path.read_bytes()[::-1]), Path.unlink):
        damage(max(folder.iterdir(), key=lambda path: path.stat().st_size))
        capsys.readouterr()
        assert np.array_equal(variants.build(variant, trained, news)(encoding), logits)
        assert f"{folder} is damaged: making it again" in capsys.readouterr().err
    variants.build(variant, trained, news)
    assert capsys.readouterr().err == ""


def test_the_table_is_read_without_any_runtime() -> None:
    script = """
import sys, qbert.variants
for row in qbert.variants.VARIANTS.values():
    row.missing()
assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.skipif("fp32-onnxruntime" not in [row.name for row in HERE], reason="needs onnxruntime")
def test_an_architecture_that_a_runtime_cannot_do_is_one_sentence_with_the_operator(
    trained: Checkpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import transformers

    size = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    vocabulary = len(trained.encoder.tokenizer)
    config = transformers.FNetConfig(vocab_size=vocabulary, num_labels=5, pad_token_id=0, **size)
    transformers.FNetForSequenceClassification(config).save_pretrained(tmp_path)
    trained.encoder.tokenizer.save_pretrained(tmp_path)
    fourier = Checkpoint.open(tmp_path)
    capfd.readouterr()
    cannot = r"variant fp32-onnxruntime cannot be made of .* a fnet \(.*'aten::fft_fftn'.*\): leave it out"
    with pytest.raises(InputError, match=cannot):
        variants.build(VARIANTS["fp32-onnxruntime"], fourier)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.strip().startswith("making fp32-onnxruntime of")
    assert len(err.strip().splitlines()) == 1
    if not VARIANTS["bf16"].missing():
        with pytest.raises(InputError, match=r"variant bf16 cannot run .* a fnet \(Unsupported dtype BFloat16\)"):
            variants.build(VARIANTS["bf16"], fourier)


@pytest.mark.slow
def test_two_processes_on_an_empty_cache_share_the_work(
    trained: Checkpoint, news: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path))
    name = next((row.name for row in HERE if row.calibrated and row.default), "int8-dynamic-onednn")
    script = f"""
import pathlib
from qbert.inputs import dataset
from qbert import variants
from qbert.inputs.checkpoint import Checkpoint
checkpoint = Checkpoint.open(pathlib.Path({str(trained.folder)!r}))
variants.build(variants.get({name!r}), checkpoint, dataset.load({str(news.folder)!r}))
"""
    processes = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) for _ in range(2)]
    said = b"".join(process.communicate()[1] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert said.count(f"making {name} of".encode()) == 1


def test_without_a_compiler_inductor_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"fp32-inductor cannot run here: no C\+\+ compiler: install g\+\+ or clang"):
        variants.get("fp32-inductor")


@pytest.mark.skipif("fp32-inductor" not in [row.name for row in HERE], reason="needs a C++ compiler")
def test_what_was_compiled_for_another_processor_is_refused(tmp_path: Path) -> None:
    (tmp_path / "instruction_sets.txt").write_text("avx2048")
    with pytest.raises(InputError, match="compiled for a processor with avx2048, which this one lacks"):
        VARIANTS["fp32-inductor"].load(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif("int8-openvino" not in [row.name for row in HERE], reason="needs openvino")
def test_no_telemetry_is_imported(trained: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    script = f"""
import pathlib, sys
from qbert.inputs import dataset
from qbert import variants
from qbert.inputs.checkpoint import Checkpoint
checkpoint = Checkpoint.open(pathlib.Path({str(trained.folder)!r}))
row = variants.get("int8-openvino")
texts = dataset.load({str(news.folder)!r}).training_texts(9)
encodings = [checkpoint.encoder(*text, max_length=64) for text in texts]
row.export(checkpoint, pathlib.Path({str(tmp_path)!r}), calibration=encodings)
assert not [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module]
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.skipif("int8-torchao" not in [row.name for row in HERE], reason="needs torchao")
def test_nothing_is_printed_where_torchao_is_installed(trained: Checkpoint) -> None:
    script = f"""
import pathlib
from qbert import variants
from qbert.inputs.checkpoint import Checkpoint
variants.build(variants.get("fp32"), Checkpoint.open(pathlib.Path({str(trained.folder)!r})))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert done.stdout + done.stderr == b""


def test_calibration_sees_training_documents_alone(
    trained: Checkpoint, news: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path))
    seen: list[Encoding] = []

    def export(checkpoint: Checkpoint, folder: Path, *, calibration: list[Encoding]) -> None:
        seen.extend(calibration)
        variants.eager.export(checkpoint, folder)

    variant = dataclasses.replace(VARIANTS["fp32"], export=export, calibrated=True)
    variants.build(variant, trained, news)
    encode = trained.encoder
    known = {encode(text, max_length=trained.max_length)["input_ids"].tobytes() for text in news.train["text"]}
    assert len(seen) == min(CALIBRATION_DOCUMENTS, len(news.train))
    assert {encoding["input_ids"].tobytes() for encoding in seen} <= known


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "from qbert.variants import *\nregister(Variant('of-a-package', 'x', 'fp32', print))",
            "",
        ),
        ("raise RuntimeError('no such chip')", "the variants of some_variants are left out: no such chip"),
    ],
)
def test_an_installed_package_adds_its_variants_and_a_broken_one_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "some_variants.py").write_text(text)
    information = tmp_path / "some-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: some\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[qbert.variants]\nours = some_variants\n")
    done = subprocess.run(
        [sys.executable, "-m", "qbert", "variants"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("of-a-package" in done.stdout.split()) == (not told)
    assert "int8-dynamic" in done.stdout
    assert told in done.stderr
    assert "Traceback" not in done.stderr
