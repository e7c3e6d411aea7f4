"""Workers that are busy at the same time: what they tell, and what happens where one is lost."""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trial_capacity

from qbert import variants
from qbert.inputs import dataset
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.measure import capacity, capacity_worker, queueing, stats
from qbert.measure.capacity_crew import FORKS, Crew, _artefact
from qbert.measure.capacity_worker import FINISHED, RUNNING, Board
from qbert.measure.cells import Cell, Suite
from qbert.system import cores
from qbert.system.cores import Cores
from qbert.system.errors import CannotRunError, InputError
from qbert.variants import Variant, native
from qbert.variants.artefact import Artefact

INT8 = "int8-dynamic-onednn"
HERE = cores.here()
ONE_CORE = Cores((HERE.order[0],), 1)


@pytest.fixture
def suite(trained: Checkpoint, news: Dataset) -> Suite:
    return Suite(news, [str(trained.folder)], max_lengths=[16])


SUMS = """
import os, time
import numpy as np
from qbert.variants import Classifier
calls, seen = 0, set()
def load({arguments}):
    def run(encoding):
        global calls
        calls += 1
        for _ in range(30):
            np.sort(np.arange(5000) % 97)
        size = encoding["input_ids"].size
        {line}
        seen.add(size)
        return np.sin(encoding["input_ids"].sum() * np.arange(1, 6, dtype=np.float32))[None]
    return Classifier.counted(run, {{"threads": 1}})
"""
"""A variant that loads in no time: its logits are of the sum of a text's tokens."""
LENGTHS = [("球 " * words,) for words in range(1, 11)]
"""Texts of ten lengths in tokens."""


@pytest.fixture
def own(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cell]:
    """Make a cell of the variant `own`, each of whose calls does `line`."""

    def make(line: str = "pass", arguments: str = "folder", **options: int) -> Cell:
        module = f"own_{hashlib.sha256(line.encode()).hexdigest()}_{len(options)}"
        (tmp_path / f"{module}.py").write_text(SUMS.format(line=line, arguments=arguments))
        monkeypatch.syspath_prepend(str(tmp_path))
        load = importlib.import_module(module).load
        row = Variant("own", "none", "fp32", load, options=options)  # so that its processes import no runtime
        monkeypatch.setitem(variants.VARIANTS, "own", row)
        return suite.cell("tiny", 16, "own")

    return make


@pytest.fixture
def cell(own: Callable[..., Cell]) -> Cell:
    return own()


@pytest.fixture
def load(news: Dataset) -> capacity.Load:
    return capacity.Load(dataset.text_rows(news.test), "texts of news", workers=(2,), seconds=0.2)


def test_what_two_workers_serve(cell: Cell, load: capacity.Load) -> None:
    load = dataclasses.replace(load, price_per_hour=0.36)
    rounds, found = capacity.measure(cell, load)
    assert found["workers"] == len(found["worker_shares"]) == 2
    assert found["half_load_slowdown"] > 0
    assert sum(found["worker_shares"]) == pytest.approx(1)
    assert len(rounds) == 2 * stats.min_sample_size(stats.CONFIDENCE)
    assert found["loaded_p50_s"] == pytest.approx(np.median(rounds))
    assert found["loaded_worst_s"] == max(rounds)
    assert 0.3 < found["texts_per_s"] / (2 / np.mean(rounds)) < 1.5
    assert found["loaded_over_alone_low"] <= found["loaded_over_alone"] <= found["loaded_over_alone_high"]
    assert 0.2 < found["loaded_over_alone"] < 10
    assert found["answers_compared"] >= len(rounds) * 3 / 2, "those alone too"
    assert found["cost_per_million"] == pytest.approx(0.36 / 3600 * 1e6 / found["rate_within_limit"])
    assert found["evidence"]["threads"] == 1
    assert 0 < found["traffic_tokens"]["p5"] <= found["traffic_tokens"]["p95"] == 16
    if Path("/proc/self/smaps_rollup").exists():
        assert 20e6 < found["pss_bytes"] < 4e9


def test_one_worker_has_none_beside_it_but_rests_and_no_price_no_cost(cell: Cell, load: capacity.Load) -> None:
    found = capacity.measure(cell, dataclasses.replace(load, workers=()), cores=ONE_CORE)[1]
    assert found["workers"] == 1
    assert {"half_load_slowdown", "rates_p99_s"} <= found.keys()
    assert not {"loaded_over_alone", "cost_per_million", "price_per_hour", "scaling"} & set(found)


def test_a_scaling_curve_has_a_point_for_each_number_of_workers(cell: Cell, load: capacity.Load) -> None:
    found = capacity.measure(cell, dataclasses.replace(load, workers=(3, 1)), cores=ONE_CORE)[1]
    assert [point["workers"] for point in found["scaling"]] == [1, 3]
    assert found["capacity_notes"] == ["3 workers on 1 processor: they share them."]
    assert found["scaling"][1]["texts_per_s"] == pytest.approx(found["texts_per_s"])


def test_as_many_rounds_are_made_as_are_asked_for(cell: Cell, load: capacity.Load) -> None:
    rounds, found = capacity.measure(cell, dataclasses.replace(load, seconds=0, min_rounds=capacity.MIN_ROUNDS))
    assert len(rounds) >= capacity.MIN_ROUNDS
    assert "loaded_p99_s" in found


def forks(process: int) -> list[int]:
    """Return the processes that the main thread of `process` has started, and that have not ended."""
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def started(crew: Crew) -> set[int]:
    return {child.process.pid for child in crew.children}


@pytest.mark.skipif(not FORKS, reason="a cell starts its own processes there")
def test_a_cell_leaves_its_processes_without_its_model_to_the_next_of_its_runtime(
    suite: Suite, load: capacity.Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = suite.cell("tiny", 16, INT8)  # which imports what it says that it needs
    with Crew(cell, load.rows, 2, HERE) as crew:
        first, loaded = started(crew), crew.pss_bytes()
        assert [len(forks(process)) for process in first] == [1, 1]
    assert [forks(process) for process in first] == [[], []]
    with Crew(cell, load.rows, 2, HERE) as crew:
        assert started(crew) == first
        again = crew.pss_bytes()
    monkeypatch.setenv("QBERT_TRIED", "1")  # which a library may read when it is imported
    with Crew(cell, load.rows, 1, HERE) as crew:
        idle = started(crew)
    assert not idle & first
    for process in idle:
        os.kill(process, signal.SIGKILL)
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    with contextlib.suppress(KeyboardInterrupt), Crew(cell, load.rows, 1, HERE) as crew:
        last = started(crew)
        raise KeyboardInterrupt
    assert not last & idle, "what has ended meanwhile is replaced"
    assert not any(Path(f"/proc/{process}").exists() for process in first | idle | last)
    monkeypatch.setattr("qbert.measure.capacity_crew.FORKS", False)
    with Crew(cell, load.rows, 2, HERE) as crew:
        alone = crew.pss_bytes()
    assert (loaded, again) == (pytest.approx(alone, rel=0.1),) * 2, "as if each process had imported the libraries"


@pytest.mark.skipif(not HERE.pinnable, reason="needs an affinity")
def test_each_worker_stays_on_its_own_core(cell: Cell, load: capacity.Load) -> None:
    order = (*HERE.order, *HERE.order)[:2]
    with Crew(cell, load.rows, 2, Cores(order, 2)) as crew:
        for number, child in enumerate(crew.children):
            (fork,) = forks(child.process.pid)
            tasks = Path(f"/proc/{fork}/task").iterdir()
            assert {frozenset(os.sched_getaffinity(int(task.name))) for task in tasks} == {frozenset({order[number]})}


def test_all_start_when_all_are_busy_and_rest_when_all_have_finished(cell: Cell, load: capacity.Load) -> None:
    with Crew(cell, load.rows, 2, HERE) as crew:
        begin = time.perf_counter()
        blocks = [crew.block({0: [0], 1: list(range(40)) * 5}) for _ in range(5)]
        whole = time.perf_counter() - begin
    assert any(found[0]["elapsed_s"] < found[1]["elapsed_s"] for found in blocks)  # a neighbour may stop a worker
    assert sum(found[1]["elapsed_s"] for found in blocks) < whole
    assert [len(answer["seconds"]) for answer in blocks[0].values()] == [1, 200]


def test_requests_are_answered_once_and_count_from_when_they_were_due(cell: Cell, load: capacity.Load) -> None:
    with Crew(cell, load.rows, 2, HERE) as crew:
        rested = crew.serve(20.0, [0, 1, 2] * 10)
        flooded = crew.serve(1e6, [0, 1, 2] * 100)
    assert (len(rested), len(flooded)) == (30, 300)
    assert (rested[:, 0] == rested[:, 1]).sum() > 20, "found their worker free"
    assert (flooded[:, 0] == flooded[:, 1]).sum() <= 2
    assert (flooded[:, 0] >= flooded[:, 1]).all()
    assert flooded[:, 0].max() > 20 * np.median(flooded[:, 1]), "the last has waited for all before it"


def test_the_board_gives_each_number_once(tmp_path: Path) -> None:
    with (
        contextlib.closing(Board(tmp_path / "board", 3)) as one,
        contextlib.closing(Board(tmp_path / "board")) as other,
    ):
        assert [one.take(), other.take(), one.take()] == [0, 1, 2]
        one.set(2, RUNNING)
        assert other.have(RUNNING, [2])
        assert not other.have(FINISHED, [2])
        assert not other.have(RUNNING, [0, 2])
        other.clear()
        assert one.take() == 0


def test_what_a_runtime_does_at_the_first_text_of_a_length_is_over_before_the_clock_starts(
    own: Callable[..., Cell], load: capacity.Load
) -> None:
    cell = own("time.sleep(0.2 if size not in seen else 0)")
    load = dataclasses.replace(load, rows=LENGTHS)
    assert len({cell.encoder(*row, max_length=16)["input_ids"].size for row in load.rows}) == 10
    # A neighbour may take the core for as long, but not in each of three.
    assert min(max(capacity.measure(cell, load)[0]) for _ in range(3)) < 0.2


def test_of_a_runtime_that_compiles_nothing_not_every_length_is_seen(own: Callable[..., Cell], tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    cell = own(f"time.sleep(0.1); open({str(calls)!r}, 'a').write('.')")
    with Crew(cell, LENGTHS, 1, HERE) as crew:
        before = calls.stat().st_size
        crew.see_lengths({0: range(10)})
        assert calls.stat().st_size - before < 9, "of ten lengths, each twice, most are left out"


def test_a_stall_of_the_machine_is_not_a_rests_cost() -> None:
    busy_s = [0.01, 0.012] * 20
    assert capacity.slowdown([*busy_s[1:], 0.5], busy_s) == pytest.approx(1.0, abs=0.02)
    assert capacity.slowdown([2 * seconds for seconds in busy_s], busy_s) == pytest.approx(2.0)


def test_a_few_texts_are_as_long_as_all() -> None:
    rows = [("x" * (1 + number),) for number in np.random.default_rng(3).permutation(1000)]
    chosen = capacity.representative(rows, 20)
    assert len(set(chosen)) == 20
    assert np.mean([len(rows[row][0]) for row in chosen]) == pytest.approx(500, rel=0.01)
    every = capacity.representative(rows[:7], 21)
    assert sorted(every) == sorted([*range(7)] * 3)


def test_the_texts_of_a_block_are_as_long_for_each_worker() -> None:
    rows = [("x" * (1 + number),) for number in np.random.default_rng(3).permutation(1000)]
    texts = capacity.block_texts(rows, (8, 2, 3))
    assert texts.shape == (8, 2, 3)
    assert sorted(texts.flat) == sorted(capacity.representative(rows, 48))
    in_order = np.vectorize(lambda row: len(rows[row][0]))(texts)
    assert (in_order[:, 0].argsort(axis=1) != in_order[:, 1].argsort(axis=1)).any(), "each in its own order"
    lengths = np.sort(in_order, axis=2)
    assert np.abs(np.diff(lengths, axis=1)).max() < 30, "as for neighbours, of which 48 share 1,000"
    assert 0.2 < (lengths[:, 0] > lengths[:, 1]).mean() < 0.8, "each has the longer one as often"


def test_an_answer_that_is_not_the_accuracy_pass_s_fails(own: Callable[..., Cell], load: capacity.Load) -> None:
    cell = own(f"if os.getpid() != {os.getpid()}: return np.ones((1, 5), np.float32)")
    told = r"^tiny-16-own: worker \d answers text \d+ with .*, and the accuracy pass with .*: what was served is not"
    with pytest.raises(InputError, match=told):
        capacity.measure(cell, load)


@pytest.mark.skipif(not HERE.pinnable or len(HERE.order) < 2, reason="needs two cores to tell the workers apart")
@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("os.kill(os.getpid(), 9)", "^tiny-16-own: worker 2 of 2 was killed by signal 9$"),
        ("time.sleep(600)", r"^tiny-16-own: worker 2 of 2 has said nothing for \d+ s$"),
        ("raise RuntimeError('no such operator')", r"^tiny-16-own: worker 2 of 2: .*no such operator"),
        ("return np.full((1, 5), np.nan, np.float32)", "^tiny-16-own answers with nan or infinity"),
    ],
)
def test_a_worker_that_is_lost_fails_the_cell_and_the_others_end(
    own: Callable[..., Cell],
    load: capacity.Load,
    processes: Callable[[str], list[str]],
    wait_until: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    does: str,
    told: str,
) -> None:
    cell = own(f"if calls > 130 and os.sched_getaffinity(0) == {set(HERE.of_worker(1))}: {does}")
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=told):
        capacity.measure(cell, dataclasses.replace(load, seconds=5), patience_s=5 if "sleep" in does else 60)
    wait_until(lambda: not processes(f"QBERT_CACHE={tmp_path}"))


@pytest.mark.skipif(not HERE.pinnable, reason="needs an affinity")
def test_a_worker_that_cannot_be_pinned_fails_the_cell(cell: Cell, load: capacity.Load) -> None:
    with pytest.raises(InputError, match=r"worker 2 of 2: it cannot be pinned to processor 1023 \(Invalid argument\)"):
        capacity.measure(cell, load, cores=Cores((HERE.order[0], 1023), 2))


def test_what_cannot_be_loaded_cannot_run(own: Callable[..., Cell], load: capacity.Load) -> None:
    with pytest.raises(CannotRunError, match=r"it cannot be loaded and called .*no such operator"):
        capacity.measure(own("raise RuntimeError('no such operator')"), load)


def test_a_system_without_affinity_is_served_and_said(cell: Cell, load: capacity.Load) -> None:
    found = capacity.measure(cell, load, cores=dataclasses.replace(HERE, pinnable=False))[1]
    assert any("pins no process" in note for note in found["capacity_notes"])


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_ends_everything_at_once(
    trained: Checkpoint,
    news: Dataset,
    processes: Callable[[str], list[str]],
    wait_until: Callable[..., None],
    tmp_path: Path,
    how: signal.Signals,
) -> None:
    script = f"""
        from qbert.system import cores
        from qbert.inputs import dataset
        from qbert.measure.capacity_crew import Crew
        from qbert.measure.cells import Suite
        data = dataset.load({str(news.folder)!r})
        cell = Suite(data, [{str(trained.folder)!r}], max_lengths=[16]).cell("tiny", 16, {INT8!r})
        rows = dataset.text_rows(data.test)
        with Crew(cell, rows, 2, cores.here()) as crew:
            open({str(tmp_path / "begun")!r}, "w")
            crew.block({{0: [0] * 10**7, 1: [1] * 10**7}})
    """
    environment = os.environ | {"QBERT_CACHE": str(tmp_path / "cache")}
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=environment, stderr=subprocess.PIPE)
    try:
        wait_until((tmp_path / "begun").exists, 120)
        assert len(processes(f"QBERT_CACHE={tmp_path / 'cache'}")) == (5 if FORKS else 3)
        parent.send_signal(how)
        parent.communicate(timeout=60)
    finally:
        parent.kill()
    wait_until(lambda: not processes(f"QBERT_CACHE={tmp_path / 'cache'}"))


TWO_THREADS = [
    row for row in variants.select("default") if row.name in {"fp32", INT8, "fp32-onnxruntime", "fp32-openvino"}
]


@pytest.mark.slow
@pytest.mark.skipif(len(HERE.order) < 2, reason="needs two cores")
@pytest.mark.parametrize("variant", TWO_THREADS, ids=lambda row: row.name)
def test_one_process_runs_on_exactly_so_many_threads(
    variant: Variant, suite: Suite, load: capacity.Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "VARIANTS", dict(variants.VARIANTS))
    row = variants.with_threads(variant, 2)
    assert (row.name, row.definition["options"]["threads"]) == (f"{variant.name}-2-threads", 2)
    found = capacity.measure(suite.cell("tiny", 16, row.name), load)[1]
    assert (found["workers"], found["worker_threads"], found["evidence"]["threads"]) == (1, 2, 2)


@pytest.mark.skipif(bool(native.unsupported()), reason=native.unsupported() or "it runs here")
def test_a_call_of_several_texts_counts_them_all(
    suite: Suite, load: capacity.Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "VARIANTS", dict(variants.VARIANTS))
    row = variants.with_batch(variants.VARIANTS["int8-native"], 3)
    assert (row.name, row.definition["options"]["batch"]) == ("int8-native-batch-3", 3)
    assert row not in variants.select("all")
    rounds, found = capacity.measure(suite.cell("tiny", 16, row.name), dataclasses.replace(load, workers=(1,)))
    assert found["batch"] == 3
    assert found["answers_compared"] == 3 * len(rounds)
    assert found["texts_per_s"] == pytest.approx(3 * len(rounds) / sum(rounds), rel=0.1)
    assert found["rates"][-1] == pytest.approx(3 * queueing.LOADS[-1] * queueing.capacity([rounds]))


def test_the_texts_of_a_call_are_of_nearly_one_length() -> None:
    texts = [("x" * length,) for length in (5, 1, 9, 2, 8)]
    assert capacity_worker.batches(texts, 2) == [[0, 4], [1, 3], [2, 1], [3, 0], [4, 2]]
    assert capacity_worker.batches(texts, 1) == [[0], [1], [2], [3], [4]]
    assert capacity_worker.batches(texts[:2], 5) == [[0, 1, 0, 1, 0], [1, 0, 1, 0, 1]]


def test_an_answer_that_is_not_the_one_judged_is_named_with_its_text(
    suite: Suite, load: capacity.Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [(0, 0, False, [1.0, 0.0]), (1, 0, False, [0.0, 1.0])]
    cell = suite.cell("tiny", 16, "fp32")
    monkeypatch.setattr(type(cell), "reference", lambda _, rows: {row: np.array([1.0, 0.0]) for row in rows})
    with pytest.raises(InputError, match="worker 1 answers text 1 with 0 1 while all are busy"):
        capacity.check_answers(cell, load.rows, given)


def test_one_text_at_a_time_is_no_batch() -> None:
    with pytest.raises(CannotRunError, match="one text at a time"):
        variants.with_batch(variants.VARIANTS["fp32"], 2)


def test_a_runtime_of_one_thread_takes_no_more() -> None:
    with pytest.raises(CannotRunError, match="one thread alone"):
        variants.with_threads(variants.VARIANTS["int8-native"], 2)


def test_a_runtime_that_says_another_number_of_threads_is_refused(
    own: Callable[..., Cell], load: capacity.Load
) -> None:
    with pytest.raises(CannotRunError, match="says that it runs on 1 threads, and 2 were asked for"):
        capacity.measure(own(arguments="folder, threads", threads=2), load)


@pytest.mark.exhaustive
def test_the_simulated_p99_is_found_by_driving_real_workers(cell: Cell, load: capacity.Load) -> None:
    for found in trial_capacity.drive(cell, load.rows, HERE.workers, seconds=45):
        assert found.off_low < 0.15, found
        assert found.off_high > -0.15, found
        assert found.off_high - found.off_low < 0.6, "this machine is too noisy to tell"


def test_what_an_untrained_model_answers_under_load_is_compared_and_counted(cell: Cell) -> None:
    untrained = dataclasses.replace(cell, model=dataclasses.replace(cell.model, trained=False))
    rows = [(f"text {number}",) for number in range(8)]
    right = [untrained.text_classifier()(*row)[0].tolist() for row in rows]
    other = [-logit for logit in right[0]]
    two = [(0, 0, True, right[0]), (0, 0, False, right[0]), (1, 1, False, right[1])]
    assert capacity.check_answers(untrained, rows, two) == 1, "text 1 was not asked of one alone"
    with pytest.raises(InputError, match=r"worker 1 answers text 0 with .* while all are busy, alone with"):
        capacity.check_answers(untrained, rows, [two[0], (0, 0, False, other)])
    one = [(number, 0, False, right[number]) for number in range(8)]
    assert capacity.check_answers(untrained, rows, one) == capacity.CHECKED
    with pytest.raises(InputError, match=r"worker 1 answers text 0 with .*, and this process with"):
        capacity.check_answers(untrained, rows, [(0, 0, False, other), *one[1:]])


def test_workers_encode_as_the_checkpoint_does(trained: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained.folder, tmp_path / "splitting"))
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"split_special_tokens": True, "truncation_side": "left"})
    )
    cell = Suite(news, [str(folder)], max_lengths=[16]).cell("splitting", 16, "fp32")
    given = _artefact(cell, tmp_path / "served")
    served = Artefact(**given | {"folder": Path(given["folder"])})
    for text in ("体育[SEP]新闻[MASK]", "体育" * 30):
        expected = cell.encoder(text, max_length=16)["input_ids"]
        assert np.array_equal(served.encoder(text, max_length=16)["input_ids"], expected)
