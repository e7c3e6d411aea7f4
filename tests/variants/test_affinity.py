"""Each variant computes on the processors that its caller's affinity mask allows, and leaves the mask as it was."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from qbert import variants
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.variants import VARIANTS, Classifier, Variant

ALLOWED = sorted(os.sched_getaffinity(0)) if Path("/proc/self/task").exists() else []
ROWS = [
    pytest.param(row, marks=[] if row.default else [pytest.mark.slow], id=row.name)
    for row in VARIANTS.values()
    if not row.missing() and row.runtime != "TorchInductor"  # its minutes of compiling; it runs as PyTorch does
]
pytestmark = [
    pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two processors, and Linux"),
    pytest.mark.parametrize("variant", ROWS),
]
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def in_thread(work: Callable[[], None]) -> None:
    """Run `work` in a thread, whose mask dies with it."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  raised again below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def tasks() -> dict[int, tuple[float, str]]:
    """The processor seconds of each thread of this process, and the processors that it may use."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            ticks = (task / "stat").read_text().rpartition(")")[2].split()[11:13]
            (allowed,) = (line for line in (task / "status").read_text().splitlines() if "Cpus_allowed_list" in line)
        except OSError:  # it has ended
            continue
        found[int(task.name)] = sum(map(int, ticks)) * TICK_S, allowed.split()[1]
    return found


def used(call: Callable[[], object], seconds: float = 0.2) -> set[str]:
    """The processors that threads may use which work while this thread calls; another thread looks."""
    time.sleep(seconds)  # NumPy's threads wait busily for a while after what was converted
    seen: dict[int, set[str]] = defaultdict(set)
    begin, calling = tasks(), True

    def look() -> None:
        while calling:
            for task, (_, allowed) in tasks().items():
                seen[task].add(allowed)
            time.sleep(0.002)

    watcher = threading.Thread(target=look)
    watcher.start()
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        call()
    calling, ended = False, tasks()
    watcher.join()
    works = [
        task
        for task, (total, _) in ended.items()
        if total - begin.get(task, (0.0, ""))[0] >= seconds / 5 and task != watcher.native_id
    ]
    assert threading.get_native_id() in works
    return set().union(*(seen[task] for task in works))


def stays(classifier: Classifier, checkpoint: Checkpoint, *processors: int) -> None:
    """Check that the calls of this thread run on each of `processors`, one after the other."""
    encoding = checkpoint.encoder("体育新闻 " * 60, max_length=64)
    for processor in processors:
        os.sched_setaffinity(0, {processor})
        assert used(lambda: classifier(encoding)) == {str(processor)}
        assert os.sched_getaffinity(0) == {processor}


def test_a_thread_that_is_restricted_after_loading(variant: Variant, trained: Checkpoint, news: Dataset) -> None:
    classifier = variants.build(variant, trained, news)
    in_thread(lambda: stays(classifier, trained, ALLOWED[-1], ALLOWED[0]))


def test_a_thread_that_is_restricted_before_loading(variant: Variant, trained: Checkpoint, news: Dataset) -> None:
    folder = variants.prepare(variant, trained, news)

    def load_and_call() -> None:
        os.sched_setaffinity(0, {ALLOWED[-1]})
        stays(variants.load(variant, trained, folder), trained, ALLOWED[-1], ALLOWED[0])

    in_thread(load_and_call)


def test_a_thread_that_may_use_any_processor(variant: Variant, trained: Checkpoint, news: Dataset) -> None:
    classifier = variants.build(variant, trained, news)
    encoding = trained.encoder("体育新闻 " * 60, max_length=64)

    def anywhere() -> None:
        before = os.sched_getaffinity(0)
        (allowed,) = used(lambda: classifier(encoding))
        assert allowed not in map(str, before)
        assert os.sched_getaffinity(0) == before

    in_thread(anywhere)
