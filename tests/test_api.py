"""What `import qbert` gives: serving without torch, and for a notebook what the commands do, as DataFrames."""

import dataclasses
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import qbert
from qbert import api, variants
from qbert.cli import main
from qbert.inputs import labels
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.system import terminal
from qbert.system.errors import EXTRAS, InputError, pip_install
from qbert.variants import VARIANTS
from qbert.variants.artefact import Artefact
from qbert.variants.serving import Prediction, TextClassifier

NEVER_SERVED = ("torch", "transformers", "pandas", "scipy", "sklearn", "onnx", "nncf", "qbert.inputs.checkpoint")
SERVED = [
    pytest.param(name, marks=pytest.mark.skipif(bool(lack), reason=lack))
    for name in ("int8-onnxruntime", "int8-openvino", "int8-native")
    for lack in [VARIANTS[name].missing()]
]


def python(script: str, *arguments: object, hidden: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    """Run `script` in a process in which `hidden` are not installed, as far as it can tell."""
    finder = f"""
        import sys
        class Hidden:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {hidden!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Hidden())
        import importlib.util
        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name in {hidden!r} else find_spec(name, *rest)
    """
    source = textwrap.dedent(finder) + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", source, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def artefacts(trained: Checkpoint, news: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the artefact of a variant, made once."""
    place = tmp_path_factory.mktemp("artefacts")

    def make(name: str) -> Path:
        if not (place / name).exists():
            qbert.quantize(trained.folder, name, place / name, dataset=news.folder)
        return place / name

    return make


@pytest.fixture(scope="module")
def served(artefacts: Callable[[str], Path]) -> TextClassifier:
    return qbert.load(artefacts("int8-dynamic-onednn"))


def test_every_name_of_the_interface_is_there_and_says_what_it_is() -> None:
    for name in qbert.__all__:
        assert getattr(qbert, name).__doc__
    assert set(qbert.__all__) <= set(dir(qbert))
    with pytest.raises(AttributeError, match="'qbert' has no attribute 'quantise'"):
        _ = qbert.quantise


def test_importing_qbert_imports_no_library() -> None:
    done = python("import qbert; print(*sorted(name for name in sys.modules if 'qbert' in name or 'numpy' in name))")
    assert done.stdout.split() == ["qbert", "qbert.system", "qbert.system.errors", "qbert.system.former"]


@pytest.mark.parametrize("name", SERVED)
def test_a_service_imports_neither_torch_nor_anything_that_only_making_needs(
    name: str, artefacts: Callable[[str], Path]
) -> None:
    script = f"""
        import qbert
        print(qbert.load(sys.argv[1])("体育新闻").label)
        print([name for name in {NEVER_SERVED!r} if name in sys.modules])
    """
    done = python(script, artefacts(name))
    assert done.returncode == 0, done.stderr
    label, imported = done.stdout.splitlines()
    assert label
    assert imported == "[]"


BASE = ("torch", "transformers", "pandas", "scipy", "sklearn", "accelerate", "cpuinfo", "matplotlib", "jinja2")
COMMAND = "from qbert.cli import main; main()"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["variants"], ["train", "--help"], ["gate", "-h"]])
def test_the_base_install_runs_what_needs_no_more(arguments: list[str]) -> None:
    done = python(COMMAND, *arguments, hidden=(*BASE, "onnx", "onnxruntime", "openvino", "nncf", "torchao"))
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_base_install_predicts(artefacts: Callable[[str], Path]) -> None:
    if VARIANTS["int8-onnxruntime"].missing():
        pytest.skip("needs onnxruntime")
    done = python(COMMAND, "predict", "--model", artefacts("int8-onnxruntime"), "体育", hidden=BASE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\t体育\n")


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["evaluate", "--model", "bert-tiny"], "bench"),
        (["train", "--dataset", "news_mini", "--base", "bert-tiny", "--output", "no"], "train"),
        (["report", "run.json", "-o", "no.html"], "report"),
        (["compare", "one.json", "two.json"], "report"),
        (["history"], "report"),
        (["gate", "--base-ref", "main"], "bench"),
        (["machine"], "bench"),
        (["predict", "--model", "bert-tiny", "text"], "train"),
    ],
)
def test_a_command_that_lacks_a_package_names_the_extra_that_brings_it(arguments: list[str], extra: str) -> None:
    done = python(COMMAND, *arguments, hidden=BASE)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    expected = rf"Error: qbert[ .]{arguments[0]} needs the package \w+, which is not installed: "
    assert re.fullmatch(expected + re.escape(pip_install(extra)), last)
    assert "Traceback" not in done.stderr


def test_a_function_that_lacks_a_package_names_the_extra_that_brings_it() -> None:
    done = python("import qbert\ntry:\n qbert.runs()\nexcept qbert.InputError as error:\n print(error)", hidden=BASE)
    assert done.stdout.strip().endswith(f"not installed: {pip_install('report')}"), done.stderr
    assert done.stdout.startswith("qbert.runs needs the package ")


def extras() -> dict[str, set[str]]:
    """What each extra brings, those that it names included."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    found: dict[str, set[str]] = {}

    def packages(extra: str) -> set[str]:
        names = set()
        for line in project["optional-dependencies"][extra]:
            name, _, inner = re.fullmatch(r"([\w-]+)(\[([\w,-]+)\])?.*", line).groups()
            names |= set().union(*map(packages, inner.split(","))) if name == project["name"] else {name}
        return names

    for extra in project["optional-dependencies"]:
        found[extra] = packages(extra)
    return found


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize(
    "row", [row for row in VARIANTS.values() if row.packages_to_load is not None], ids=lambda row: row.name
)
def test_the_command_for_a_variant_brings_all_that_it_lacks(
    row: qbert.Variant, monkeypatch: pytest.MonkeyPatch, *, made: bool
) -> None:
    needed = row.packages_to_load if made else ("torch", "transformers", *row.packages)
    for package in needed:
        monkeypatch.setitem(sys.modules, package, None)
    said = row.missing(made=made)
    named = re.search(r"\[([\w,]+)\]", said)[1].split(",")
    assert set(needed) <= set().union(*(extras()[extra] for extra in named))


def test_every_extra_that_is_named_somewhere_exists() -> None:
    from qbert.cli import EXTRAS as OF_COMMANDS

    assert {*EXTRAS.values(), *OF_COMMANDS.values(), "all"} <= set(extras())
    assert {"torch", "onnx", "nncf", "onnxruntime", "openvino", "pytest", "jinja2", "pandas"} <= extras()["all"]


def test_a_classifier_says_what_it_is(served: TextClassifier, trained: Checkpoint) -> None:
    assert served.variant == "int8-dynamic-onednn"
    assert served.labels == trained.labels
    assert (served.max_length, served.positions) == (64, 512)
    assert served.problem_type == labels.SINGLE_LABEL
    assert {"python", "torch", "qbert"} <= set(served.versions)


def test_a_text_gets_its_label_and_the_score_of_every_label(served: TextClassifier, news: Dataset) -> None:
    artefact = Artefact.open(served.folder)
    classifier = artefact.load()
    for text in news.test["text"][:5]:
        found = served(text)
        (logits,) = classifier(artefact.encoder(text, max_length=64)).astype(float)
        powers = np.exp(logits)
        assert found.labels == (found.label,) == (served.labels[logits.argmax()],)
        assert found.score == max(found.scores.values()) == found.scores[found.label]
        assert list(found.scores.values()) == sorted(found.scores.values(), reverse=True)
        assert [found.scores[name] for name in served.labels] == pytest.approx(powers / powers.sum(), abs=1e-6)


def test_many_texts_get_the_answers_given_alone_in_their_order(served: TextClassifier, news: Dataset) -> None:
    texts = list(news.test["text"][:8])
    assert served.many(texts) == [served(text) for text in texts]
    assert served.many(iter(texts[:2])) == served.many(texts[:2])
    assert served.many([]) == []
    assert served.many([(texts[0], texts[1])]) == [served(texts[0], texts[1])]


def test_threads_that_share_it_get_the_answers_given_alone(served: TextClassifier, news: Dataset) -> None:
    texts = list(news.test["text"][:12])
    alone = served.many(texts)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(served, texts * 20)) == alone * 20


def test_a_multi_label_model_gives_any_number_of_labels(decided: Checkpoint, tmp_path: Path, several: Dataset) -> None:
    served = qbert.load(qbert.quantize(decided.folder, "int8-dynamic-onednn", tmp_path / "artefact"))
    texts = list(several.test["text"][:20])
    answers = served.many(texts)
    assert {len(found.labels) for found in answers} >= {0, 1, 2}
    for found in answers:
        assert set(found.labels) == {name for name, score in found.scores.items() if score >= 0.5}
        assert found.label == (found.labels[0] if found.labels else None)
        assert sum(found.scores.values()) != pytest.approx(1, abs=1e-3)
    assert Prediction((), {"a": 0.4, "b": 0.1}).label is None


@pytest.mark.parametrize("problem_type", [labels.SINGLE_LABEL, labels.MULTI_LABEL])
def test_scores_are_scipys(problem_type: labels.ProblemType) -> None:
    from scipy import special

    logits = np.random.default_rng(0).normal(size=(50, 7), scale=30).astype(np.float32)
    logits[0] = [1e4, -1e4, 0, 800, -800, 88, -88]
    expected = special.expit(logits) if problem_type == labels.MULTI_LABEL else special.softmax(logits, axis=-1)
    with np.errstate(all="raise", under="ignore"):
        assert labels.scores(logits, problem_type) == pytest.approx(expected, rel=1e-5, abs=1e-30)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "None is a NoneType: give a text"),
        (7, "7 is a int: give a text"),
        (b"sport", "is a bytes: give a text"),
        (["a", "b"], "is a list: give a text"),
        ("", "the text is blank"),
        (" \n\t", "the text is blank"),
        ("a" * 100_001, "the text has 100,001 characters: give at most 100,000"),
        ("a\ud800b", "half a character at 1"),
    ],
)
def test_what_is_no_text_is_refused_in_a_sentence(text: object, said: str, served: TextClassifier) -> None:
    with pytest.raises(InputError, match=said) as caught:
        served(text)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=f"text 1 .from 0.: .*{said}"):
        served.many(["体育", text])
    if text is not None:
        with pytest.raises(InputError, match=said):
            served("体育", text)


def test_one_text_given_as_many_is_refused_and_a_pair_has_two(served: TextClassifier) -> None:
    with pytest.raises(InputError, match="'体育' is one text: call the classifier with it"):
        served.many("体育")
    with pytest.raises(InputError, match="text 0"):
        served.many([("a", "b", "c")])


@pytest.mark.parametrize(
    ("max_length", "said"), [(513, "beyond .* 512 positions"), (2, "holds no text"), (0, "holds no")]
)
def test_a_length_that_the_model_does_not_take_is_refused(max_length: int, said: str, served: TextClassifier) -> None:
    with pytest.raises(InputError, match=said):
        qbert.load(served.folder, max_length=max_length)


def test_texts_are_cut_off_where_load_was_told(served: TextClassifier, news: Dataset) -> None:
    short, text = qbert.load(served.folder, max_length=8), news.test["text"][0]
    assert short(text) == short(text + text)
    assert short(text) == short(text[:20])
    assert short(text) != served(text)


def test_what_is_no_artefact_is_refused(trained: Checkpoint, tmp_path: Path) -> None:
    for folder in (trained.folder, tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="qbert quantize"):
            qbert.load(folder)


def test_nan_is_no_answer(served: TextClassifier) -> None:
    broken = dataclasses.replace(
        served, _classifier=variants.Classifier(lambda _: np.full((1, 5), np.nan, dtype=np.float32), {})
    )
    with pytest.raises(InputError, match="answers with nan or infinity to '体育': train or quantize it again"):
        broken("体育")


def test_evaluate_gives_what_the_command_writes(trained: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    names = ["int8-dynamic-onednn", "fp32"]
    table = qbert.evaluate(trained.folder, news.folder, variants=names, documents=12)
    arguments = ["--model", str(trained.folder), "--dataset", str(news.folder), "--documents", "12"]
    written = tmp_path / "found.json"
    command = ["evaluate", *arguments, "--variants", ",".join(names), "--json", str(written)]
    assert CliRunner().invoke(main, command).exit_code == 0
    expected = pd.DataFrame(json.loads(written.read_text()))
    assert list(table["variant"]) == ["fp32", "int8-dynamic-onednn"]
    assert set(table) == set(expected)
    same = ["model", "max_length", "variant", "f1", "f1_drop", "flips", "logit_error", "documents"]
    pd.testing.assert_frame_equal(table[same], expected[same])


def test_evaluate_refuses_a_named_variant_that_cannot_run(trained: Checkpoint, news: Dataset, few: Path) -> None:
    script = f"""
        import qbert
        sys.path.insert(0, {str(few)!r})
        import few
        table = qbert.evaluate({str(trained.folder)!r}, {str(news.folder)!r}, documents=5)
        print(*table["variant"], table["cannot"].notna().sum())
        for names in ("fp32,broken", "fp32, broken", " broken\\t,default", ["fp32", " broken"]):
            try:
                qbert.evaluate({str(trained.folder)!r}, {str(news.folder)!r}, variants=names, documents=5)
            except qbert.InputError as error:
                print(error)
    """
    done = python(script)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first == "fp32 int8-dynamic-onednn broken 1"
    assert ["no such operator" in line for line in others] == [True] * 4, "blanks around a name are no part of it"


def test_train_gives_the_metrics_of_the_checkpoint_that_it_writes(news: Dataset, tmp_path: Path) -> None:
    metrics = qbert.train(news.folder, "bert-tiny", tmp_path / "model", max_length=16, epochs=1, batch_size=64)
    written = Checkpoint.open(tmp_path / "model")
    assert written.record["metrics"] == metrics
    assert (written.record["recipe"]["epochs"], written.record["recipe"]["batch_size"]) == (1, 64)
    assert written.max_length == 16
    with pytest.raises(InputError, match="exists already"):
        qbert.train(news.folder, "bert-tiny", tmp_path / "model")


def test_the_arguments_of_a_benchmark_are_those_of_the_command(tmp_path: Path) -> None:
    assert api.bench_arguments(tmp_path, "news_mini", ["fp32", "bf16"], [16, 32], 0.5) == [
        f"--model={tmp_path}",
        "--dataset=news_mini",
        "--variants=fp32,bf16",
        "--max-lengths=16,32",
        "--seconds-per-cell=0.5",
    ]
    assert api.bench_arguments(["a", "b"], "d", "default", (64,), None) == [
        *("--model=a", "--model=b", "--dataset=d", "--variants=default", "--max-lengths=64")
    ]


@pytest.mark.slow
@pytest.mark.skipif("bench" not in main.commands, reason="needs the command bench")
def test_a_benchmark_gives_a_row_for_each_cell(trained: Checkpoint, news: Dataset) -> None:
    names = "fp32,int8-dynamic-onednn"
    table = qbert.benchmark(trained.folder, news.folder, variants=names, max_lengths=[16], seconds_per_cell=0.05)
    assert list(table["variant"]) == names.split(",")
    assert (table["median_s"] > 0).all()
    with pytest.raises(InputError, match=r"nothing was measured: .*no_such_variant"):
        qbert.benchmark(trained.folder, news.folder, variants="no_such_variant", max_lengths=[16])


def test_runs_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent is no folder"):
        qbert.runs(tmp_path / "absent")
    with pytest.raises(InputError, match=r"one\.json cannot be read"):
        qbert.runs(tmp_path / "one.json", tmp_path / "two.json")


CELL = """
from qbert.system.terminal import progress
with progress("cell", 3) as advance:
    for number in range(3):
        advance(number + 1)
    bar = advance.__name__
print(bar)
"""


@pytest.mark.slow
def test_a_bar_is_drawn_in_a_notebook() -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipywidgets")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    nbclient.NotebookClient(notebook, timeout=120).execute()
    outputs = notebook.cells[0].outputs
    assert [one for one in outputs if "application/vnd.jupyter.widget-view+json" in one.get("data", {})]
    assert "<lambda>" in "".join(one.get("text", "") for one in outputs)


def test_without_a_notebook_or_a_terminal_progress_is_told_in_lines() -> None:
    with terminal.progress("cell", 3) as advance:
        assert advance.__name__ == "advance"


def test_a_name_that_is_no_folders_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in (tmp_path / "loop", "a\0b"):
        with pytest.raises(InputError):
            qbert.load(name)
