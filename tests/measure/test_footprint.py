"""What a process of its own tells of a variant."""

import dataclasses
import json
import time
from pathlib import Path

import pytest

from qbert import variants
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.measure import footprint
from qbert.system.errors import CannotRunError, InputError
from qbert.variants import VARIANTS, Variant

HERE = [row for row in VARIANTS.values() if not row.missing() and row.default]


@pytest.mark.parametrize(
    "variant",
    [pytest.param(row, marks=[pytest.mark.slow] * (row.precision != "fp32"), id=row.name) for row in HERE],
)
def test_a_footprint_is_of_a_process_of_its_own(variant: Variant, trained: Checkpoint, news: Dataset) -> None:
    folder = variants.prepare(variant, trained, news)
    start = time.perf_counter()
    found = footprint.measure(variant, folder, trained.encoder.fill(news, 64))
    whole = time.perf_counter() - start
    assert found.load_s > 0
    assert found.first_call_s > 0
    assert found.load_s + found.first_call_s < whole
    assert 20e6 < found.peak_rss_bytes < 2e9
    assert found.after_pause_s is None
    assert found.evidence == json.loads(json.dumps(dict(variants.build(variant, trained, news).evidence)))


@pytest.mark.slow
def test_calls_after_a_pause_are_timed_when_asked_for(trained: Checkpoint, news: Dataset) -> None:
    start = time.perf_counter()
    found = footprint.measure(VARIANTS["fp32"], trained.folder, trained.encoder.fill(news, 64), footprint.PAUSES)
    whole = time.perf_counter() - start
    assert found.after_pause_s is not None
    assert 0 < found.after_pause_s < whole - footprint.PAUSES * footprint.PAUSE_S


@pytest.mark.slow
def test_a_runtime_that_needs_no_torch_loads_none(trained: Checkpoint, news: Dataset) -> None:
    runtimes = [row for row in HERE if row.runtime in ("ONNX Runtime", "OpenVINO")]
    if not runtimes:
        pytest.skip("needs onnxruntime or openvino")
    encoding = trained.encoder.fill(news, 64)
    torch = footprint.measure(VARIANTS["fp32"], trained.folder, encoding)
    for variant in runtimes:
        folder = variants.prepare(variant, trained, news)
        assert footprint.measure(variant, folder, encoding).peak_rss_bytes < torch.peak_rss_bytes / 2


@pytest.mark.slow
def test_the_memory_of_this_process_is_not_counted(trained: Checkpoint, news: Dataset) -> None:
    encoding = trained.encoder.fill(news, 64)
    before = footprint.measure(VARIANTS["fp32"], trained.folder, encoding).peak_rss_bytes
    ballast = b"x" * 1_500_000_000
    after = footprint.measure(VARIANTS["fp32"], trained.folder, encoding).peak_rss_bytes
    assert len(ballast) > 2 * after
    assert after == pytest.approx(before, rel=0.1)


def test_a_failure_in_the_other_process_is_one_sentence(trained: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"variant fp32 fails in a process of its own: .*"):
        footprint.measure(VARIANTS["fp32"], tmp_path, trained.encoder.fill(news, 64))


@pytest.mark.slow
def test_an_outside_variant_is_found_in_the_other_process(
    outside: Path, trained: Checkpoint, news: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(outside))
    (outside / "more.py").write_text(
        "from qbert.variants import eager\ndef load(folder, wanted):\n    return eager.load(folder)\n"
    )
    import more

    variant = dataclasses.replace(VARIANTS["fp32"], load=more.load, options={"wanted": 1, "not_wanted": 2})
    assert footprint.measure(variant, trained.folder, trained.encoder.fill(news, 64)).evidence["threads"] == 1


def test_answers_that_are_no_numbers_are_no_footprint(
    trained: Checkpoint, news: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "no_numbers.py").write_text("""
import numpy as np
from qbert.variants import Classifier
def load(folder):
    return Classifier(lambda encoding: np.full((1, 5), np.nan, dtype=np.float32), {})
""")
    import no_numbers

    variant = Variant("no-numbers", "none", "fp32", no_numbers.load)
    with pytest.raises(CannotRunError, match="own: it answers with nan or infinity"):
        footprint.measure(variant, trained.folder, trained.encoder.fill(news, 16))
