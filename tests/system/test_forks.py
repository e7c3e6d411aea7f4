"""Processes that fork while their threads classify: the child classifies, or says why it cannot, and never hangs."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from qbert import variants
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.inputs.tokenizer import Encoding
from qbert.system import forks
from qbert.system.errors import InputError
from qbert.variants import VARIANTS, Classifier, Variant

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
ROWS = [
    pytest.param(row, marks=[] if row.default else [pytest.mark.slow], id=row.name)
    for row in VARIANTS.values()
    if not row.missing() and row.runtime != "TorchInductor"  # its minutes of compiling; it runs as PyTorch does
]
HUNG_S = 30


@contextmanager
def threads(work: Callable[[], object], count: int = 4) -> Iterator[None]:
    """Let threads do `work` again and again."""
    busy = True

    def repeat() -> None:
        while busy:
            work()

    workers = [threading.Thread(target=repeat) for _ in range(count)]
    for worker in workers:
        worker.start()
    try:
        time.sleep(0.05)
        yield
    finally:
        busy = False
        for worker in workers:
            worker.join()


def in_fork(work: Callable[[], bool]) -> int:
    """The exit code of a fork that does `work`: 0 where it returns true; minus a signal that ended it."""
    child = os.fork()
    if not child:
        signal.alarm(HUNG_S)  # in C: Python's handler would not run while a lock is awaited
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        code = 3
        try:
            code = int(not work())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("variant", ROWS)
def test_a_fork_classifies_like_the_process_whose_threads_were_busy(
    variant: Variant, trained: Checkpoint, news: Dataset
) -> None:
    classifier, text = variants.build(variant, trained, news), news.test["text"].iloc[0]

    def classify() -> np.ndarray:
        return classifier(trained.encoder(text, max_length=64))

    expected = classify()
    with threads(classify):
        assert {in_fork(lambda: np.array_equal(classify(), expected)) for _ in range(6)} == {0}
    assert np.array_equal(classify(), expected), "the process itself goes on"


def slow_classifier(begun: threading.Event, release: threading.Event) -> Classifier:
    def run(_: Encoding) -> np.ndarray:
        begun.set()
        release.wait()
        return np.zeros((1, 2), dtype=np.float32)

    return Classifier(run, {})


def test_a_fork_in_the_middle_of_a_call_that_does_not_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "WAIT_S", 0.1)
    begun, release = threading.Event(), threading.Event()
    classifier = slow_classifier(begun, release)
    thread = threading.Thread(target=classifier, args=({},))
    thread.start()
    begun.wait()

    def is_refused() -> bool:
        with pytest.raises(InputError, match="forked while a thread classified"):
            classifier({})
        return True

    assert in_fork(is_refused) == 0
    assert in_fork(lambda: in_fork(is_refused) == 0) == 0, "nor can a fork of the fork"
    release.set()
    thread.join()
    assert in_fork(lambda: classifier({}).shape == (1, 2)) == 0, "later forks are whole"


def test_a_call_may_fork() -> None:
    def run(_: Encoding) -> np.ndarray:
        return np.full((1, 2), in_fork(lambda: True), dtype=np.float32)

    started = time.monotonic()
    assert not Classifier(run, {})({}).any()
    assert time.monotonic() - started < forks.WAIT_S
