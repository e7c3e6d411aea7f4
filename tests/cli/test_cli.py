"""The command line: what it prints, what it writes, and one sentence with exit code 2 for a person's mistake."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from sklearn.metrics import f1_score

from qbert import variants
from qbert.cli import main
from qbert.cli.options import OUTPUT
from qbert.inputs import training
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.measure import accuracy
from qbert.system.errors import InputError
from qbert.variants import VARIANTS
from qbert.variants.artefact import Artefact


def qbert(*arguments: object, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return forked.run("qbert", *arguments, cwd=Path.cwd(), environment={"COLUMNS": "80"} | environment, stdin=stdin)


def is_progress(errors: str) -> bool:
    """Whether there is nothing but progress, without a bar where no one looks: none of a library's warnings."""
    return all(" % after " in line or line.startswith("making ") for line in errors.splitlines() if line)


@pytest.fixture(scope="session")
def artefact(trained: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact") / "int8"
    done = qbert("quantize", "--model", trained.folder, "--variant", "int8-dynamic-onednn", "--output", folder)
    assert done.returncode == 0, done.stderr
    assert "int8-dynamic-onednn" in done.stdout
    return folder


def test_help_names_every_command() -> None:
    done = qbert("--help")
    assert all(command in done.stdout for command in ("train", "evaluate", "quantize", "predict", "variants"))


def test_variants_lists_each_with_what_it_needs() -> None:
    done = qbert("variants")
    assert done.returncode == 0
    assert "int8-dynamic-qnnpack" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


ON_ARM = """
import platform, sys
platform.machine = lambda: "aarch64"
from qbert.system import machine
machine.instruction_sets = lambda: tuple(sys.argv[1].split(","))
from qbert.cli import main
main(["variants"])
"""


@pytest.mark.parametrize(
    ("instruction_sets", "native"), [("asimd,asimddp,i8mm,bf16", "yes"), ("asimd,asimddp", "yes"), ("asimd", "no")]
)
def test_on_arm_each_variant_is_there_or_says_why_not(instruction_sets: str, native: str) -> None:
    """What this processor says of itself is all that is changed: there is no ARM processor here."""
    done = subprocess.run(
        [sys.executable, "-c", ON_ARM, instruction_sets],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "160"},
    )
    here = {
        name: (word, why)
        for name, word, why in re.findall(r"^(\S+).*?  (yes|no|by name)  +(.*?) *$", done.stdout, re.MULTILINE)
    }
    assert here["int8-native"][0] == native
    assert [here[f"int8-dynamic{engine}"][0] for engine in ("", "-onednn", "-qnnpack")] == ["no", "yes", "yes"]
    reasons = [why for word, why in here.values() if word == "no"]
    assert all(why.startswith(("it is written for", "this processor", "PyTorch", "torchao")) for why in reasons)


def test_train_writes_a_checkpoint_and_says_how_good_it_is(news: Dataset, tmp_path: Path) -> None:
    done = qbert(
        "train",
        "--dataset",
        news.folder,
        "--base",
        "bert-tiny",
        "--max-length",
        16,
        "--epochs",
        1,
        "--output",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'out'}: weighted F1 0." in done.stdout
    assert is_progress(done.stderr)
    assert Checkpoint.open(tmp_path / "out").record["recipe"]["learning_rate"] == 1e-3


def test_evaluate_prints_a_table_and_writes_the_figures(trained: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = qbert(
        "evaluate", "--model", trained.folder, "--dataset", news.folder, "--variants", "int8-dynamic-onednn,fp32",
        "--max-length", 64, "--documents", 30, "--json", file,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert is_progress(done.stderr)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout  # nothing was cut off
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert [figure["variant"] for figure in figures] == ["fp32", "int8-dynamic-onednn"]
    assert figures[0]["f1"] == figures[1]["f1_baseline"] == pytest.approx(figures[1]["f1"] + figures[1]["f1_drop"])
    assert figures[1]["documents"] == 30
    assert figures[1]["quantized_ops"] == 14
    assert figures[1]["identity"]["dataset_sha256"] == news.sha256
    assert figures[1]["p50_s"] > 0
    assert "p95_s" not in figures[1], "of 30 documents"


@pytest.fixture(params=["albert", "deberta-v2", "mpnet"])
def stranger(request: pytest.FixtureRequest, tmp_path: Path, news: Dataset) -> Path:
    """A small seeded classifier of an architecture that trimming does not know."""
    import transformers

    tokenizer = training.learn_vocabulary(news.train["text"])
    configuration = transformers.AutoConfig.for_model(
        request.param,
        vocab_size=len(tokenizer),
        num_labels=5,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
    )
    folder = tmp_path / request.param
    transformers.set_seed(0)
    transformers.AutoModelForSequenceClassification.from_config(configuration).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_evaluate_goes_on_where_a_named_variant_cannot_run(
    stranger: Path, news: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "figures.json"
    arguments = ["--variants", "fp32,int8-native,int8-dynamic-onednn", "--max-length", "16"]
    arguments += ["--model", str(stranger), "--dataset", str(news.folder), "--documents", "10", "--json", str(file)]
    done = CliRunner().invoke(main, ["evaluate", *arguments])
    assert done.exit_code == 2
    assert "int8-native cannot be judged on" in done.stderr.splitlines()[-1]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert f"is a {stranger.name}: leave it out" in " ".join(done.stdout.split())
    fp32, cannot, int8 = json.loads(file.read_text(encoding="utf-8"))
    assert (fp32["documents"], int8["documents"]) == (10, 10)
    assert cannot["variant"] == "int8-native"
    assert "int8-native runs bert, " in cannot["cannot"]


def test_evaluate_passes_where_a_variant_brought_along_cannot_run(
    trained: Checkpoint, news: Dataset, few: Path
) -> None:
    subject = ["--model", trained.folder, "--dataset", news.folder, "--max-length", 16, "--documents", 10]
    done = qbert("-p", "few", "evaluate", *subject, "--json", few / "figures.json", PYTHONPATH=str(few))
    assert done.returncode == 0, done.stderr
    figures = json.loads((few / "figures.json").read_text(encoding="utf-8"))
    assert ["cannot" in figure for figure in figures] == [False, False, True]
    assert "no such operator" in figures[2]["cannot"]


def test_predict_gives_label_and_score_of_texts_given_or_piped_in(artefact: Path, trained: Checkpoint) -> None:
    given = qbert("predict", "--model", artefact, "球队赢了比赛", "汽车发动机")
    piped = qbert("predict", "--model", artefact, stdin="球队赢了比赛\n汽车发动机\n")
    assert given.returncode == 0, given.stderr
    assert given.stdout == piped.stdout
    label, score, text = given.stdout.splitlines()[0].split("\t")
    assert label in trained.config.id2label.values()
    assert 0.2 <= float(score) < 1
    scores = json.loads(qbert("predict", "--model", artefact, "--json", text).stdout)["scores"]
    assert scores[label] == max(scores.values()) == pytest.approx(float(score), abs=1e-4)
    assert text == "球队赢了比赛"


def test_predict_gives_every_score_as_json(trained: Checkpoint) -> None:
    done = qbert("predict", "--model", trained.folder, "--variant", "fp32", "--json", "一\t二")
    answer = json.loads(done.stdout)
    assert answer["text"] == "一\t二"
    assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert answer["label"] == max(answer["scores"], key=answer["scores"].__getitem__)


def test_a_multi_label_model_gives_every_label_scored_one_half_and_more(decided: Checkpoint, several: Dataset) -> None:
    texts = list(several.test["text"])
    arguments = ["predict", "--model", str(decided.folder), *texts]
    answers = [json.loads(line) for line in CliRunner().invoke(main, [*arguments, "--json"]).stdout.splitlines()]
    lines = CliRunner().invoke(main, arguments).stdout.splitlines()
    assert len(answers) == len(lines) == len(texts)
    assert {len(answer["labels"]) for answer in answers} >= {0, 1, 2}
    for answer, line in zip(answers, lines, strict=True):
        scores = answer["scores"]
        assert set(scores) == set(several.label_names)
        assert set(answer["labels"]) == {name for name, score in scores.items() if score >= 0.5}
        names, given, _ = line.split("\t")
        assert names == ",".join(sorted(answer["labels"], key=scores.__getitem__, reverse=True))
        assert given == ",".join(f"{scores[name]:.4f}" for name in names.split(",") if name)


def test_an_artefact_of_a_multi_label_model_predicts_as_one(decided: Checkpoint, tmp_path: Path) -> None:
    arguments = ["--model", str(decided.folder), "--variant", "int8-dynamic-onednn"]
    made = CliRunner().invoke(main, ["quantize", *arguments, "--output", str(tmp_path / "out")])
    assert made.exit_code == 0, made.stderr
    by_checkpoint = CliRunner().invoke(main, ["predict", *arguments, "--json", "学校考试"])
    by_artefact = CliRunner().invoke(main, ["predict", "--model", str(tmp_path / "out"), "--json", "学校考试"])
    assert by_artefact.stdout == by_checkpoint.stdout != ""
    assert sum(json.loads(by_artefact.stdout)["scores"].values()) != pytest.approx(1, abs=0.01)


def test_evaluate_judges_several_labels(decided: Checkpoint, several: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--model", str(decided.folder), "--dataset", str(several.folder), "--json", str(file)]
    done = CliRunner().invoke(main, ["evaluate", *arguments, "--variants", "fp32,int8-dynamic-onednn"])
    assert done.exit_code == 0, done.stderr
    before, after = json.loads(file.read_text(encoding="utf-8"))
    logits, _ = accuracy.run(variants.build(VARIANTS["fp32"], decided), decided.encoder, several.test, 32)
    expected = f1_score(several.indicators(several.test), logits > 0, average="weighted", zero_division=0)
    assert before["f1"] == after["f1_baseline"] == pytest.approx(expected)
    assert 0.2 < expected < 1
    assert after["flips"] == len(after["flipped"]) <= after["label_flips"]


def test_a_record_made_before_several_labels_were_told_apart_is_of_one_label(artefact: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(artefact, tmp_path / "old"))
    record = json.loads((old / "qbert.json").read_text(encoding="utf-8"))
    del record["problem_type"]
    (old / "qbert.json").write_text(json.dumps(record), encoding="utf-8")
    assert Artefact.open(old).problem_type == "single_label_classification"


@pytest.mark.parametrize(
    "change",
    [{"labels": "ab"}, {"labels": ["a"]}, {"inputs": ["words"]}, {"positions": 0}, {"truncation_side": "up"}],
)
def test_an_artefacts_record_with_values_of_another_kind_is_named(
    artefact: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    folder = Path(shutil.copytree(artefact, tmp_path / "changed"))
    record = json.loads((folder / "qbert.json").read_text(encoding="utf-8"))
    (folder / "qbert.json").write_text(json.dumps(record | change), encoding="utf-8")
    with pytest.raises(InputError, match=r"qbert\.json"):
        Artefact.open(folder)


def test_artefact_and_checkpoint_predict_the_same(artefact: Path, trained: Checkpoint) -> None:
    by_artefact = qbert("predict", "--model", artefact, "--json", "学校考试")
    by_checkpoint = qbert(
        "predict", "--model", trained.folder, "--variant", "int8-dynamic-onednn", "--json", "学校考试"
    )
    assert by_artefact.stdout == by_checkpoint.stdout


def test_texts_are_cut_off_where_the_model_was_trained_to(trained: Checkpoint) -> None:
    text = "体育新闻" * 40
    unsaid = qbert("predict", "--model", trained.folder, "--json", text)
    said = qbert("predict", "--model", trained.folder, "--max-length", 64, "--json", text)
    assert unsaid.stdout == said.stdout != ""


def test_an_outside_module_adds_a_variant(outside: Path) -> None:
    assert "mine" in qbert("-p", "outside", "variants", PYTHONPATH=str(outside)).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("evaluate --model ./missing", "model './missing' is no folder here"),
        ("evaluate --model nobody/nothing", "Hugging Face hub did not give it"),
        ("evaluate --model {trained} --dataset missing", "dataset 'missing' is no folder"),
        ("evaluate --model {trained} --dataset {pairs}", "tells 5 labels apart"),
        ("evaluate --model {trained} --variants int9", "unknown variant 'int9'"),
        ("evaluate --model {trained} --max-length 513", "max_length 513 is beyond"),
        ("predict --model {artefact} --max-length 600 text", "max_length 600 is beyond"),
        ("evaluate --model bert-tiny --max-length 513", "max_length 513 is beyond bert-tiny's 512 positions"),
        ("evaluate --model {trained} --max-length 0", "Invalid value for '--max-length'"),
        ("evaluate --model bert-base", "has no trained classification head"),
        ("evaluate --model nowhere --json /dev/null/x", "/dev/null/x cannot be written"),  # before any work
        ("fleet --cluster local:1 -o {trained}", "exists already: name another folder"),
        ("gate --calibrate --markdown /dev/null", "--markdown writes verdicts, and --calibrate"),
        ("evaluate --model {artefact}", "is no checkpoint, it has no model.safetensors"),
        ("quantize --model {trained} --variant int9 --output {out}", "unknown variant 'int9'"),
        ("quantize --model {trained} --variant fp32 --output {trained}", "exists already"),
        ("quantize --model {trained} --variant fp32 --output {out} --max-length 600", "max_length 600 is beyond"),
        ("quantize --model {news} --variant fp32 --output {out}", "is no checkpoint, it has no config.json"),
        ("predict --model {artefact} --variant fp32 text", "holds the variant int8-dynamic-onednn"),
        ("predict --model {damaged} text", "is damaged"),
        ("train --base {news} --output {out}", "is no checkpoint"),
        ("train --base bert-tiny --max-length 513 --output {out}", "512 positions"),
        (
            "train --base bert-tiny --vocab missing.txt --output {out}",
            "missing.txt cannot be read",
        ),
        ("train --base bert-tiny --output {trained}", "exists already"),
        ("-p no_such_module variants", "-p no_such_module cannot be imported"),
        ("-p broken variants", "-p broken cannot be imported (ZeroDivisionError: division by zero)"),
        ("-p ending variants", "-p ending cannot be imported (SystemExit: 0)"),
        ("evaluate --model {trained} --dataset {several}", "gives a text one label and the dataset several any number"),
        ("predict --model {headless} text", "has no trained classification head"),
        ("quantize --model {headless} --variant fp32 --output {out}", "has no trained classification head"),
        ("evaluate --model {headless} --dataset {news}", "has no trained classification head"),
        ("predict --model {overflowing} text", "answers with nan or infinity to 'text'"),
        ("evaluate --model {overflowing} --dataset {news} --variants fp32", "answers with nan or infinity"),
        ("evaluate --model " + "x" * 5000, "cannot be used (File name too long)"),
        *(
            (f"train --base bert-tiny --output {{out}} {option} {value}", f"Invalid value for '{option}'")
            for option in ("--learning-rate", "--warmup")
            for value in ("nan", "inf", "-inf")
        ),
        *(
            (f"train --base bert-tiny --output {{out}} --seed {value}", "Invalid value for '--seed'")
            for value in ("-1", "4294967296", "nan")
        ),
        ("gate --calibrate --max-seconds nan", "Invalid value for '--max-seconds': 'nan' is no number."),
        ("gate --calibrate --timeout inf", "Invalid value for '--timeout': 'inf' is no number."),
    ],
)
def test_a_mistake_is_one_sentence_with_exit_code_2(
    arguments: str,
    message: str,
    trained: Checkpoint,
    news: Dataset,
    pairs: Dataset,
    several: Dataset,
    artefact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "ending.py").write_text("raise SystemExit(0)")
    headless = Path(shutil.copytree(trained.folder, tmp_path / "headless"))
    tensors = load_file(headless / "model.safetensors")
    body = {name: tensor for name, tensor in tensors.items() if "classifier" not in name}
    save_file(body, headless / "model.safetensors", metadata={"format": "pt"})
    overflowing = Path(shutil.copytree(trained.folder, tmp_path / "overflowing"))
    largest = {"classifier.weight": np.full_like(tensors["classifier.weight"], 3e38)}
    save_file(tensors | largest, overflowing / "model.safetensors", metadata={"format": "pt"})
    damaged = Path(shutil.copytree(artefact, tmp_path / "damaged"))
    (damaged / "quantized.safetensors").write_bytes(b"damaged")
    out = tmp_path / "nothing" / "out"
    places = {
        "trained": trained.folder,
        "news": news.folder,
        "pairs": pairs.folder,
        "artefact": artefact,
        "out": out,
        "damaged": damaged,
        "several": several.folder,
        "headless": headless,
        "overflowing": overflowing,
    }
    done = CliRunner().invoke(main, arguments.format(**places).split())
    assert done.exit_code == 2
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line]
    assert lines[-1].startswith("Error: ")
    assert message in lines[-1]
    assert not out.exists()


def test_text_that_is_not_utf_8_is_refused(artefact: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qbert", "predict", "--model", str(artefact)],
        input="坏".encode("gbk"),
        capture_output=True,
        env=os.environ | {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"},
        check=False,
    )
    assert done.returncode == 2
    assert b"pipe in UTF-8" in done.stderr


def test_warnings_about_the_dataset_reach_the_person(news: Dataset, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(news.folder, tmp_path / "leaky"))
    shutil.copy(folder / "train.csv", folder / "test.csv")
    done = qbert(
        "train",
        "--dataset",
        folder,
        "--base",
        "bert-tiny",
        "--max-length",
        8,
        "--epochs",
        1,
        "--output",
        tmp_path / "out",
    )
    assert done.returncode == 0
    assert done.stderr.startswith("warning: ")
    assert "200 of 200 test rows are in train.csv" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "--model", "{odd}/model", "text"],
        ["predict", "--model", "{odd}/artefact", "text"],
        ["evaluate", "--model", "{odd}/model"],
        ["evaluate", "--model", "{plain}/model", "--dataset", "{odd}"],
        ["train", "--base", "bert-tiny", "--dataset", "{odd}", "--output", "{plain}/out"],
        ["train", "--base", "bert-tiny", "--output", "{odd}/out"],
        ["quantize", "--model", "{plain}/model", "--variant", "int8-dynamic", "--output", "{odd}/out"],
        ["choose", "--model", "{plain}/model", "--variants", "fp32", "--output", "{odd}/out"],
        ["rescue", "--model", "{plain}/model", "--max-f1-drop", "0.3", "--output", "{odd}/out"],
        ["report", "{odd}/run.json", "--output", "{odd}/page.html"],
        ["history", "{odd}/none"],
        ["-p", "{odd}", "variants"],
    ],
    ids=" ".join,
)
def test_a_name_that_is_no_utf8_is_told_in_a_sentence(
    trained: Checkpoint, news: Dataset, artefact: Path, tmp_path: Path, arguments: list[str]
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(news.folder, odd)
    for name, folder in (("model", trained.folder), ("artefact", artefact)):
        shutil.copytree(folder, odd / name)
        shutil.copytree(folder, tmp_path / name)
    done = qbert(*(argument.format(odd=odd, plain=tmp_path) for argument in arguments))
    assert done.returncode == 2, done.stdout
    assert r"caf\xe9" in done.stderr
    assert "report it" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rescue_takes_the_limit_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.qbert]\nmax_f1_drop = 0")
    done = CliRunner().invoke(main, ["rescue", "--model", "any", "--output", "out"])
    assert done.exit_code == 2
    assert "[tool.qbert] max_drop is 0, and int8 needs more than 0: give --max-drop" in done.stderr
    given = CliRunner().invoke(main, ["rescue", "--model", "any", "--output", "out", "--max-f1-drop", "0.01"])
    assert "model 'any' is no folder" in given.stderr


def test_a_file_beside_which_nothing_can_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gate.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("gate.json")
    assert OUTPUT.convert(tmp_path / "gate.json", None, None) == tmp_path / "gate.json"
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    for name in ("gate.json", "link.json", "new.json"):
        with pytest.raises(InputError, match=rf"{name} cannot be written \(Permission denied\)"):
            OUTPUT.convert(tmp_path / name, None, None)
    assert OUTPUT.convert("/dev/null", None, None) == Path("/dev/null")
