"""Three processes that time a group of cells: what they call, what is kept of it, what happens where one is lost."""

import contextlib
import dataclasses
import gc
import importlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qbert import variants
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.measure import accuracy, audit, latency
from qbert.measure import latency_worker as timing
from qbert.measure.cells import Suite
from qbert.system import machine
from qbert.system.errors import InputError
from qbert.variants import Classifier


def test_a_process_counts_once_and_each_block_of_it() -> None:
    baseline = [[[4.0, 4.0], [9.0, 9.0], [4.0]], [[8.0], [8.0], [8.0]], [[16.0], [1.0], [16.0]]]
    found = latency.Timed([[[1.0, 1.0, 7.0], [1.0], [2.0]]] + [[[1.0]] * 3] * 2, baseline).figures()
    assert found["process_speedups"] == [4.0, 8.0, 16.0]  # medians of 4, 9, 2; of 8, 8, 8; of 16, 1, 16
    assert found["speedup"] == pytest.approx(8.0)
    assert found["process_p50_s"] == [1.0, 1.0, 1.0]
    assert (found["baseline_p50_s"], found["pairs"]) == (8.0, 9)


def test_rounds_are_in_the_order_they_were_made() -> None:
    timed = latency.Timed([[[1.0, 2.0], [7.0]], [[3.0, 4.0], [8.0]], [[5.0, 6.0], [9.0]]], [])
    assert timed.rounds == [1, 2, 7, 3, 4, 8, 5, 6, 9]
    assert timed.figures() == {"speedup": 1.0, "process_p50_s": [2.0, 4.0, 6.0], "pairs": 6}


def test_a_round_takes_the_seconds_that_another_process_measured(benchmark: Any) -> None:
    replay = latency.Replay()
    benchmark._timer = replay  # noqa: SLF001  as the mark has it
    rounds = iter([0.25, 1e-5, 3.0])
    benchmark.disabled = False  # else it is beside pytest-xdist
    benchmark.pedantic(lambda: replay.take(next(rounds)), setup=replay.reset, rounds=3)
    assert benchmark.stats.stats.data == [0.25, 1e-5, 3.0]


@pytest.mark.parametrize(("rounds", "told"), [(58, 1), (59, 2), (298, 2), (299, 3)])
def test_a_percentile_needs_enough_rounds(rounds: int, told: int) -> None:
    assert list(accuracy.percentiles([1.0] * rounds)) == ["p50_s", "p95_s", "p99_s"][:told]


def test_no_text_comes_twice_and_special_tokens_stay(trained: Checkpoint, news: Dataset) -> None:
    encodings = latency.texts(trained.encoder, news, 16)
    assert len(encodings) >= 8
    assert {one["input_ids"].shape for one in encodings} == {(1, 16)}
    special = trained.encoder.tokenizer.all_special_ids
    found = list(itertools.islice(timing.endless_texts([*encodings, encodings[0]], special, seed=0), 3000))
    assert len({one["input_ids"].tobytes() for one in found}) == 3000
    for one in found:
        assert one["input_ids"][0, 0] == trained.encoder.tokenizer.cls_token_id
        assert one["input_ids"][0, -1] == trained.encoder.tokenizer.sep_token_id
        assert one.keys() == encodings[0].keys()


def test_blocks_are_planned_by_the_time_of_a_call() -> None:
    assert latency.settling_calls(0.001) == 30
    assert latency.settling_calls(0.012) == 3
    assert latency.settling_calls(0.25) == 0


@pytest.fixture
def suite(trained: Checkpoint, news: Dataset) -> Suite:
    return Suite(news, [str(trained.folder)], max_lengths=[16])


@pytest.fixture
def timers() -> Iterator[latency.Timers]:
    with contextlib.closing(latency.Timers()) as started:
        yield started


def test_three_processes_take_turns_and_keep_the_seconds(suite: Suite, timers: latency.Timers) -> None:
    int8 = suite.cell("tiny", 16, "int8-dynamic-onednn")
    start = time.perf_counter()
    timed = timers.time(int8, seconds=0.5, min_rounds=5)
    taken = time.perf_counter() - start
    assert [len(one) for one in timed.variant_s] == [len(one) for one in timed.baseline_s] == [latency.MIN_PAIRS] * 3
    assert len({tuple(map(len, one)) for one in timed.variant_s}) == 1
    figures = timed.figures()
    assert len(figures["process_speedups"]) == len(figures["process_p50_s"]) == 3
    assert sum(timed.rounds) < taken
    fp32 = [timers.time(suite.cell("tiny", 16, "fp32"), seconds=3.0) for _ in range(3)]
    assert not fp32[0].baseline_s
    # Of 3 s each, of which less where the machine becomes faster after the first calls.
    assert max(sum(one.rounds) for one in fp32) > 0.5


def test_a_group_takes_turns_and_each_of_it_is_asked_for_later(suite: Suite, timers: latency.Timers) -> None:
    cells = [suite.cell("tiny", 16, variant) for variant in ("fp32", "int8-dynamic-onednn", "int8-dynamic")]
    percents: list[int] = []
    first = timers.time(cells[1], seconds=0.1, group=cells, advance=percents.append)
    assert percents == sorted(percents)
    assert percents[-1] == 100
    start = time.perf_counter()
    fp32, other = (timers.time(cell, seconds=0.1, group=cells) for cell in (cells[0], cells[2]))
    assert time.perf_counter() - start < 0.05
    assert first.baseline_s == other.baseline_s == fp32.variant_s
    assert fp32.baseline_s == []
    assert first.variant_s != other.variant_s
    assert other.evidence["quantized_ops"] > fp32.evidence["quantized_ops"] == 0


def test_each_round_has_a_block_of_each_in_another_order() -> None:
    plan = latency.Plan.of({"fp32": 0.4, "int8": 0.001, "bf16": 0.03}, seconds=9.0, min_rounds=5)
    assert plan.turns["fp32"] == {"settling": 0, "timed": 1}
    assert plan.turns["int8"] == {"settling": 30, "timed": 50}
    assert plan.rounds == 5  # of 0.57 s each, in three processes
    orders = [tuple(order) for order in plan.orders(seed=0)]
    assert len(orders) == plan.rounds
    assert {frozenset(order) for order in orders} == {frozenset(plan.turns)}
    assert len(set(orders)) > 1
    assert orders != [tuple(order) for order in plan.orders(seed=1)]
    assert latency.Plan.of({"fp32": 0.4}, seconds=0.1, min_rounds=28).rounds == 10  # in three processes: 30 calls


def test_what_memory_is_not_meant_to_hold_at_once_takes_turns_in_parts(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("int8-dynamic-onednn", "fp32", "int8-dynamic")
    cells = {name: suite.cell("tiny", 16, name) for name in names}
    assert [[*part] for part in latency.parts(cells)] == [[*names]]
    monkeypatch.setattr(latency, "PART_BYTES", 3 * cells["int8-dynamic"].disk_bytes)
    assert [[*part] for part in latency.parts(cells)] == [[*names[:2]], [names[2]]]
    monkeypatch.setattr(latency, "PART_BYTES", 0)
    assert [[*part] for part in latency.parts(cells)] == [[*names[:2]], [names[2]]]


LOST = """
import os
from qbert.variants import Classifier, eager
calls = 0
def load(folder):
    honest = eager.load(folder)
    def run(encoding):
        global calls
        calls += 1
        if calls > 20:
            os.kill(os.getpid(), 9)
        return honest(encoding)
    return Classifier(run, honest.evidence)
"""


@pytest.mark.slow
def test_a_process_that_is_lost_fails_its_cell_alone_and_the_others_end(
    suite: Suite, processes: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "is_lost.py").write_text(LOST)
    monkeypatch.syspath_prepend(str(tmp_path))
    load = importlib.import_module("is_lost").load
    lost = dataclasses.replace(variants.VARIANTS["fp32"], name="lost", load=load)
    monkeypatch.setitem(variants.VARIANTS, "lost", lost)
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path))
    cells = [suite.cell("tiny", 16, name) for name in ("fp32", "lost", "int8-dynamic-onednn")]
    with contextlib.closing(latency.Timers()) as timers:
        first = timers.time(cells[0], seconds=0.1, group=cells)
        with pytest.raises(InputError, match=r"^tiny-16-lost: a process that times it was killed by signal 9$"):
            timers.time(cells[1], seconds=0.1, group=cells)
        assert timers.time(cells[2], seconds=0.1, group=cells).baseline_s == first.variant_s
    with pytest.raises(InputError, match=r"^tiny-16-lost: a process that times it was killed by signal 9$"):
        timers.time(cells[1], seconds=0.1)
    timers.close()
    assert not processes(f"QBERT_CACHE={tmp_path}")


@pytest.mark.slow
def test_a_package_that_ends_a_process_is_not_imported_before_a_variant_needs_it(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ends_it.py").write_text("import os\nos._exit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with contextlib.closing(latency.Timers()) as timers:
        timers.start(["ends_it"])
        first, second = (suite.cell("tiny", 16, name) for name in ("fp32", "int8-dynamic-onednn"))
        assert timers.time(first, seconds=0.1).rounds
        timers.start(["ends_it"])
        assert timers.time(second, seconds=0.1).rounds


def test_a_lost_or_broken_baseline_leaves_no_variant_out(
    suite: Suite, timers: latency.Timers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "is_broken.py").write_text("def load(folder): raise ValueError('no such operator')")
    monkeypatch.syspath_prepend(str(tmp_path))
    broken = dataclasses.replace(variants.VARIANTS["fp32"], load=importlib.import_module("is_broken").load)
    monkeypatch.setitem(variants.VARIANTS, "fp32", broken)
    with pytest.raises(InputError, match=r"^tiny-16-fp32: it cannot be loaded .*no such operator") as raised:
        timers.time(suite.cell("tiny", 16, "int8-dynamic-onednn"), seconds=0.1)
    assert raised.type is InputError


def test_timing_leaves_collector_and_cores_as_they_were() -> None:
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    start = time.perf_counter()
    with machine.one_core():
        if cores is not None:
            assert len(os.sched_getaffinity(0)) == 1
        seconds = latency.time_call(Classifier(lambda _: np.zeros((1, 1), np.float32), {}), {})
        assert 0 < seconds < time.perf_counter() - start
    assert gc.isenabled()
    if cores is not None:
        assert os.sched_getaffinity(0) == cores


busy = False  # the processor, with something else


def slowed(encoding: Any) -> Any:
    """Answer in 20 ms while `busy`, else in 1 ms."""
    time.sleep(0.02 if busy else 0.001)
    return np.array([encoding["input_ids"].sum(), 0], np.float32).reshape(1, 2)


def test_a_neighbour_that_ends_before_the_audit_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.busy", True)
    timer = timing.Timer()
    timer._loaded["variant"] = Classifier(slowed, {})  # noqa: SLF001  as load does
    timer.begin([{"input_ids": np.arange(8).reshape(1, 8).tolist()}], special=[0], seed=0)
    assert min(timer.block("variant", settling=1, timed=4)) >= 0.02
    monkeypatch.setattr(f"{__name__}.busy", False)
    found = timer.repeat("variant", 4)
    assert (found["finite"], found["differs"]) == (True, [])
    assert found["faster"] < audit.REMEMBERED
