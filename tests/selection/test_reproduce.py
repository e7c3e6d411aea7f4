"""The published experiment anew: its statistics, what is kept, the table."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from qbert.cli import main
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.measure.cells import Suite
from qbert.selection import reproduce
from qbert.system import sources

ONE = reproduce.Training(*(384, 0, 0.5, 0.25, 2.0, 1.9, 2.1, 0.95, 0.94, 0.01, 0.001, 0.02, 5, 500))


def test_equal_ratios_leave_no_doubt() -> None:
    before = np.array([1.0, 2.0, 4.0])
    assert reproduce.ratio_of_means(before, before / 2) == pytest.approx((2, 2, 2))


def test_one_document_has_no_interval() -> None:
    ratio, low, high = reproduce.ratio_of_means(np.array([2.0]), np.array([1.0]))
    assert ratio == 2
    assert math.isnan(low)
    assert math.isnan(high)


def test_the_interval_of_a_ratio_covers_what_it_claims() -> None:
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        length = generator.gamma(3, 1, 100)  # long documents take longer on both sides
        before, after = (scale * length * generator.gamma(50, 1 / 50, 100) for scale in (2.0, 1.0))
        _, low, high = reproduce.ratio_of_means(before, after)
        covered.append(low <= 2 <= high)
    assert 0.93 < np.mean(covered) < 0.97


def test_the_average_is_geometric_and_its_interval_students() -> None:
    middle, low, high = reproduce.average([1.0, 4.0])
    assert middle == pytest.approx(2)
    assert low * high == pytest.approx(4)
    assert math.isnan(reproduce.average([1.5])[1])


def test_what_is_kept_is_found_for_the_same_subject_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "one.json"
    assert reproduce.load_training(path, ["a"]) is None
    reproduce.save_training(path, ["a"], ONE)
    assert reproduce.load_training(path, ["a"]) == ONE
    assert reproduce.load_training(path, ["b"]) is None
    assert [file.name for file in path.parent.iterdir()] == ["one.json"]
    for damaged in ("", "[]", '{"identity": ["a"]}', '{"identity": ["a"], "training": {"x": 1}}'):
        path.write_text(damaged)
        assert reproduce.load_training(path, ["a"]) is None


def test_a_measurement_is_of_its_code_and_of_what_it_may_use_of_the_processor(
    trained: Checkpoint, news: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Suite(news, [str(trained.folder)], max_lengths=[16]).cell("tiny", 16, "int8-dynamic-onednn")
    before = reproduce.subject(cell)
    assert reproduce.subject(cell) == before
    assert json.loads(json.dumps(before)) == before
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert reproduce.subject(cell) != before
    monkeypatch.undo()
    monkeypatch.setattr(sources, "sha256", lambda *_: "edited")
    assert reproduce.subject(cell) != before


def test_the_table_fits_80_columns_and_has_the_published_figures() -> None:
    trainings = [replace(ONE, max_length=length, seed=seed) for length in (384, 256, 128) for seed in (0, 1, 2)]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(reproduce.table(trainings, title="t"))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "1066 686 1.55" in text
    assert "336 201 1.67" in text
    assert text.count("2.00 1.90–2.10") == 9
    assert "On average 2.00 times faster (95 % over 9 trainings: 2.00 to 2.00)" in text
    markdown = reproduce.markdown(trainings, title="t")
    assert len([line for line in markdown.splitlines() if line.startswith("| ")]) == 2 + 9


@pytest.fixture
def arguments(trained: Checkpoint, news: Dataset) -> list[str]:
    base = ["--base", str(trained.folder), "--dataset", str(news.folder)]
    return ["reproduce", *base, "--max-lengths", "16", "--trainings", "2", "--variant", "int8-dynamic-onednn"]


@pytest.mark.slow
def test_a_run_is_made_once_and_goes_on_where_it_was(
    arguments: list[str], news: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outputs = []
    for number in (1, 2):
        path = tmp_path / f"{number}.json"
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--json", str(path), "--markdown", str(tmp_path / "r.md")])
        assert ended.value.code == 0, capfd.readouterr()
        outputs.append(json.loads(path.read_text()))
        told = capfd.readouterr()
        assert ("training tiny" in told.err) == (number == 1)
    assert outputs[0] == outputs[1], "the second run measured again"
    assert [row["seed"] for row in outputs[0]] == [0, 1]
    for row in outputs[0]:
        assert row["documents"] == len(news.test)
        assert row["speedup_low"] < row["speedup"] < row["speedup_high"]
        assert row["speedup"] == pytest.approx(row["before_s"] / row["after_s"])
        assert row["f1_drop"] == pytest.approx(row["f1_before"] - row["f1_after"])
    assert "| 16 | 2 |" in (tmp_path / "r.md").read_text()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--variant", "fp32"], "--variant fp32 is what comes before"),
        (["--variant", "int9"], "unknown variant 'int9'"),
        (["--base", "bert-base"], "is random weights here"),
        (["--base", "./missing"], "is no folder here"),
        (["--max-lengths", "9999"], "9999"),
    ],
)
def test_a_mistake_is_a_sentence(
    arguments: list[str], changed: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *changed])
    assert ended.value.code == 2
    assert message in " ".join(capfd.readouterr().err.split())
