"""What serves is shared by threads, shows what it claims, and loads nothing that was changed or may be another's."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qbert import variants
from qbert.artefact import Artefact
from qbert.checkpoint import Checkpoint, Encoding
from qbert.dataset import Dataset
from qbert.variants import VARIANTS, Classifier, Variant

HERE = [variant for variant in VARIANTS.values() if not variant.missing()]
THREADS = 8
compiled = pytest.mark.slow  # a quarter of a minute for each model
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
