"""`qbert choose`: the fastest variant that holds the guard, by no more documents than it takes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import qbert
from qbert import variants
from qbert.cli import main
from qbert.inputs import bounds
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset, text_rows
from qbert.measure.cells import baseline_of
from qbert.selection import choosing
from qbert.selection.choosing import Wanted
from qbert.selection.kept_answers import KeptAnswers
from qbert.system.errors import InputError
from qbert.variants import eager

MADE_UP = """
from qbert.variants import Classifier, Variant, eager, register

def wrapped(folder, wrong):
    right = eager.load(folder)
    def run(encoding):
        logits = right(encoding)
        return -logits if encoding["input_ids"].sum() % 10 < wrong else logits
    return Classifier(run, {"threads": 1})

def exact(folder):
    return wrapped(folder, 0)

def wrong(folder):
    return wrapped(folder, 4)

def broken(folder):
    raise RuntimeError("no such operator")

for load in (exact, wrong, broken):
    register(Variant(load.__name__, "PyTorch eager", "fp32", load))
"""


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Add variants that are as good as fp32, wrong in four of ten texts, and broken; give their module's folder."""
    (tmp_path / "made_up_rows.py").write_text(MADE_UP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(variants, "VARIANTS", variants.VARIANTS.copy())
    monkeypatch.delitem(sys.modules, "made_up_rows", raising=False)
    __import__("made_up_rows")
    return tmp_path


@pytest.fixture
def validation(tmp_path: Path, news: Dataset, trained: Checkpoint) -> Callable[[int], Path]:
    """Write that many texts that occur in neither split, labelled as fp32 does, so that every flip is a loss."""

    def write(count: int) -> Path:
        rows = news.train.sample(count, replace=True, random_state=3)
        texts = [f"{number} {text}" for number, text in enumerate(rows["text"])]
        path = tmp_path / "validation.csv"
        fp32 = eager.load(trained.folder)
        labels = [int(fp32(trained.encoder(text, max_length=trained.max_length)).argmax()) for text in texts]
        pd.DataFrame({"text": texts, "label": labels}).to_csv(path, index=False)
        return path

    return write


@pytest.fixture
def run(made_up: Path, trained: Checkpoint, news: Dataset) -> Callable[..., choosing.Choice]:
    """Choose for the small checkpoint."""

    def call(names: str, limit: float, validation: Path | None, **limits: object) -> choosing.Choice:
        wanted = Wanted(limit, **limits)  # type: ignore[arg-type]
        output = made_up / "served"
        return choosing.choose(str(trained.folder), str(news.folder), names, output, wanted, validation=validation)

    return call


def lost_and_gained(rng: np.random.Generator, drop: float, flips: float, documents: int) -> np.ndarray:
    """Return 1 for a document that is lost, -1 for one that is gained, else 0."""
    return rng.choice([-1.0, 0.0, 1.0], documents, p=[(flips - drop) / 2, 1 - flips, (flips + drop) / 2])


def test_a_variant_surely_over_is_dropped_early_and_one_surely_within_is_served(
    run: Callable[..., choosing.Choice], validation: Callable[[int], Path], made_up: Path
) -> None:
    found = run("wrong,exact", 0.05, validation(400))
    rows = {row.variant: row for row in found.rows}
    assert found.chosen is rows["exact"]
    assert rows["exact"].verdict == "holds"
    assert rows["exact"].documents == 100
    if rows["wrong"].documents:  # it is as fast: the order is chance
        assert rows["wrong"].verdict == "over"
        assert rows["wrong"].documents < 100
    served = qbert.load(made_up / "served")
    assert served.variant == "exact"
    record = json.loads((made_up / "served" / choosing.RECORD).read_text())
    assert record["chosen"] == "exact"
    assert record["test"]["documents"] == 60
    assert record["test"]["f1_drop"] == 0
    assert "surely" in record["sentence"]
    assert "test split, read once" in record["sentence"]


def test_nothing_is_written_over(run: Callable[..., choosing.Choice], made_up: Path) -> None:
    (made_up / "served").mkdir()
    (made_up / "served" / "mine").touch()
    with pytest.raises(InputError, match="exists already"):
        run("exact", 0.05, None)


def test_too_few_documents_decide_nothing_and_it_says_how_many_would(
    run: Callable[..., choosing.Choice], validation: Callable[[int], Path], made_up: Path
) -> None:
    given = validation(60)
    found = run("exact", 0.001, given, guard="interval")
    (row,) = found.rows
    assert found.chosen is None
    assert (row.verdict, row.documents) == ("unsure", 60)
    assert row.documents_to_be_sure is not None
    assert row.documents_to_be_sure > 1_000
    assert f"{row.documents_to_be_sure:,}" in found.sentence
    assert "qbert rescue" in found.sentence
    assert not (made_up / "served").exists()
    found = run("exact", 0.001, given)
    assert found.chosen is not None
    assert found.chosen.verdict == "within"
    assert f"at a look: in all 60 documents its F1 drop is +0.0000, and surely no more than {row.drop_at_most:.4f}" in (
        found.sentence
    )


def test_the_documents_that_are_asked_for_suffice() -> None:
    rng, values = np.random.default_rng(0), np.array([-1.0, 0.0, 1.0])
    wanted = choosing.documents_to_be_sure(bounds.ByKind(values, np.array([10.0, 480.0, 10.0])), 500, 0.01, 0.95)
    assert wanted is not None
    drawn = [lost_and_gained(rng, 0.0, 0.04, wanted)[:, None] == values for _ in range(100)]
    sure = sum(bounds.at_most(values, one.sum(axis=0), 0.95) <= 0.01 for one in drawn)
    assert 35 <= sure <= 80  # about as likely as not


def test_no_number_of_documents_shows_a_drop_over_the_limit_to_be_within() -> None:
    over = bounds.ByKind(np.array([-1.0, 0.0, 1.0]), np.array([10.0, 470.0, 20.0]))
    assert choosing.documents_to_be_sure(over, 500, 0.015, 0.95) is None


@pytest.mark.parametrize(
    ("documents", "counts"), [(20, [20]), (60, [30, 60]), (2_000, [32, 63, 125, 250, 500, 1000, 2000])]
)
def test_a_variant_is_judged_after_all_documents_half_of_them_and_so_on(documents: int, counts: list[int]) -> None:
    assert choosing.looks(documents) == counts


def test_with_a_guard_of_0_no_label_may_change(
    run: Callable[..., choosing.Choice], validation: Callable[[int], Path]
) -> None:
    found = run("wrong,exact", 0, validation(60))
    assert found.chosen is not None
    assert found.chosen.variant == "exact"
    assert "changes no label of 60 documents" in found.sentence


def test_a_guard_of_0_that_nothing_holds(
    run: Callable[..., choosing.Choice], validation: Callable[[int], Path]
) -> None:
    found = run("wrong", 0, validation(60))
    assert found.chosen is None
    assert found.rows[0].documents == 30  # the first change ends it


def test_the_baseline_holds_without_a_document(run: Callable[..., choosing.Choice], made_up: Path) -> None:
    found = run("fp32", 0.01, None)
    assert found.chosen is not None
    assert found.classified == 0
    assert qbert.load(made_up / "served").variant == "fp32"
    assert "which the model was trained on" in found.judged_by


def test_what_is_outside_another_limit_is_not_judged(
    run: Callable[..., choosing.Choice], validation: Callable[[int], Path]
) -> None:
    found = run("exact,fp32", 0.01, validation(40), latency_limit_s=1e-6, max_disk_bytes=1.0)
    assert found.chosen is None
    assert {row.verdict for row in found.rows} == {"outside"}
    assert "ms for 95 of 100 texts" in found.sentence
    assert found.classified == 0


def test_the_smallest_is_preferred_where_asked(
    run: Callable[..., choosing.Choice], validation: Callable[[int], Path]
) -> None:
    found = run("fp32,int8-dynamic-onednn", 0.9, validation(40), prefer="size", max_memory_bytes=8e9)
    sizes = [row.disk_bytes for row in found.rows]
    assert sizes == sorted(sizes)
    assert all(row.peak_rss_bytes for row in found.rows)


def test_the_one_that_serves_most_is_preferred_where_asked(
    run: Callable[..., choosing.Choice], validation: Callable[[int], Path]
) -> None:
    found = run("fp32,fp32-onnxruntime", 0.9, validation(40), prefer="capacity")
    rates = [row.texts_per_s or 0 for row in found.rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0


def test_from_python_it_returns_what_is_written_with_json(
    made_up: Path, trained: Checkpoint, news: Dataset, validation: Callable[[int], Path]
) -> None:
    output = made_up / "served"
    given = validation(400)
    found = qbert.choose(trained.folder, news.folder, output, max_f1_drop=0.05, variants=["exact"], validation=given)
    assert found["chosen"] == "exact"
    kept = json.loads((output / choosing.RECORD).read_text(encoding="utf-8"))
    assert found.items() <= kept.items()
    with pytest.raises(InputError, match=r"max_drop is 2: give a number from 0 to 1"):
        qbert.choose(trained.folder, news.folder, output, max_f1_drop=2)


@pytest.mark.parametrize("name", ["QBERT_ISA", "ONEDNN_MAX_CPU_ISA"])
def test_answers_with_other_kernels_are_not_taken_for_these(
    name: str, trained: Checkpoint, news: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = baseline_of(str(trained.folder), news, 20)
    KeptAnswers(cell).logits(text_rows(news.test))
    for value, computed in (("avx2", len(set(text_rows(news.test)))), ("", 0)):
        monkeypatch.setenv(name, value)
        answers = KeptAnswers(cell)
        answers.logits(text_rows(news.test))
        assert answers.classified == computed


def test_a_train_split_that_is_too_small_is_refused(made_up: Path, trained: Checkpoint, news: Dataset) -> None:
    small = made_up / "small"
    small.mkdir()
    for split, rows in (("train", news.train.groupby("label").head(2)), ("test", news.test)):
        rows.to_csv(small / f"{split}.csv", index=False)
    (small / "label.json").write_text((news.folder / "label.json").read_text())
    with pytest.raises(InputError, match=r"train\.csv has 10 rows, too few.*--validation"):
        choosing.choose(str(trained.folder), str(small), "exact", made_up / "served", Wanted(0.01))


def test_documents_of_the_test_split_are_refused(
    run: Callable[..., choosing.Choice], tmp_path: Path, news: Dataset
) -> None:
    path = tmp_path / "tested.csv"
    news.test.head(30).to_csv(path, index=False)
    with pytest.raises(InputError, match=r"30 of 30 rows are in test\.csv"):
        run("exact", 0.01, path)


def test_an_unknown_label_names_the_file(run: Callable[..., choosing.Choice], tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("text,label\nsomething,weather\n")
    with pytest.raises(InputError, match=r"odd\.csv, line 2: label 'weather'"):
        run("exact", 0.01, path)


def test_no_variant_that_runs(run: Callable[..., choosing.Choice], validation: Callable[[int], Path]) -> None:
    with pytest.raises(InputError, match=r"none of broken runs here.*no such operator"):
        run("broken", 0.01, validation(40))


def test_what_is_held_out_is_not_calibrated_on_and_has_every_label(news: Dataset) -> None:
    held_out = news.held_out(50)
    calibrated = set(news.training_texts(50))
    assert calibrated.isdisjoint(held_out[["text"]].itertuples(index=False, name=None))
    assert len(held_out) == pytest.approx(len(news.train) / 2, abs=5)
    assert set(held_out["label"]) == set(news.train["label"])
    assert held_out.equals(news.held_out(50))
    share = held_out["label"].value_counts(normalize=True) - news.train["label"].value_counts(normalize=True)
    assert share.abs().max() < 0.03


@pytest.mark.parametrize("calibration", [0, 192])
def test_half_is_held_out_where_every_set_of_labels_occurs_once(several: Dataset, calibration: int) -> None:
    names = [tuple(label for label in range(9) if number >> label & 1) for number in range(500)]
    train = pd.DataFrame({"text": map(str, range(500)), "labels": names})
    assert len(dataclasses.replace(several, train=train).held_out(calibration)) == 250


def test_where_nothing_can_be_judged_each_reason_is_given_and_no_limit_blamed() -> None:
    rows = [choosing.Row("odd", drop=0.1, verdict="cannot", why="answers with nan: leave it out")]
    said = choosing.Choice(Wanted(0.01), rows, 100, "").sentence
    assert said.startswith("No variant can be judged: odd answers with nan: leave it out. Name others.")
    rows.append(choosing.Row("big", verdict="outside", why="takes 9 MB"))
    said = choosing.Choice(Wanted(0.01), rows, 100, "").sentence
    assert "within the limits: odd answers with nan: leave it out; big takes 9 MB. Raise a limit" in said


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_choice_is_taken_up_without_judging_anything_twice(
    made_up: Path,
    trained: Checkpoint,
    news: Dataset,
    validation: Callable[[int], Path],
    wait_until: Callable[..., None],
    ending: signal.Signals,
) -> None:
    cache = made_up / "cache"
    environment = os.environ | {"QBERT_CACHE": str(cache), "PYTHONPATH": str(made_up)}
    command = [sys.executable, "-m", "qbert", "-p", "made_up_rows", "choose", "--variants", "exact"]
    command += [f"--model={trained.folder}", f"--dataset={news.folder}", f"--validation={validation(400)}"]
    command += ["--max-f1-drop=0.0001", f"--output={made_up / 'served'}"]

    def kept() -> list[str]:
        files = list(cache.glob("answers/exact-*.jsonl"))
        return files[0].read_text().splitlines() if files else []

    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        wait_until(lambda: len(kept()) > 40, 120)
        first.send_signal(ending)
        first.wait()
    assert not (made_up / "served").exists()
    lines = len(kept())
    assert 40 < lines < 400
    subprocess.run(command, env=environment, capture_output=True, check=False)
    answers = [json.loads(line)[0] for line in kept() if line]
    # each text once, over both processes, and then the test split: in all documents the drop is within the limit
    assert len(answers) == len(set(answers)) == 400 + len(news.test)


def test_a_line_that_was_cut_off_is_computed_again(
    run: Callable[..., choosing.Choice],
    validation: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    made_up: Path,
) -> None:
    monkeypatch.setenv("QBERT_CACHE", str(made_up / "cache"))
    given = validation(60)
    first = run("exact", 0.001, given, guard="interval")
    assert first.classified == 120  # of the baseline, too
    assert run("exact", 0.001, given, guard="interval").classified == 0
    (path,) = (made_up / "cache" / "answers").glob("exact-*.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    again = run("exact", 0.001, given, guard="interval")
    assert again.classified == 1
    assert again.rows[0].drop == first.rows[0].drop


def test_the_command_ends_with_a_table_of_80_columns_and_a_sentence(
    made_up: Path, trained: Checkpoint, news: Dataset, validation: Callable[[int], Path]
) -> None:
    arguments = ["choose", f"--model={trained.folder}", f"--dataset={news.folder}", "--variants=exact,broken"]
    arguments += [f"--output={made_up / 'served'}", f"--json={made_up / 'found.json'}"]
    result = CliRunner().invoke(main, [*arguments, f"--validation={validation(60)}", "--max-f1-drop=0.0001"])
    assert result.exit_code == 0, result.output
    table, _, sentence = result.output.partition("\n\n")
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "exact is the fastest that holds a limit of 0.0001 at a look: in all 60 documents" in sentence
    assert json.loads((made_up / "found.json").read_text())["chosen"] == "exact"
