"""Trainings end in an ordinary checkpoint, or in nothing."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from sklearn.metrics import f1_score

from qbert.inputs import dataset as datasets
from qbert.inputs import training
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.measure import accuracy
from qbert.measure.cells import Suite
from qbert.system.errors import InputError

PLAIN = (
    ("球 赛", "体育"),
    ("药 病", "健康"),
    ("球 药", "体育|健康"),
    ("天 地", ""),
    ("车 路", "汽车"),
    ("车 球", "汽车|体育"),
)
QUICK = training.Recipe(epochs=1, learning_rate=1e-3, batch_size=16, warmup=0.1, masked=0.15, shortest=0.25)


def test_the_folder_is_an_ordinary_checkpoint_that_says_what_made_it(trained: Checkpoint, news: Dataset) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(trained.folder)
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    assert model.config.id2label == dict(enumerate(news.label_names))
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 128)
    assert len(tokenizer) == model.config.vocab_size <= training.VOCABULARY_SIZE
    assert trained.record["dataset_sha256"] == news.sha256
    assert trained.record["seed"] == 0
    assert trained.record["recipe"]["epochs"] == 1
    assert 0 < trained.record["metrics"]["test_weighted_f1"] <= 1
    assert "torch" in trained.record["versions"]
    assert not [path.name for path in trained.folder.iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]


def test_the_seed_decides_the_weights(news: Dataset, tmp_path: Path) -> None:
    first, again, other = (
        training.train(news, "bert-tiny", tmp_path / name, max_length=64, recipe=QUICK, seed=seed)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert again.sha256 == first.sha256
    assert other.sha256 != first.sha256


def test_a_checkpoint_is_fine_tuned_to_other_labels_and_to_pairs(
    trained: Checkpoint, pairs: Dataset, tmp_path: Path
) -> None:
    tuned = training.train(pairs, str(trained.folder), tmp_path / "tuned", max_length=32, recipe=QUICK)
    assert tuned.trained
    assert tuned.config.id2label == {0: "other", 1: "same"}
    assert tuned.encoder("a", "b", max_length=32)["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]


def test_a_dataset_of_several_labels_makes_a_multi_label_model(multi: Checkpoint, several: Dataset) -> None:
    assert multi.problem_type == "multi_label_classification"
    assert multi.labels == several.label_names
    model = multi.load()
    logits = [
        model(**{name: torch.from_numpy(array) for name, array in multi.encoder(text, max_length=32).items()}).logits
        for text in several.test["text"]
    ]
    found = torch.cat(logits).detach().numpy() >= 0
    score = f1_score(several.indicators(several.test), found, average="weighted", zero_division=0)
    assert multi.record["metrics"]["test_weighted_f1"] == pytest.approx(score, abs=0.02)  # there in padded batches


@pytest.mark.exhaustive
def test_a_built_in_model_learns_each_of_several_labels_and_is_judged_by_them(several: Dataset, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(several.folder, tmp_path / "plain"))
    for split, numbers in (("train", range(16)), ("test", range(16, 20))):
        rows = ["text,labels", *(f"{text} {number},{labels}" for number in numbers for text, labels in PLAIN)]
        (folder / f"{split}.csv").write_text("\n".join(rows), encoding="utf-8")
    plain = datasets.load(folder)
    suite = Suite(plain, ["bert-tiny"], max_lengths=[8])
    cells = [suite.cell("bert-tiny", 8, variant) for variant in ("fp32", "int8-dynamic-onednn")]
    logits = [accuracy.run(cell.classifier, cell.encoder, plain.test, 8)[0] for cell in cells]
    before, after = (cell.judge(plain.test, found)[0] for cell, found in zip(cells, logits, strict=True))
    assert before.score > 0.95
    assert after.label_flips == ((logits[0] >= 0) != (logits[1] >= 0)).sum()


def test_a_single_label_model_is_fine_tuned_to_several(trained: Checkpoint, several: Dataset, tmp_path: Path) -> None:
    tuned = training.train(several, str(trained.folder), tmp_path / "tuned", max_length=16, recipe=QUICK)
    assert tuned.problem_type == "multi_label_classification"
    assert Checkpoint.open(tuned.folder).trained


def test_a_training_that_diverges_is_a_mistake_and_leaves_nothing(news: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training diverged .*: take a lower --learning-rate"):
        training.train(
            news, "bert-tiny", tmp_path / "out", max_length=8, recipe=dataclasses.replace(QUICK, learning_rate=1e38)
        )
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_for_a_vocabulary_is_not_waited_for(news: Dataset, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "vocab.txt")
    with pytest.raises(InputError, match="it is a pipe or a device"):
        training.train(news, "bert-tiny", tmp_path / "out", max_length=16, vocab=tmp_path / "vocab.txt")


@pytest.mark.parametrize("head", ["BertForTokenClassification", "BertForQuestionAnswering", "BertForMaskedLM"])
def test_a_base_may_have_a_head_of_any_kind(trained: Checkpoint, news: Dataset, tmp_path: Path, head: str) -> None:
    import transformers

    model = getattr(transformers, head)(trained.config)
    model.bert.load_state_dict(trained.load().bert.state_dict(), strict=False)
    model.save_pretrained(tmp_path / "base")
    trained.encoder.tokenizer.save_pretrained(tmp_path / "base")
    tuned = training.train(news, str(tmp_path / "base"), tmp_path / "out", max_length=8, recipe=QUICK)
    assert tuned.trained
    assert tuned.labels == news.label_names


def test_every_family_can_be_fine_tuned(family: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    tuned = training.train(news, str(family.folder), tmp_path / "tuned", max_length=16, recipe=QUICK)
    before, after = family.load().state_dict(), tuned.load().state_dict()
    name = next(name for name in before if "attention" in name or "attn" in name)
    assert not before[name].equal(after[name])


def test_the_seed_decides_a_new_head(trained: Checkpoint) -> None:
    heads = [trained.load(seed=seed, num_labels=2).classifier.weight for seed in (0, 0, 1)]
    assert heads[0].equal(heads[1])
    assert not heads[0].equal(heads[2])


def test_a_given_vocabulary_is_used(news: Dataset, tmp_path: Path) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join([*training.SPECIAL_TOKENS, "体", "育"]), encoding="utf-8")
    checkpoint = training.train(news, "bert-tiny", tmp_path / "out", max_length=16, vocab=vocab, recipe=QUICK)
    assert checkpoint.encoder("体育健", max_length=16)["input_ids"].tolist() == [[2, 5, 6, 1, 3]]


def test_a_line_separator_in_a_vocabulary_is_a_token(tmp_path: Path) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join([*training.SPECIAL_TOKENS, "\u2028", "体"]) + "\n", encoding="utf-8")
    assert training.read_vocabulary(vocab).get_vocab()["体"] == 6


def test_the_experiments_settings_hold_for_pretrained_weights() -> None:
    recipe = training.recipe_for("bert-base-chinese", 4000)
    assert (recipe.epochs, recipe.learning_rate, recipe.warmup, recipe.batch_size) == (3, 5e-5, 0.2, 32)


def test_an_untrained_model_says_so_and_has_the_size_of_bert_base_chinese(news: Dataset, tmp_path: Path) -> None:
    training.write_untrained(news, "bert-base", tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert not checkpoint.trained
    assert sum(math.prod(shape) for shape in checkpoint.weights.values()) == 102_271_493


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[PAD]\n[UNK]\n", r"lacks \[CLS\], \[SEP\], \[MASK\]"),
    ],
)
def test_a_bad_vocabulary_is_named(news: Dataset, tmp_path: Path, content: bytes | None, message: str) -> None:
    vocab = tmp_path / "vocab.txt"
    if content is not None:
        vocab.write_bytes(content)
    with pytest.raises(InputError, match=message):
        training.train(news, "bert-tiny", tmp_path / "out", max_length=16, vocab=vocab)
    assert not (tmp_path / "out").exists()


def test_what_is_there_already_is_not_overwritten(news: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        training.train(news, "bert-tiny", tmp_path, max_length=16)
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("bert-tiny", "512 positions"),
        ("bert-enormous", "from scratch there are bert-tiny"),
        ("deep", r"lack bert.*\.2"),
    ],
)
def test_a_base_that_cannot_be_used_is_named(
    trained: Checkpoint, news: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, message: str
) -> None:
    shutil.copytree(trained.folder, tmp_path / "deep")
    path = tmp_path / "deep" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        training.train(news, base, tmp_path / "out", max_length=513)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_a_vocabulary_for_a_pretrained_base_is_refused(trained: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--vocab goes with a base trained from scratch"):
        training.train(news, str(trained.folder), tmp_path / "out", max_length=16, vocab=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_training_leaves_nothing_finished_and_starts_over(news: Dataset, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "qbert", "train", "--dataset", str(news.folder), "--base", "bert-tiny"]
    command += ["--max-length", "16", "--output", str(output)]
    process = subprocess.Popen([*command, "--epochs", "1000"])
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.iterdir())
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    assert subprocess.run([*command, "--epochs", "1"], check=False).returncode == 0
    assert Checkpoint.open(output).trained
    assert list(tmp_path.iterdir()) == [output]
