"""Each variant is what its name says, and survives being written and read."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qbert import InputError, machine, variants
from qbert.checkpoint import Checkpoint
from qbert.dataset import Dataset
from qbert.variants import VARIANTS, Variant

HERE = [variant for variant in VARIANTS.values() if not variant.missing()]
INT8 = [variant for variant in HERE if variant.precision == "int8"]
names = {"ids": lambda variant: variant.name}

WRITE_AND_READ = """
import sys, pathlib, numpy as np
from qbert import variants
variant, classifier = variants.load_artefact(pathlib.Path(sys.argv[1]))
np.save(sys.argv[3], classifier(dict(np.load(sys.argv[2]))))
"""


@pytest.mark.parametrize("variant", HERE, **names)
def test_logits_agree_with_the_baseline_on_every_family_length_and_pair(
    variant: Variant, family: Checkpoint, news: Dataset, pairs: Dataset
) -> None:
    baseline, classifier = (variants.build(one, family) for one in (VARIANTS["fp32"], variant))
    bound = {"fp32": 1e-6, "bf16": 0.05, "int8": 0.15}[variant.precision]  # of the spread of the baseline's logits
    for encoding in (
        family.encoder.fill(news, 128),
        family.encoder.fill(pairs, 64),
        family.encoder("体育", max_length=128),
        family.encoder("体育", "健康", max_length=128),
    ):
        logits = classifier(encoding)
        assert logits.dtype == np.float32
        assert logits.shape == (1, 5)
        expected = baseline(encoding)
        assert np.abs(logits - expected).max() < bound * np.ptp(expected)


@pytest.mark.parametrize("variant", INT8, **names)
def test_every_linear_layer_is_quantized(variant: Variant, family: Checkpoint) -> None:
    import torch

    linear = sum(isinstance(module, torch.nn.Linear) for module in family.load().modules())
    assert variants.build(variant, family).evidence["quantized_ops"] == linear


@pytest.mark.parametrize("variant", HERE, **names)
def test_precision_and_threads_are_as_claimed(variant: Variant, trained: Checkpoint) -> None:
    evidence = variants.build(variant, trained).evidence
    assert evidence["threads"] == 1
    assert evidence["precision"] == ("bfloat16" if variant.precision == "bf16" else "float32")


@pytest.mark.parametrize("variant", HERE, **names)
def test_an_artefact_gives_identical_logits_in_a_new_process(
    variant: Variant, trained: Checkpoint, news: Dataset, tmp_path: Path
) -> None:
    encoding = trained.encoder.fill(news, 64)
    folder = tmp_path / "artefact"
    folder.mkdir()
    variants.write_artefact(variant, trained, folder)
    np.savez(tmp_path / "encoding.npz", **encoding)
    arguments = [folder, tmp_path / "encoding.npz", tmp_path / "logits.npy"]
    subprocess.run([sys.executable, "-c", WRITE_AND_READ, *map(str, arguments)], check=True)
    assert np.array_equal(np.load(tmp_path / "logits.npy"), variants.build(variant, trained)(encoding))


@pytest.mark.parametrize("variant", INT8, **names)
def test_half_precision_checkpoints_are_quantized_too(variant: Variant, trained: Checkpoint, tmp_path: Path) -> None:
    import torch

    trained.load(dtype=torch.float16).save_pretrained(tmp_path)
    trained.encoder.tokenizer.save_pretrained(tmp_path)
    half = Checkpoint.open(tmp_path)
    encoding = trained.encoder("体育新闻", max_length=16)
    baseline = variants.build(VARIANTS["fp32"], half)(encoding)
    assert np.abs(variants.build(variant, half)(encoding) - baseline).max() < 0.15 * np.ptp(baseline)


@pytest.mark.parametrize("variant", INT8, **names)
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
    absent = dataclasses.replace(VARIANTS["fp32"], name="absent", missing=lambda: "no such processor")
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


def test_a_damaged_artefact_is_refused(artefact: Path) -> None:
    weights = artefact / "quantized.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"quantized\.safetensors is damaged"):
        variants.load_artefact(artefact)


def test_another_models_weights_are_refused(artefact: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = artefact / "quantized.safetensors"
    tensors = load_file(weights)
    for lacking in ("bert.encoder.layer.1.output.dense.weight", "bert.embeddings.LayerNorm.bias"):
        save_file({name: tensor for name, tensor in tensors.items() if name != lacking}, weights)
        with pytest.raises(InputError, match="another model's weights"):
            variants.load_artefact(artefact)


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


def test_a_checkpoint_is_no_artefact(trained: Checkpoint) -> None:
    with pytest.raises(InputError, match="is no quantized artefact"):
        variants.load_artefact(trained.folder)


def test_a_damaged_export_in_the_cache_is_named(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path))
    variants.build(VARIANTS["int8-dynamic-onednn"], trained)
    (weights,) = tmp_path.rglob("quantized.safetensors")
    weights.write_bytes(b"")
    with pytest.raises(InputError, match="is damaged"):
        variants.build(VARIANTS["int8-dynamic-onednn"], trained)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads Linux's list of flags")
def test_instruction_sets_are_the_processors() -> None:
    import cpuinfo

    flags = set(cpuinfo.get_cpu_info()["flags"])
    assert set(machine.instruction_sets()) == {name for flag, name in machine.INSTRUCTION_SETS.items() if flag in flags}


def test_the_table_is_read_without_any_runtime() -> None:
    script = """
import sys, qbert.variants
for row in qbert.variants.VARIANTS.values():
    row.missing()
assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
