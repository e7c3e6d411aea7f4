"""Variants that do not do the work that is timed: each is found out, and no honest one is taken for one of them."""

import re
import subprocess
from pathlib import Path

import forked
import numpy as np
import pytest

from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.measure import audit
from qbert.system.errors import InputError

ROOT = Path(__file__).parents[2]
CHEATS = """
import numpy as np
from qbert.variants import Classifier, Variant, eager, register

def key(encoding):
    return b"".join(array.tobytes() for array in encoding.values())

def add(name, cheat):
    def load(folder):
        honest = eager.load(folder)
        return Classifier(cheat(honest), honest.evidence)
    load.__qualname__ = load.__name__ = f"load_{name}"
    globals()[load.__name__] = load
    register(Variant(name, "PyTorch eager", "fp32", load))

def remembers(honest):
    known = {}
    def run(encoding):
        if key(encoding) not in known:
            known[key(encoding)] = honest(encoding)
        return known[key(encoding)]
    return run

def nonsense(honest):
    seen = set()
    def run(encoding):
        if key(encoding) in seen:
            return np.array([[9.0, -1.0, 2.0, -3.0, 4.0]], dtype=np.float32)
        seen.add(key(encoding))
        return honest(encoding)
    return run

def last(honest):
    answers = []
    def run(encoding):
        if len(answers) % 2:
            answers.append(answers[-1])
        else:
            answers.append(honest(encoding))
        return answers[-1]
    return run

def constant(honest):
    answer = np.ones((1, 5), dtype=np.float32)
    return lambda encoding: answer

for cheat in (remembers, nonsense, last, constant):
    add(cheat.__name__, cheat)
"""


def bench(model: Checkpoint, data: Dataset, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ["--model", model.folder, "--dataset", data.folder, "--max-lengths", "32", "--max-f1-drop", "1"]
    options += ["--seconds-per-cell", "0.2", "-k", "accuracy or latency", "-rA", "-p", "no:cacheprovider"]
    environment = {"COLUMNS": "80", "PYTHONPATH": str(cwd)}
    return forked.run("pytest", ROOT / "bench", *options, *arguments, cwd=cwd, environment=environment)


@pytest.fixture(scope="module")
def done(trained: Checkpoint, news: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run of honest variants and of cheats prints."""
    folder = tmp_path_factory.mktemp("cheats")
    (folder / "cheats.py").write_text(CHEATS)
    cheats = "fp32,int8-dynamic-onednn,remembers,nonsense,last,constant"
    ended = bench(trained, news, folder, "-p", "cheats", "--variants", cheats)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow  # of a run of honest variants and of cheats
@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "latency[tiny-32-remembers]",
            r"answers a text that it has seen \S+ times faster than a new one: it remembers",
        ),
        ("latency[tiny-32-nonsense]", r"answers a text with 9 -1 2 … when it is asked again in another order"),
        ("latency[tiny-32-last]", r"(is asked again in another order, and with|it remembers answers)"),
        ("latency[tiny-32-constant]", r"times faster than the best that this core did, so it does not do"),
        ("accuracy[tiny-32-nonsense]", r"answers document \d+ with 9 -1 2 … when all are asked again"),
        ("accuracy[tiny-32-last]", r"answers document \d+ with .* when all are asked again in another order"),
    ],
)
def test_a_cheat_fails_in_a_sentence(done: str, name: str, told: str) -> None:
    assert re.search(rf"^FAILED .*test_{re.escape(name)}", done, flags=re.MULTILINE)
    cell = name.partition("[")[2].removesuffix("]")
    said = " ".join(done.split())
    assert re.search(rf"{cell}[: ](?:(?!tiny-32-).)*?{told}", said), said


@pytest.mark.slow  # of a run of honest variants and of cheats
def test_no_honest_variant_is_taken_for_a_cheat(done: str) -> None:
    failed = re.findall(r"^FAILED .*tiny-32-(\S+)\]", done, flags=re.MULTILINE)
    passed = re.findall(r"^PASSED .*latency\[tiny-32-(\S+)\]", done, flags=re.MULTILINE)
    assert set(failed) == {"remembers", "nonsense", "last", "constant"}
    assert passed == ["fp32", "int8-dynamic-onednn"]


@pytest.mark.exhaustive
def test_every_variant_here_does_the_work(trained: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    ended = bench(trained, news, tmp_path, "--variants", "all")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_answers_differ_by_more_than_a_step_of_a_scale() -> None:
    first = np.array([[1.0, -2.0], [0.01, 0.02], [3.0, 1.0]], dtype=np.float32)
    assert audit.differing(first, first).tolist() == []
    assert audit.differing(first, first * 1.0005).tolist() == []
    assert audit.differing(first, first[[0, 2, 1]]).tolist() == [1, 2]
    assert audit.differing(first, np.where(first == 3, np.nan, first)).tolist() == [2]


def test_the_document_with_another_answer_is_named() -> None:
    rows = [("a",), ("b",), ("c",)]
    first = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]], dtype=np.float32)
    logits = dict(zip(rows, first[:, None], strict=True))
    audit.check_again(lambda *row: logits[row], rows, [4, 5, 6], first, "cell")
    logits["b",] = logits["a",]
    with pytest.raises(InputError, match=r"^cell answers document 5 with 1 0 when all .*, and with 0 1 before"):
        audit.check_again(lambda *row: logits[row], rows, [4, 5, 6], first, "cell")
