"""Two processes that serve a model on two cores classify nearly twice as many texts as one."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import transformers

import qbert
from qbert.inputs import training
from qbert.inputs.dataset import Dataset
from qbert.variants import VARIANTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        len(os.sched_getaffinity(0)) < 2 if hasattr(os, "sched_getaffinity") else True, reason="needs two processors"
    ),
]
TRIES = 6
SECONDS = 1.0
TWICE = 1.8
SERVE = """
import sys, time
folder, text = sys.argv[1:]
if folder:
    import qbert
    classify = qbert.load(folder)
else:
    def classify(_):  # a loop that shares nothing
        sum(range(50_000))
classify(text)
print("ready", flush=True)
for line in sys.stdin:
    end, count = time.monotonic() + float(line), 0
    while time.monotonic() < end:
        classify(text)
        count += 1
    print(count, flush=True)
"""


@pytest.fixture(scope="module")
def mini(news: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded BERT whose calls take some milliseconds."""
    folder = tmp_path_factory.mktemp("mini")
    tokenizer = training.learn_vocabulary(news.train["text"])
    size = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    configuration = transformers.BertConfig(
        vocab_size=len(tokenizer), num_labels=5, pad_token_id=tokenizer.pad_token_id, **size
    )
    configuration.id2label = dict(enumerate(news.label_names))
    transformers.set_seed(0)
    transformers.AutoModelForSequenceClassification.from_config(configuration).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def two_processes(folder: Path | str, text: str) -> Iterator[Callable[[int], int]]:
    """Start them; yield what lets the first of them, or both, classify, and returns how many texts they did."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SERVE, str(folder), text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]

    def classified(count: int) -> int:
        for process in processes[:count]:
            process.stdin.write(f"{SECONDS}\n")
            process.stdin.flush()
        return sum(int(process.stdout.readline()) for process in processes[:count])

    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        yield classified
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def scales(*classified: Callable[[int], int]) -> bool:
    """Whether two do TWICE as much as one, or 95 % of what two of the second do beside what else runs here."""
    tries = []
    for _ in range(TRIES):
        one = [call(1) for call in classified]
        two = [call(2) for call in classified]
        ratio, plain = (both / alone for both, alone in zip(two, one, strict=True))
        if ratio >= min(TWICE, 0.95 * plain):
            return True
        tries.append((ratio, plain))
    print(tries)
    return False


DEFAULTS = [row for row in VARIANTS.values() if row.default and not row.missing()]
ONE_OF_EACH_RUNTIME = {row.runtime: row.name for row in DEFAULTS}


@pytest.mark.parametrize("name", [row.name for row in DEFAULTS])
def test_two_processes_classify_twice_as_much_as_one(name: str, mini: Path, news: Dataset, tmp_path: Path) -> None:
    artefact = qbert.quantize(mini, name, tmp_path / "artefact", dataset=news.folder)
    text = " ".join(news.test["text"].head(4))
    with two_processes(artefact, text) as classified, two_processes("", text) as plain:
        assert scales(classified, plain)


@pytest.mark.parametrize("name", ONE_OF_EACH_RUNTIME.values())
def test_two_clients_of_the_example_get_twice_as_many_answers_as_one(
    name: str,
    mini: Path,
    news: Dataset,
    tmp_path: Path,
    serving: Callable[[Path], AbstractContextManager[str]],
) -> None:
    httpx = pytest.importorskip("httpx")
    artefact = qbert.quantize(mini, name, tmp_path / "artefact", dataset=news.folder)
    text = " ".join(news.test["text"].head(4))

    def ask(address: str) -> int:
        end, count = time.monotonic() + SECONDS, 0
        while time.monotonic() < end:  # a connection each, which the process that is free takes
            answer = httpx.post(address, json={"texts": [text] * 16}, timeout=60)
            count += len(answer.raise_for_status().json())
        return count

    with serving(artefact) as service, two_processes("", text) as plain, ThreadPoolExecutor(2) as clients:

        def answered(count: int) -> int:
            return sum(clients.map(ask, [f"{service}/classify"] * count))

        answered(2)
        assert scales(answered, plain)
