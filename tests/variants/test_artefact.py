"""What serves is shared by threads, shows what it claims, and loads nothing that was changed or may be another's."""

import ast
import dataclasses
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qbert import variants
from qbert.cli import main
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.inputs.tokenizer import Encoding
from qbert.system import cache
from qbert.system.errors import InputError, pip_install
from qbert.variants import VARIANTS, Classifier, Variant, eager, onnxruntime, openvino
from qbert.variants.artefact import Artefact
from qbert.variants.base import CONVERTERS

HERE = [variant for variant in VARIANTS.values() if not variant.missing()]
THREADS = 8
compiled = pytest.mark.exhaustive  # a quarter of a minute for each model
every = pytest.mark.parametrize(
    "variant",
    [pytest.param(row, marks=[compiled] if row.runtime == "TorchInductor" else [], id=row.name) for row in HERE],
)


def wrong(call: Callable[[int], np.ndarray], questions: int, calls: int = 60) -> int:
    """How many of THREADS * `calls` answers, given while others are asked for, are not those given alone."""
    alone = [call(question).copy() for question in range(questions)]

    def ask(thread: int) -> int:
        order = np.random.default_rng(thread).integers(questions, size=calls)
        answers = [(question, call(int(question))) for question in order]
        return sum(not np.array_equal(answer, alone[question]) for question, answer in answers)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns between nearly any two lines
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            return sum(pool.map(ask, range(THREADS)))
    finally:
        sys.setswitchinterval(before)


def encodings(checkpoint: Checkpoint, news: Dataset) -> list[Encoding]:
    return [checkpoint.encoder(text, max_length=4 + 5 * row) for row, text in enumerate(news.test["text"][:12])]


@every
def test_threads_that_share_a_classifier_get_the_answers_given_alone(
    variant: Variant, trained: Checkpoint, news: Dataset
) -> None:
    classifier, asked = variants.build(variant, trained, news), encodings(trained, news)
    assert wrong(lambda question: classifier(asked[question]), len(asked)) == 0


@pytest.mark.parametrize(("name", "overlap"), [("fp32", True), ("int8-dynamic-onednn", False)])
def test_calls_of_pytorchs_quantized_layers_take_turns(name: str, trained: Checkpoint, *, overlap: bool) -> None:
    assert variants.build(variants.VARIANTS[name], trained).concurrent == overlap


def test_threads_that_share_an_own_variant_get_the_answers_given_alone() -> None:
    shared = np.zeros((1, 2), dtype=np.float32)

    def run(encoding: Encoding) -> np.ndarray:
        shared[0, 0] = encoding["input_ids"][0, 0]
        time.sleep(1e-5)
        shared[0, 1] = shared[0, 0] + 1
        return shared

    classifier = Classifier(run, {})
    asked = [{"input_ids": np.array([[number]])} for number in range(12)]
    assert wrong(lambda question: classifier(asked[question]), len(asked)) == 0


@pytest.mark.slow
def test_threads_that_share_an_artefact_and_its_tokenizer_get_the_answers_given_alone(
    trained: Checkpoint, news: Dataset, tmp_path: Path
) -> None:
    variants.write_artefact(VARIANTS["int8-dynamic-onednn"], trained, tmp_path)
    artefact = Artefact.open(tmp_path)
    classifier, texts = artefact.load(), list(news.test["text"][:12])

    def encode(row: int) -> Encoding:
        return artefact.encoder(texts[row], max_length=4 + 5 * row)

    assert wrong(lambda row: encode(row)["input_ids"], 12, calls=1000) == 0
    assert wrong(lambda row: classifier(encode(row)), 12) == 0


def test_threads_that_share_a_checkpoints_tokenizer_get_the_encodings_given_alone(
    trained: Checkpoint, news: Dataset
) -> None:
    texts = list(news.test["text"][:12])
    assert wrong(lambda row: trained.encoder(texts[row], max_length=4 + 5 * row)["input_ids"], 12) == 0


def onnx_graph(checkpoint: Path) -> Path:
    return variants.prepare(VARIANTS["int8-onnxruntime"], Checkpoint(checkpoint)) / onnxruntime.GRAPH


def by_hand(checkpoint: Path) -> Classifier:
    return Classifier(eager.load(checkpoint).run, {"quantized_ops": 14, "threads": 1})


def own(load: Callable[[Path], Classifier], precision: str = "int8") -> Variant:
    return Variant("int8-mine", "PyTorch eager", precision, load)


def test_int8_of_a_classifier_made_by_hand_is_stated(trained: Checkpoint) -> None:
    assert variants.build(own(by_hand), trained).evidence["stated"] is True


@pytest.mark.parametrize(
    "wrap",
    [
        lambda classifier: Classifier(classifier.run, classifier.evidence),
        lambda classifier: dataclasses.replace(classifier, run=classifier),
    ],
    ids=["made", "replaced"],
)
def test_evidence_that_is_copied_from_a_counted_classifier_is_stated(
    wrap: Callable[[Classifier], Classifier], trained: Checkpoint
) -> None:
    counted = variants.build(VARIANTS["int8-dynamic-onednn"], trained)
    assert "stated" not in counted.evidence
    assert wrap(counted).evidence == {**counted.evidence, "stated": True}


@pytest.mark.skipif("int8-onnxruntime" not in [row.name for row in HERE], reason="needs onnxruntime")
def test_int8_of_an_own_graph_for_onnx_runtime_is_counted(trained: Checkpoint) -> None:
    evidence = variants.build(own(lambda folder: onnxruntime.classifier(onnx_graph(folder))), trained).evidence
    assert evidence == variants.build(VARIANTS["int8-onnxruntime"], trained).evidence
    assert evidence["quantized_ops"] > 0
    assert "stated" not in evidence


@pytest.mark.skipif("fp32-openvino" not in [row.name for row in HERE], reason="needs openvino")
def test_an_own_compiled_model_of_openvino_that_is_not_int8_is_refused(trained: Checkpoint) -> None:
    def load(folder: Path) -> Classifier:
        graph = variants.prepare(VARIANTS["fp32-openvino"], Checkpoint(folder)) / openvino.GRAPH
        return openvino.classifier(openvino.compile_model(graph, "f32"))

    assert variants.build(own(load, "fp32"), trained).evidence["quantized_ops"] == 0
    with pytest.raises(InputError, match="claims int8 and runs no quantized operation"):
        variants.build(own(load), trained)


def test_int8_of_an_own_model_of_pytorch_is_counted(trained: Checkpoint) -> None:
    def load(folder: Path) -> Classifier:
        import torch

        torch.backends.quantized.engine = "onednn"
        model = Checkpoint(folder).load()
        quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
        return eager.classifier(quantized)

    with pytest.warns(DeprecationWarning, match="quantiz"):
        evidence = variants.build(own(load), trained).evidence
    assert evidence["quantized_ops"] == 14
    assert "stated" not in evidence


@pytest.fixture
def added() -> Iterator[Callable[[Variant], None]]:
    """Put a row into the table, for one test."""
    names = []

    def add(row: Variant) -> None:
        variants.register(row)
        names.append(row.name)

    yield add
    for name in names:
        del VARIANTS[name]


def test_evaluate_marks_int8_that_is_stated_and_says_what_the_mark_means(
    trained: Checkpoint, news: Dataset, added: Callable[[Variant], None]
) -> None:
    added(own(by_hand))
    arguments = ["--model", str(trained.folder), "--dataset", str(news.folder), "--documents", "5"]
    done = CliRunner().invoke(main, ["evaluate", *arguments, "--variants", "fp32,int8-mine,int8-dynamic-onednn"])
    assert done.exit_code == 0, done.stderr
    assert "int8-mine* " in done.stdout
    assert "* int8 as its own code states it, not shown" in done.stdout
    assert done.stdout.count("*") == 2


HIDDEN = """
import pathlib, sys
for name in {hidden!r}:
    sys.modules[name] = None
from qbert import InputError
from qbert.variants.artefact import Artefact
artefact = Artefact.open(pathlib.Path({folder!r}))
try:
    classifier = artefact.load()
except InputError as error:
    print(error)
else:
    print(classifier(artefact.encoder("体育新闻", max_length=16)).shape)
assert not [name for name in ("onnx", "nncf") if sys.modules.get(name)]
"""


def without(hidden: tuple[str, ...], folder: Path) -> str:
    """What a process in which `hidden` cannot be imported says of the artefact in `folder`."""
    script = HIDDEN.format(hidden=hidden, folder=str(folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def artefact_of(name: str, trained: Checkpoint, news: Dataset, folder: Path) -> Path:
    if name not in [row.name for row in HERE]:
        pytest.skip(VARIANTS[name].missing())
    folder.mkdir()
    variants.write_artefact(VARIANTS[name], trained, folder, news)
    return folder


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("int8-onnxruntime", ("onnx", *CONVERTERS)),
        ("int8-openvino", ("nncf", *CONVERTERS)),
        ("int8-native", CONVERTERS),
    ],
)
def test_loading_does_without_what_only_making_needs(
    name: str, hidden: tuple[str, ...], trained: Checkpoint, news: Dataset, tmp_path: Path
) -> None:
    assert without(hidden, artefact_of(name, trained, news, tmp_path / "artefact")) == "(1, 5)"


@pytest.mark.parametrize(
    ("name", "hidden", "extra"),
    [
        ("int8-dynamic-onednn", "torch", "train"),
        ("int8-dynamic-onednn", "transformers", "train"),
        ("int8-onnxruntime", "onnxruntime", "onnxruntime"),
        ("int8-openvino", "openvino", "openvino"),
    ],
)
def test_what_loading_needs_is_named_with_the_command_that_brings_it(
    name: str, hidden: str, extra: str, trained: Checkpoint, news: Dataset, tmp_path: Path
) -> None:
    said = without((hidden,), artefact_of(name, trained, news, tmp_path / "artefact"))
    assert said == f"variant {name} cannot run here: {hidden} not installed: {pip_install(extra)}"


@pytest.mark.parametrize(
    ("name", "package"),
    [("fp32", "torch"), ("int8-onnxruntime", "onnx"), ("int8-openvino", "nncf"), ("int8-native", "transformers")],
)
def test_making_asks_for_what_it_needs(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert f"{package} not installed" in VARIANTS[name].missing()


@pytest.mark.exhaustive
def test_what_torchinductor_compiled_runs_without_a_compiler(
    trained: Checkpoint, news: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = artefact_of("fp32-inductor", trained, news, tmp_path / "artefact")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert without(("transformers",), folder) == "(1, 5)"


@pytest.mark.parametrize("name", ["fp32", "int8-dynamic-onednn", "int8-onnxruntime", "fp32-openvino", "int8-native"])
def test_a_flipped_byte_in_any_file_of_an_artefact_is_refused_in_one_sentence(
    name: str, trained: Checkpoint, news: Dataset, tmp_path: Path
) -> None:
    folder = artefact_of(name, trained, news, tmp_path / "artefact")
    draw = random.Random(0)  # noqa: S311  no secret
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for _ in range(6):
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(InputError) as caught:
                Artefact.open(folder).load()
            assert str(folder) in str(caught.value)
            assert "\n" not in str(caught.value)
        path.write_bytes(whole)
    Artefact.open(folder).load()


@pytest.fixture
def artefact(trained: Checkpoint, tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    folder.mkdir()
    variants.write_artefact(VARIANTS["int8-dynamic-onednn"], trained, folder)
    return folder


def test_a_missing_file_of_an_artefact_is_named(artefact: Path) -> None:
    (artefact / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json is missing, .*: make it again with qbert quantize"):
        Artefact.open(artefact).load()


def test_a_file_beside_an_artefacts_own_does_not_count(artefact: Path) -> None:
    (artefact / "notes.txt").write_text("in service since Monday")
    Artefact.open(artefact).load()


@pytest.mark.parametrize("left", [None, b"", b"\xff"])
def test_an_artefact_without_checksums_is_refused_with_the_remedies(artefact: Path, left: bytes | None) -> None:
    manifest = artefact / cache.MANIFEST
    manifest.unlink()
    if left is not None:
        manifest.write_bytes(left)
    remedies = r"make it again with qbert quantize, or load it unchecked \(--no-verify; verify=False\)"
    with pytest.raises(InputError, match=r"artefact has no list of checksums .*: " + remedies):
        Artefact.open(artefact).load()
    Artefact.open(artefact).load(verify=False)


def test_predict_skips_the_checksums_when_told(artefact: Path) -> None:
    (artefact / cache.MANIFEST).unlink()
    arguments = ["predict", "--model", str(artefact), "体育"]
    assert CliRunner().invoke(main, arguments).exit_code == 2
    assert CliRunner().invoke(main, [*arguments, "--no-verify"]).exit_code == 0


PLACES = ["cache", "cache/deep", "cache/deep/kept", "cache/deep/kept/program.so"]
posix = pytest.mark.skipif(sys.platform == "win32", reason="rights are not in the mode there")
root = pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the cache with a program in it, and with folders above it."""
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path / "cache"))
    return cache.build_kept(tmp_path / "cache" / "deep" / "kept", lambda stage: (stage / "program.so").touch())


@posix
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bit", [0o020, 0o002], ids=["group", "everybody"])
def test_a_program_that_others_can_change_is_refused_until_the_remedy_is_followed(
    program: Path, tmp_path: Path, place: str, bit: int
) -> None:
    path = tmp_path / place
    path.chmod(path.stat().st_mode | bit)
    for asked in (program, program / "program.so"):
        with pytest.raises(InputError, match=rf"{path} decides what is run .* others can write to it: chmod") as caught:
            cache.check_trusted(asked)
    subprocess.run(str(caught.value).partition(": ")[2].split(), check=True)
    cache.check_trusted(program)


@root
@pytest.mark.parametrize("place", PLACES)
def test_a_program_of_another_user_is_refused(program: Path, tmp_path: Path, place: str) -> None:
    os.chown(tmp_path / place, 12345, -1)
    with pytest.raises(InputError, match=rf"{tmp_path / place} decides .* another user \(id 12345\): take it over"):
        cache.check_trusted(program)


@root
def test_everybody_trusts_what_is_roots() -> None:
    os.seteuid(12345)
    try:
        cache.check_trusted(Path("/bin/sh").resolve())
    finally:
        os.seteuid(0)


@posix
def test_nobody_else_can_write_to_what_is_built_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path / "cache"))
    before = os.umask(0)
    try:
        built = cache.build_kept(tmp_path / "cache" / "deep" / "kept", lambda stage: (stage / "file").touch())
        assert os.umask(0) == 0  # as it was
    finally:
        os.umask(before)
    cache.check_trusted(built)
    assert (built / "file").stat().st_mode & 0o777 == 0o644


@posix
@pytest.mark.exhaustive
def test_a_program_of_torchinductor_that_others_can_change_is_refused(
    trained: Checkpoint, news: Dataset, tmp_path: Path
) -> None:
    folder = artefact_of("fp32-inductor", trained, news, tmp_path / "artefact")
    (folder / "model.pt2").chmod(0o666)
    with pytest.raises(InputError, match=r"model\.pt2 decides what is run here and others can write to it"):
        Artefact.open(folder).load()


@posix
@pytest.mark.skipif("fp32-inductor" not in [row.name for row in HERE], reason="needs a C++ compiler")
def test_torchinductor_compiles_with_no_cache_that_others_can_change(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    (programs / "kernels").mkdir(parents=True)
    (programs / "kernels").chmod(0o777)
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(programs))
    with pytest.raises(InputError, match="kernels decides what is run here and others can write to it"):
        variants.prepare(VARIANTS["fp32-inductor"], trained)


@pytest.mark.skipif("int8-native" not in [row.name for row in HERE], reason="needs AVX2 or ARM's dot products")
def test_a_native_library_that_others_can_change_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qbert.variants.native.compiler import load_library

    monkeypatch.setenv("QBERT_CACHE", str(tmp_path / "cache"))
    load_library.cache_clear()
    load_library()
    (library,) = tmp_path.rglob("native.so")
    library.chmod(0o666)
    load_library.cache_clear()
    with pytest.raises(InputError, match=r"native\.so decides what is run here and others can write to it"):
        load_library()


def test_a_second_quantize_copies_what_the_first_one_kept(
    trained: Checkpoint, tmp_path: Path, added: Callable[[Variant], None]
) -> None:
    made = []

    def export(checkpoint: Checkpoint, folder: Path) -> None:
        made.append(folder)
        eager.export(checkpoint, folder)

    added(Variant("mine", "PyTorch eager", "fp32", eager.load, export))
    for number in range(2):
        arguments = ["--model", str(trained.folder), "--variant", "mine", "--output", str(tmp_path / str(number))]
        done = CliRunner().invoke(main, ["quantize", *arguments])
        assert done.exit_code == 0, done.stderr
    assert len(made) == 1
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "01")
    assert first == second
    Artefact.open(tmp_path / "1").load()


@pytest.mark.parametrize(("added_by", "named"), [("mine_alone", "mine_alone"), ("outside", "MODULE")])
def test_an_own_variants_artefact_opened_without_its_module_says_what_to_import(
    added_by: str, named: str, trained: Checkpoint, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outside / "mine_alone.py").write_text("""
from qbert.variants import Variant, eager, register
def load(folder):
    return eager.load(folder)
register(Variant("mine", "PyTorch eager", "fp32", load))
""")
    monkeypatch.syspath_prepend(outside)

    def qbert(*arguments: str) -> str:
        done = CliRunner().invoke(main, arguments)
        if VARIANTS.pop("mine", None):
            del sys.modules[added_by]
        return done.stderr if done.exit_code else done.stdout

    out = str(outside / "out")
    qbert("-p", added_by, "quantize", "--model", str(trained.folder), "--variant", "mine", "--output", out)
    assert f"first import the module that adds it (qbert -p {named})" in qbert("predict", "--model", out, "体育")
    said = (Path(out) / "README.md").read_text(encoding="utf-8")
    assert ("import mine_alone  # adds the variant\n" in said) == (named == "mine_alone")
    assert "No other library" not in said
    assert qbert("-p", added_by, "predict", "--model", out, "体育").endswith("\t体育\n")


def test_the_answer_to_line_n_is_line_n(artefact: Path) -> None:
    lines = ["体育", "", "健康", " \t ", "\t体育", "教育"]
    blank = {1, 3, 4}

    def predict(*options: str) -> list[str]:
        arguments = ["predict", "--model", str(artefact), *options]
        return CliRunner().invoke(main, arguments, input="\n".join(lines) + "\n").stdout.split("\n")[:-1]

    answers = predict()
    assert len(answers) == len(lines)
    assert {row for row, answer in enumerate(answers) if answer == "\t\t"} == blank
    told = [json.loads(answer) for answer in predict("--json")]
    assert [answer["text"] for answer in told] == lines
    assert {row for row, answer in enumerate(told) if answer["label"] is None and answer["scores"] == {}} == blank


def block(folder: Path, number: int) -> str:
    """The n-th block of Python in the README of the artefact."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[number]


EXPLAINED = ("fp32", "int8-onnxruntime", "fp32-openvino", "int8-openvino")


@pytest.mark.parametrize("name", EXPLAINED)
def test_the_readmes_lines_without_qbert_give_the_scores_that_qbert_gives(
    name: str, trained: Checkpoint, news: Dataset, tmp_path: Path
) -> None:
    folder = artefact_of(name, trained, news, tmp_path / "artefact")
    text = str(news.test["text"][3])
    hidden = "import sys; sys.modules['qbert'] = None\n"
    lines = block(folder, 1).replace('"..."', repr(text))
    done = subprocess.run(
        [sys.executable, "-c", hidden + lines], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    opened = Artefact.open(folder)
    (logits,) = opened.load()(opened.encoder(text, max_length=opened.max_length))
    assert list(told) == list(opened.labels)
    assert list(told.values()) == pytest.approx(logits.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", ["int8-dynamic-onednn", "int8-onnxruntime"])
def test_the_readmes_lines_with_qbert_classify(name: str, trained: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    folder = artefact_of(name, trained, news, tmp_path / "artefact")
    done = subprocess.run(
        [sys.executable, "-c", block(folder, 0).replace('"..."', '"体育"')],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(cache.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() in trained.labels


def test_the_readme_says_what_the_artefact_is(artefact: Path, trained: Checkpoint) -> None:
    said = (artefact / "README.md").read_text(encoding="utf-8")
    record = json.loads((artefact / "qbert.json").read_text(encoding="utf-8"))
    assert said.startswith("# tiny as int8-dynamic-onednn\n")
    made_with = f"torch {record['versions']['torch']}"
    for fact in (*trained.labels, "64 tokens", "512 at most", made_with, "pytest-qbert[train]"):
        assert fact in said
    assert "No other library runs it" in said


@pytest.mark.exhaustive
def test_the_readmes_lines_for_torchinductor_run(trained: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    folder = artefact_of("fp32-inductor", trained, news, tmp_path / "artefact")
    done = subprocess.run(
        [sys.executable, "-c", block(folder, 1)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_config_json_names_the_labels_even_where_transformers_would_make_them_up(
    trained: Checkpoint, pairs: Dataset, tmp_path: Path
) -> None:
    import transformers

    configuration = transformers.AutoConfig.from_pretrained(trained.folder)
    configuration.id2label, configuration.label2id = {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}
    two = tmp_path / "two"
    transformers.AutoModelForSequenceClassification.from_config(configuration).save_pretrained(two)
    transformers.AutoTokenizer.from_pretrained(trained.folder).save_pretrained(two)
    assert "id2label" not in json.loads((two / "config.json").read_text())
    folder = artefact_of("int8-dynamic-onednn", Checkpoint.open(two), pairs, tmp_path / "artefact")
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}


def test_an_openvino_artefact_made_before_the_graph_was_renamed_still_loads(
    trained: Checkpoint, news: Dataset, tmp_path: Path
) -> None:
    folder = artefact_of("fp32-openvino", trained, news, tmp_path / "artefact")
    encoding = trained.encoder("体育新闻", max_length=16)
    expected = Artefact.open(folder).load()(encoding)
    for suffix in ("xml", "bin"):
        (folder / f"openvino_model.{suffix}").rename(folder / f"model.{suffix}")
    cache.seal(folder)
    assert np.array_equal(Artefact.open(folder).load()(encoding), expected)


@pytest.mark.slow
def test_optimum_intel_loads_an_openvino_artefact(trained: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    intel = pytest.importorskip("optimum.intel", reason="optimum-intel does not install beside this transformers")
    import transformers

    folder = artefact_of("int8-openvino", trained, news, tmp_path / "artefact")
    model = intel.OVModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = str(news.test["text"][3])
    logits = model(**tokenizer(text, truncation=True, max_length=64, return_tensors="pt")).logits
    opened = Artefact.open(folder)
    expected = opened.load()(opened.encoder(text, max_length=64))
    assert model.config.id2label == dict(enumerate(trained.labels))
    assert logits.numpy() == pytest.approx(expected, abs=0.05)  # it may compute in bf16
