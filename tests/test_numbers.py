"""Regressors and rankers through every command, held against transformers and sentence-transformers."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import stats as scipy_stats
from sentence_transformers import CrossEncoder
from sklearn.metrics import ndcg_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import qbert
from qbert.cli import main
from qbert.gate import run as gate
from qbert.inputs import training
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.configuration import SENTENCE_TRANSFORMERS
from qbert.inputs.dataset import Dataset
from qbert.measure.cells import Suite
from qbert.results import answers
from qbert.system.errors import InputError
from qbert.variants import VARIANTS

VARIANT = "int8-native" if not VARIANTS["int8-native"].missing() else "int8-dynamic-onednn"
ROOT = Path(__file__).parents[1]


def run(*arguments: object) -> Any:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


def transformers_logits(folder: Path, documents: Any, max_length: int) -> np.ndarray:
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return np.array(
            [
                model(**tokenizer(*pair, truncation=True, max_length=max_length, return_tensors="pt")).logits[0, 0]
                for pair in zip(documents["text"], documents["text_pair"], strict=True)
            ]
        )


def test_a_ranker_is_trained_by_the_mean_squared_error(ranker: Checkpoint, passages: Dataset, tmp_path: Path) -> None:
    config = json.loads((ranker.folder / "config.json").read_text())
    assert (config["problem_type"], ranker.num_labels, ranker.problem_type) == ("regression", 1, "regression")
    logits = transformers_logits(ranker.folder, passages.test, 48)
    by_query = [list(rows.index) for _, rows in passages.test.groupby("query") if rows["label"].nunique() > 1]
    expected = np.mean([ndcg_score([passages.test["label"][rows]], [logits[rows]], k=10) for rows in by_query])
    assert ranker.record["metrics"]["test_ndcg_at_10"] == pytest.approx(expected, abs=0.02)  # there in padded batches
    done = run("train", "--dataset", passages.folder, "--base", ranker.folder, "--max-length", 16, "--epochs", 1,
               "--output", tmp_path / "tuned")  # fmt: skip
    assert f"{tmp_path / 'tuned'}: nDCG@10 0." in done.output


def test_a_regressor_learns_what_can_be_learned(tmp_path: Path) -> None:
    for split, numbers in (("train", range(160)), ("test", range(160, 200))):
        rows = [
            "text,label",
            *(f"{' '.join(['bad', 'good'][n % 2] for _ in range(4))} {n},{n % 2 * 3 - 1}" for n in numbers),
        ]
        (tmp_path / f"{split}.csv").write_text("\n".join(rows))
    done = run("train", "--dataset", tmp_path, "--base", "bert-tiny", "--max-length", 12, "--epochs", 5,
               "--output", tmp_path / "model")  # fmt: skip
    assert re.search(r"Pearson correlation (1\.0|0\.9)", done.output)
    served = qbert.quantize(tmp_path / "model", VARIANT, tmp_path / "served")
    classifier = qbert.load(served)
    good, bad = classifier("good good good good"), classifier("bad bad bad bad")
    assert (good.label, good.labels) == (None, ())
    assert good.score > 1
    assert bad.score < 0


def test_the_output_is_transformers_and_a_cross_encoders(ranker: Checkpoint, passages: Dataset) -> None:
    documents = passages.test.head(12)
    cell = Suite(passages, [str(ranker.folder)], max_lengths=[48]).cell(ranker.folder.name, 48, "fp32")
    own = np.array(
        [cell.text_classifier()(*pair)[0, 0] for pair in zip(documents["text"], documents["text_pair"], strict=True)]
    )
    assert own == pytest.approx(transformers_logits(ranker.folder, documents, 48), abs=1e-5)
    plain = CrossEncoder(str(ranker.folder), max_length=48, activation_fn=torch.nn.Identity(), device="cpu")
    assert own == pytest.approx(plain.predict(documents[["text", "text_pair"]].to_numpy().tolist()), abs=1e-5)


@pytest.mark.parametrize("place", ["former", "config", "beside"])
@pytest.mark.parametrize("function", ["Sigmoid", "Tanh", "Identity"])
def test_an_activation_that_is_named_is_applied_as_a_cross_encoder_does(
    ranker: Checkpoint, passages: Dataset, tmp_path: Path, place: str, function: str
) -> None:
    folder = Path(shutil.copytree(ranker.folder, tmp_path / "model"))
    if place == "beside":  # where the installed release writes it
        CrossEncoder(str(folder), device="cpu", activation_fn=getattr(torch.nn, function)()).save_pretrained(
            str(folder)
        )
        assert function in (folder / SENTENCE_TRANSFORMERS).read_text()
    else:
        name_activation(
            folder, place, f"torch.nn.modules.{'linear' if function == 'Identity' else 'activation'}.{function}"
        )
    pairs = passages.test[["text", "text_pair"]].head(6).to_numpy().tolist()
    expected = CrossEncoder(str(folder), max_length=48, device="cpu").predict(pairs)
    classifier = qbert.load(qbert.quantize(folder, "fp32", tmp_path / "served"))
    assert classifier.activation == function.lower()
    assert [answer.score for answer in classifier.many(map(tuple, pairs))] == pytest.approx(expected, abs=1e-5)


def name_activation(folder: Path, place: str, function: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if place == "former":
        config["sbert_ce_default_activation_function"] = function
    else:
        config["sentence_transformers"] = {"activation_fn": function, "version": "4.1.0"}
    (folder / "config.json").write_text(json.dumps(config))


def test_what_is_fine_tuned_forgets_the_activation_of_its_base(
    ranker: Checkpoint, passages: Dataset, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(ranker.folder, tmp_path / "model"))
    name_activation(folder, "former", "torch.nn.modules.activation.Sigmoid")
    name_activation(folder, "config", "torch.nn.modules.activation.Sigmoid")
    assert Checkpoint.open(folder).activation == "sigmoid"
    recipe = training.Recipe(epochs=1, learning_rate=1e-4, batch_size=64, warmup=0, masked=0, shortest=1)
    tuned = training.train(passages, str(folder), tmp_path / "tuned", max_length=16, recipe=recipe)
    assert tuned.activation == "identity"


@pytest.mark.parametrize("function", ["torch.nn.modules.activation.Softplus", "my_module.Sigmoid", "Sigmoid"])
def test_another_activation_is_refused_by_name(ranker: Checkpoint, tmp_path: Path, function: str) -> None:
    folder = Path(shutil.copytree(ranker.folder, tmp_path / "model"))
    name_activation(folder, "config", function)
    with pytest.raises(
        InputError, match=rf"config.json names the activation {function}, and qbert applies torch.nn.Id"
    ):
        Checkpoint.open(folder)


def test_labels_and_numbers_are_not_confused(
    ranker: Checkpoint, passages: Dataset, trained: Checkpoint, news: Dataset
) -> None:
    for model, dataset, message in (
        (ranker, news, "gives numbers and the dataset news has labels"),
        (trained, passages, r"gives labels and the dataset passages has numbers \(no label.json\)"),
    ):
        with pytest.raises(InputError, match=message):
            Suite(dataset, [str(model.folder)], max_lengths=[16])


def test_evaluate_ranks(ranker: Checkpoint, passages: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    named = ["--model", ranker.folder, "--dataset", passages.folder, "--variants", f"fp32,{VARIANT}", "--json", file]
    done = run("evaluate", *named)
    assert all(heading in done.output for heading in ("nDCG", "MRR"))
    assert max(map(len, done.stdout.splitlines())) <= 80
    before, after = json.loads(file.read_text())
    logits = transformers_logits(ranker.folder, passages.test, 48)
    by_query = [list(rows.index) for _, rows in passages.test.groupby("query") if rows["label"].nunique() > 1]
    expected = np.mean([ndcg_score([passages.test["label"][rows]], [logits[rows]], k=10) for rows in by_query])
    assert before["ndcg"] == after["ndcg_baseline"] == pytest.approx(expected, abs=1e-6)
    assert after["ndcg_drop"] == pytest.approx(after["ndcg_baseline"] - after["ndcg"])
    assert after["ndcg_drop_low"] <= after["ndcg_drop"] <= after["ndcg_drop_high"]
    assert (after["queries"], after["flips"]) == (len(by_query), len(after["flipped"]))
    assert "f1" not in after
    assert "mcnemar_p" not in after


def test_evaluate_correlates(ranker: Checkpoint, grades: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    named = ["--model", ranker.folder, "--dataset", grades.folder, "--variants", f"fp32,{VARIANT}", "--json", file]
    done = run("evaluate", *named)
    assert max(map(len, done.stdout.splitlines())) <= 80
    before, after = json.loads(file.read_text())
    logits, truth = transformers_logits(ranker.folder, grades.test, 48), grades.test["label"]
    assert before["pearson"] == pytest.approx(scipy_stats.pearsonr(truth, logits).statistic, abs=1e-5)
    assert before["spearman"] == pytest.approx(scipy_stats.spearmanr(truth, logits).statistic, abs=1e-4)
    assert before["pearson_with_fp32"] == pytest.approx(1)
    assert 0.5 < after["pearson_with_fp32"] < 1
    assert "flips" not in after


def test_predict_prints_the_number(ranker: Checkpoint, tmp_path: Path) -> None:
    served = qbert.quantize(ranker.folder, VARIANT, tmp_path / "served")
    assert "A text regressor or ranker" in (served / "README.md").read_text()
    asked = ["问题\t回答", "问题\t别的回答"]
    one, other = (qbert.load(served)(*text.split("\t")).score for text in asked)
    plain = CliRunner().invoke(main, ["predict", "--model", str(served)], input="\n".join([asked[0], "", asked[1]]))
    assert plain.stdout.splitlines() == [f"\t{one:.4f}\t问题", "\t\t", f"\t{other:.4f}\t问题"]
    as_json = run("predict", "--model", served, "--json", *asked, "")
    assert [json.loads(line) for line in as_json.stdout.splitlines()] == [
        {"text": asked[0], "score": round(one, 6)},
        {"text": asked[1], "score": round(other, 6)},
        {"text": "", "score": None},
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["passages", "grades"])
def test_a_variant_is_chosen_and_rescued_by_what_a_model_is_judged_by(
    ranker: Checkpoint, request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    dataset: Dataset = request.getfixturevalue(kind)
    short, key = {"passages": ("nDCG", "ndcg"), "grades": ("Pearson", "pearson")}[kind]
    named = ["--model", ranker.folder, "--dataset", dataset.folder, "--max-drop", 0.6]
    done = run(
        "choose",
        *named,
        "--variants",
        f"fp32,{VARIANT}",
        "--output",
        tmp_path / "chosen",
        "--json",
        tmp_path / "c.json",
    )
    record = json.loads((tmp_path / "c.json").read_text())
    assert f"On the test split, read once, its {short} drop is" in " ".join(done.output.split())
    assert record["wanted"][f"max_{key}_drop"] == 0.6
    assert record["test"]["documents"] == len(dataset.test)
    assert f"{key}_drop" in record["test"]
    assert qbert.load(tmp_path / "chosen")("问题", "回答").score
    if VARIANT == "int8-native":
        done = run("rescue", *named, "--output", tmp_path / "rescued", "--json", tmp_path / "r.json")
        assert f"which chose nothing, {short} drops by" in " ".join(done.output.split())
        assert f"{key}_drop" in json.loads((tmp_path / "r.json").read_text())["plain"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "title"), [("passages", "nDCG@10"), ("grades", "Pearson correlation")])
def test_the_benchmarks_guard_it_and_saved_runs_tell_of_it(
    ranker: Checkpoint, request: pytest.FixtureRequest, tmp_path: Path, kind: str, title: str
) -> None:
    dataset: Dataset = request.getfixturevalue(kind)
    named = [
        "--model",
        ranker.folder,
        "--dataset",
        dataset.folder,
        "--max-lengths",
        48,
        "--variants",
        f"fp32,{VARIANT}",
    ]
    saved = tmp_path / "run.json"

    def bench(*more: object) -> Any:
        options = [*named, "--seconds-per-cell", 0.2, "-k", "latency or accuracy", "--benchmark-json", saved, *more]
        return forked.run("pytest", ROOT / "bench", *options, cwd=tmp_path, environment={"COLUMNS": "80"})

    done = bench("--max-drop", 1)
    assert done.returncode == 0, done.stdout
    assert f"fp32's {title.split(maxsplit=1)[0].removesuffix('@10')} " in done.stdout
    run(
        "report",
        saved,
        "-o",
        tmp_path / "page.html",
        "--markdown",
        tmp_path / "page.md",
        "--csv",
        tmp_path / "page.csv",
    )
    page = (tmp_path / "page.html").read_text()
    assert all(title in text for text in (page, (tmp_path / "page.md").read_text()))
    assert "F1" not in page.replace("f1_guard", "")
    key = {"passages": "ndcg", "grades": "pearson"}[kind]
    assert f",{key}_drop," in (tmp_path / "page.csv").read_text().splitlines()[0]
    table = qbert.runs(saved)
    assert table[f"{key}_drop"].notna().all()
    compared = run("compare", saved, saved, "--json", tmp_path / "compared.json")
    assert "same" in compared.output
    cells = json.loads((tmp_path / "compared.json").read_text())["cells"]
    assert {cell[key]["verdict"] for cell in cells} == {"same"}
    failed = bench("--max-drop", -0.99, "-k", f"accuracy and {VARIANT}")
    assert failed.returncode == 1
    assert f"{title} 0." in failed.stdout or f"{title} -0." in failed.stdout
    assert "is over the limit -0.9900" in failed.stdout


def test_machines_are_compared_by_the_order_of_passages(ranker: Checkpoint, passages: Dataset) -> None:
    suite = Suite(passages, [str(ranker.folder)], max_lengths=[48])
    cell = suite.cell(ranker.folder.name, 48, "fp32")
    logits = np.array(
        [
            cell.text_classifier()(*pair)[0]
            for pair in zip(passages.test["text"], passages.test["text_pair"], strict=True)
        ]
    )
    one, other = cell.answers(passages.test, logits), cell.answers(passages.test, -logits)
    found = answers.compare({"one": one, "other": other})
    assert found is not None
    assert (
        0
        < found.flips
        <= found.answers
        == passages.test["query"].nunique()
        - sum(rows["label"].nunique() == 1 for _, rows in passages.test.groupby("query"))
    )
    assert "orders differ between machines (documents 0" in answers.sentence(found)


@pytest.mark.slow
def test_a_ranker_that_ranks_worse_is_a_regression(ranker: Checkpoint, passages: Dataset) -> None:
    cells = []
    for sign in (1, -1):
        cell = Suite(passages, [str(ranker.folder)], max_lengths=[48]).cell(ranker.folder.name, 48, "fp32")
        logits = np.array(
            [
                cell.text_classifier()(*pair)[0]
                for pair in zip(passages.test["text"], passages.test["text_pair"], strict=True)
            ]
        )
        truth = cell.metric.truth(cell.dataset, passages.test)
        best = truth.relevance[:, None].astype(np.float32) + 1e-3 * logits
        record = {"model": "m", "max_length": 48, "variant": "fp32", "identity": {}, "load": {}, "disk_bytes": 1}
        judged = {"answers": cell.metric.record(truth, sign * best), "drop": 0.0, "max_drop": 0.01}
        cells.append({(0, 48, "fp32"): record | judged})
    (same,), (worse,) = (gate.compared(cells[0], head, gate.Budget(), (), ()) for head in cells)
    assert (same.judged["drop_verdict"], worse.judged["drop_verdict"]) == ("same", "worse")
    assert worse.judged["score_baseline"] == 1
    assert gate.exit_code([worse]) == gate.REGRESSION
