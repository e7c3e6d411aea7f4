"""Answers in the cache: whole or absent, whoever is killed, whatever fills up, however many write at once."""

import json
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset, text_rows
from qbert.measure.cells import Cell, baseline_of
from qbert.selection.kept_answers import KeptAnswers, name_of
from qbert.system.errors import InputError

LIMIT = 1 << 20  # bytes of a file; pytest's own stay below it


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cell(trained: Checkpoint, news: Dataset) -> Cell:
    return baseline_of(str(trained.folder), news, 20)


@pytest.fixture
def path(cache: Path, cell: Cell) -> Path:
    """The file that keeps the answers of `cell`, empty."""
    place = cache / "answers" / f"{name_of(cell)}.jsonl"
    place.parent.mkdir(parents=True)
    return place


@pytest.fixture
def file_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_sentence(path: Path, cell: Cell, news: Dataset) -> None:
    path.symlink_to("/dev/full")
    with pytest.raises(InputError, match=rf"{path.name} cannot be written \(No space left on device\): make room"):
        KeptAnswers(cell).logits(text_rows(news.test))


def test_a_cache_that_is_no_folder_is_one_sentence(path: Path, cell: Cell, news: Dataset) -> None:
    path.parent.rmdir()
    path.parent.write_text("")
    with pytest.raises(InputError, match=r"cannot be written \(.*\): make room, or name another place \(QBERT_CACHE"):
        KeptAnswers(cell).logits(text_rows(news.test))


@pytest.mark.usefixtures("file_limit")
def test_a_line_that_a_full_disk_cut_off_is_no_answer_and_those_before_are_kept(
    path: Path, cell: Cell, news: Dataset
) -> None:
    texts = text_rows(news.test)
    expected = KeptAnswers(cell).logits(texts)
    lines = path.read_bytes()
    path.write_bytes(b"\n" * (LIMIT - len(lines) // 2 - 7))
    with pytest.raises(InputError, match="cannot be written"):
        KeptAnswers(cell).logits(texts)
    assert path.stat().st_size == LIMIT, "the last line was cut off"
    path.write_bytes(path.read_bytes().lstrip(b"\n"))
    answers = KeptAnswers(cell)
    assert np.array_equal(answers.logits(texts), expected)
    assert 0 < answers.classified < len(set(texts))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1), st.sampled_from([b"", b"\0" * 40, b"\xff\n[]", b'["x", null]\n', b'["y", [1, ']))
def test_whatever_a_killed_process_leaves_the_answers_are_the_same(
    path: Path, cell: Cell, news: Dataset, share: float, rest: bytes
) -> None:
    texts = text_rows(news.test)[:12]
    expected = KeptAnswers(cell).logits(texts)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))] + rest)
    assert np.array_equal(KeptAnswers(cell).logits(texts), expected)
    again = KeptAnswers(cell)
    assert np.array_equal(again.logits(texts), expected)
    assert again.classified == 0


def test_of_several_that_need_the_same_answers_at_once_one_computes_each(path: Path, cell: Cell, news: Dataset) -> None:
    texts = text_rows(news.test)
    _ = cell.classifier
    all_of_them = [KeptAnswers(cell) for _ in range(3)]
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda one=one: found.append(one.logits(texts))) for one in all_of_them]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(np.array_equal(one, found[0]) for one in found)
    assert sum(one.classified for one in all_of_them) == len(set(texts))
    keys = [json.loads(line)[0] for line in path.read_bytes().split(b"\n") if line]
    assert len(keys) == len(set(keys)) == len(set(texts))
