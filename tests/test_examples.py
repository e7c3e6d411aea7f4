"""The examples do what they say: the service under a few hundred requests with bad ones among them, the notebook."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import qbert
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.variants import VARIANTS, Variant
from qbert.variants.serving import TextClassifier

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
VARIANT = "int8-dynamic-onednn" if VARIANTS["int8-onnxruntime"].missing() else "int8-onnxruntime"


@pytest.fixture(scope="module")
def served(trained: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> TextClassifier:
    return qbert.load(qbert.quantize(trained.folder, VARIANT, tmp_path_factory.mktemp("served") / "artefact"))


@pytest.fixture(scope="module")
def service(served: TextClassifier, serving: Callable[[Path], AbstractContextManager[str]]) -> Iterator[str]:
    """The address of a running service of two processes."""
    with serving(served.folder) as address:
        yield address


LONGEST = "a" * 10_000
BAD = [
    ({"json": {"texts": [""]}}, 422, "blank"),
    ({"json": {"texts": ["体育", "  "]}}, 422, "text 1 (from 0): the text is blank"),
    ({"json": {"texts": [LONGEST + "a"]}}, 422, "10,001 characters"),
    ({"json": {"texts": [7]}}, 422, "valid string"),
    ({"json": {"texts": "体育"}}, 422, "valid list"),
    ({"json": {"texts": []}}, 422, "at least 1"),
    ({"json": {"texts": ["体育"] * 33}}, 422, "at most 32"),
    ({"json": {"text": "体育"}}, 422, "Field required"),
    ({"json": None}, 422, ""),
    ({"content": b"{"}, 422, "JSON"),
    ({"content": b'{"texts": ["\\ud800"]}'}, 422, ""),
    ({"content": b"\xff\xfe"}, 422, "JSON"),
    ({"content": b" " * ((1 << 20) + 1)}, 413, "send at most 1048576"),
    ({"content": iter([b'{"texts": ["a"]}'])}, 411, "content-length"),
    ({"content": iter([b"{}"]), "headers": {"content-length": "2", "transfer-encoding": "chunked"}}, 411, "length"),
]


@pytest.mark.parametrize(("request_", "status", "said"), BAD)
def test_a_bad_request_is_refused_with_its_reason(
    service: str, request_: dict[str, object], status: int, said: str
) -> None:
    request_ = {"headers": {"content-type": "application/json"}} | request_
    answer = httpx.post(f"{service}/classify", **request_)
    assert answer.status_code == status, answer.text
    assert said in answer.text
    assert "Traceback" not in answer.text


def test_the_longest_text_and_the_most_texts_are_answered(service: str) -> None:
    for texts in ([LONGEST], ["体育"] * 32):
        assert len(httpx.post(f"{service}/classify", json={"texts": texts}, timeout=30).json()) == len(texts)


def test_the_health_check_says_what_is_served(service: str, served: TextClassifier) -> None:
    answer = httpx.get(f"{service}/health")
    assert answer.status_code == 200
    told = answer.json()
    assert (told["variant"], told["labels"]) == (VARIANT, list(served.labels))
    assert told["versions"] == served.versions


@pytest.mark.slow
def test_every_one_of_some_hundred_requests_at_once_gets_its_own_answer(
    service: str, served: TextClassifier, news: Dataset
) -> None:
    texts = list(news.test["text"])
    expected = served.many(texts)

    def ask(number: int) -> bool:
        with httpx.Client(base_url=service, timeout=60) as client:
            if number % 5 == 4:
                bad, status, _ = BAD[number % 9]
                return client.post("/classify", **bad).status_code == status
            if number % 50 == 0:
                return client.get("/health").status_code == 200
            row = number % len(texts)
            (answer,) = client.post("/classify", json={"texts": [texts[row]]}).json()
            return answer["label"] == expected[row].label and answer["scores"] == pytest.approx(expected[row].scores)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(300)))


def test_the_command_line_example_answers_each_text(served: TextClassifier) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "classify.py"), str(served.folder), "体育", "健康"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [
        found.label for found in served.many(["体育", "健康"])
    ]


@pytest.fixture
def trimmed() -> Iterator[dict[str, Variant]]:
    """The rows that the plugin adds, which are in the table meanwhile."""
    before = dict(VARIANTS)
    spec = importlib.util.spec_from_file_location("trimmed", EXAMPLES / "trimmed.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield {name: row for name, row in VARIANTS.items() if name not in before}
    VARIANTS.clear()
    VARIANTS.update(before)


def test_the_plugins_rows_have_the_definitions_of_saved_runs(trimmed: dict[str, Variant]) -> None:
    exports = {name: row.definition["export"] for name, row in trimmed.items()}
    assert exports == {
        "int8-onnxruntime-trimmed": "qbert.variants.onnxruntime.export_trimmed",
        "fp32-openvino-trimmed": "qbert.variants.openvino.export_trimmed",
        "int8-openvino-trimmed": "qbert.variants.openvino.export_int8_trimmed",
    }


@pytest.mark.parametrize(
    "name",
    [
        "fp32-openvino-trimmed",
        "int8-onnxruntime-trimmed",
        pytest.param("int8-openvino-trimmed", marks=pytest.mark.slow),
    ],
)
def test_a_trimmed_graph_answers_as_fp32_does_and_is_served(
    name: str, trimmed: dict[str, Variant], trained: Checkpoint, news: Dataset, tmp_path: Path
) -> None:
    if why := trimmed[name].missing():
        pytest.skip(why)
    texts = list(news.test["text"][:20])
    classifier = qbert.load(qbert.quantize(trained.folder, name, tmp_path / "artefact", dataset=news.folder))
    fp32 = qbert.load(qbert.quantize(trained.folder, "fp32", tmp_path / "fp32"))
    tolerance = 1e-4 if name.startswith("fp32") else 0.2
    for found, expected in zip(classifier.many(texts), fp32.many(texts), strict=True):
        assert dict(found.scores) == pytest.approx(dict(expected.scores), abs=tolerance)
    readme = (tmp_path / "artefact" / "README.md").read_text(encoding="utf-8")
    assert f"enable_padding(length={classifier.positions})" in readme
    if "onnxruntime" in name:  # the last layer's attention is no longer what the optimizer looks for
        layers = trained.config.num_hidden_layers
        assert f'"QAttention": {layers - 1}' in (tmp_path / "artefact" / "evidence.json").read_text()


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, trained: Checkpoint, news: Dataset) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    (names,) = (cell for cell in notebook.cells if '"bert-tiny", "news_mini"' in cell["source"])
    ours = f'"{trained.folder}", "{news.folder}"'  # the built-in model would be trained for minutes
    names["source"] = names["source"].replace('"bert-tiny", "news_mini"', ours)
    nbclient.NotebookClient(notebook, timeout=1_500).execute()
    shown = [one["data"]["text/plain"] for cell in notebook.cells for one in cell.get("outputs", []) if "data" in one]
    assert any("int8-dynamic" in text and "f1_drop" in text for text in shown)
    assert any(text.startswith("Prediction(") for text in shown)
