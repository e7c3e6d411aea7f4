"""The benchmarks themselves, run as a user runs them."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest

from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.measure import roofline
from qbert.results import history

ROOT = Path(__file__).parents[1]
INT8 = "int8-dynamic-onednn"
STOPWATCH = """
from qbert.measure import latency
from qbert.measure import roofline

def blocks(cell, encoding):
    block = lambda: [latency.time_call(cell.classifier, encoding) for _ in range(9)]
    return [[block() for _ in range(latency.MIN_PAIRS)] for _ in range(latency.PROCESSES)]

class Timers:
    def start(self, modules):
        pass

    def time(self, cell, **how):
        encoding = cell.encoder.fill(cell.suite.dataset, cell.max_length)
        baseline_s = [] if cell.is_baseline else blocks(cell.baseline_cell, encoding)
        return latency.Timed(blocks(cell, encoding), baseline_s, cell.classifier.evidence)

    def close(self):
        pass

latency.Timers = Timers
roofline.core = lambda *_: roofline.Core({"fp32": {"none": 1e12}, "int8": {"none": 1e12}}, {"fp32": 1e12, "int8": 1e12})
"""
"""A plugin for runs whose cells are compared, saved or refused: it times latency, but not in processes of its own."""


BOTH = ("-k", "(latency or accuracy) and 16")
COMPARE = ("--benchmark-compare", "--benchmark-compare-fail=median:900%")
Made = Callable[[str, Callable[[Path], object]], Path]
Run = Callable[..., subprocess.CompletedProcess[str]]


def slowly(*values: object) -> list[Any]:
    """More cases of what one has shown, each a run of pytest."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def bench(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    others = ["-p", "no:cacheprovider", "-p", "no:anyio", "-p", "no:hypothesispytest"]  # they take time to be imported
    command = ["pytest", ROOT / "bench", *others, *arguments]
    return forked.run(*command, cwd=cwd, environment={"COLUMNS": "80"} | environment)


@pytest.fixture(scope="session")
def quick(trained: Checkpoint, news: Dataset) -> list[object]:
    options: list[object] = [
        "--model",
        trained.folder,
        "--dataset",
        news.folder,
        "--variants",
        f"fp32,{INT8}",
    ]
    return [*options, "--max-lengths", "16,32", "--seconds-per-cell", "0.1", "--max-f1-drop", "1"]


@pytest.fixture(scope="session")
def timed_here(quick: list[object], made: Made) -> Run:
    """Run the benchmarks with the stopwatch."""
    place = made("stopwatch", lambda folder: (folder / "stopwatch.py").write_text(STOPWATCH))

    def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        return bench(*quick, "-p", "stopwatch", *arguments, cwd=cwd, PYTHONPATH=f"{place}{os.pathsep}{cwd}")

    return run


@pytest.fixture(scope="session")
def saved(quick: list[object], made: Made) -> tuple[str, dict[str, Any]]:
    """What one run printed, and what it saved."""

    def make(folder: Path) -> None:
        done = bench(*quick, "--benchmark-json", folder / "run.json", cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / "stdout.txt").write_text(done.stdout)

    folder = made("run", make)
    return (folder / "stdout.txt").read_text(), json.loads((folder / "run.json").read_text())


@pytest.mark.slow
def test_the_variant_varies_fastest(saved: tuple[str, dict[str, Any]]) -> None:
    names = [benchmark["name"] for benchmark in saved[1]["benchmarks"]]
    assert names == [
        f"test_{kind}[tiny-{length}-{variant}]"
        for kinds, lengths in ((("latency", "accuracy"), (16, 32)), (("footprint",), (32,)), (("capacity",), (32,)))
        for length in lengths
        for kind in kinds
        for variant in ("fp32", INT8)
    ]


@pytest.mark.slow
def test_each_cell_says_what_was_measured_on_what(
    saved: tuple[str, dict[str, Any]], trained: Checkpoint, news: Dataset
) -> None:
    for benchmark in saved[1]["benchmarks"]:
        info, params = benchmark["extra_info"], benchmark["params"]
        assert {name: info[name] for name in params} == params
        assert info["identity"]["checkpoint_sha256"] == trained.sha256
        assert info["identity"]["dataset_sha256"] == news.sha256
        assert info["identity"]["threads"] == info["threads"] == 1
        assert {"definition", "instruction_sets", "processor", "versions"} <= set(info["identity"])
        assert (info["quantized_ops"] > 0) == (info["variant"] == INT8)
        if info["measured"] in {"accuracy", "latency"}:
            assert info["p50_s"] == pytest.approx(benchmark["stats"]["median"])
        assert len(benchmark["stats"]["data"]) == benchmark["stats"]["rounds"]


@pytest.mark.slow
def test_latency_cells_have_a_speedup_of_each_process(saved: tuple[str, dict[str, Any]]) -> None:
    for benchmark in (one for one in saved[1]["benchmarks"] if one["group"].startswith("latency")):
        info = benchmark["extra_info"]
        if info["variant"] == "fp32":
            assert info["speedup"] == 1
        else:
            assert len(info["process_speedups"]) == len(info["process_p50_s"]) == 3
            assert min(info["process_speedups"]) <= info["speedup"] <= max(info["process_speedups"])
            assert info["pairs"] >= 12
            assert 1 / 4 < info["speedup"] / (info["baseline_p50_s"] / info["p50_s"]) < 4, (
                "of one pair and of all calls"
            )


@pytest.mark.slow
def test_latency_cells_have_a_share_of_the_limit(saved: tuple[str, dict[str, Any]]) -> None:
    for benchmark in (one for one in saved[1]["benchmarks"] if one["group"].startswith("latency")):
        info = benchmark["extra_info"]
        assert 0 < info["share_of_best_limit"] <= info["share_of_limit"] < 1
        assert info["share_of_limit"] == pytest.approx(info["floor_s"] / info["p50_s"])
        assert info["limit_definition"] == roofline.DEFINITION
        assert info["core"]["rates"].keys() <= info["core"]["bandwidths"].keys()


@pytest.mark.slow
def test_footprint_cells_are_of_a_process_of_their_own(saved: tuple[str, dict[str, Any]], trained: Checkpoint) -> None:
    weights = (trained.folder / "model.safetensors").stat().st_size
    for benchmark in (one for one in saved[1]["benchmarks"] if one["group"].startswith("footprint")):
        info = benchmark["extra_info"]
        assert (info["disk_bytes"] > weights) == (info["variant"] == "fp32")
        assert info["load_s"] + info["first_call_s"] < benchmark["stats"]["median"]
        assert info["peak_rss_bytes"] > 20e6
        assert 0 < info["after_pause_s"] < 10


@pytest.mark.slow
def test_capacity_cells_are_of_workers_that_answer_as_the_accuracy_pass(saved: tuple[str, dict[str, Any]]) -> None:
    for benchmark in (one for one in saved[1]["benchmarks"] if one["group"].startswith("capacity")):
        info = benchmark["extra_info"]
        assert info["loaded_p50_s"] == pytest.approx(benchmark["stats"]["median"])
        assert info["answers_compared"] >= benchmark["stats"]["rounds"]
        assert info["traffic"] == "texts of news"
        assert len(info["rates"]) == len(info["rates_p99_s"]) > 5
    assert "tiny, every core busy: texts of news, median 32 tokens" in saved[0]


@pytest.mark.slow
def test_traffic_threads_and_a_price_are_served(quick: list[object], tmp_path: Path) -> None:
    (tmp_path / "requests.csv").write_text("when,text\n1,A first request\n2,\n3,Another one\n")
    options = ["--traffic", tmp_path / "requests.csv", "--threads", "1", "--workers", "1", "--price-per-hour", "1"]
    done = bench(*quick, *options, "--benchmark-json", "run.json", "-k", "capacity and fp32", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    infos = [one["extra_info"] for one in json.loads((tmp_path / "run.json").read_text())["benchmarks"]]
    assert [info["variant"] for info in infos] == ["fp32", "fp32-1-thread"]
    assert {info["traffic"] for info in infos} == {"texts of requests.csv"}
    assert all(info["cost_per_million"] > 0 for info in infos)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--workers", "0"], "invalid counts value: '0'"),
        (["--price-per-hour", "nan"], "invalid positive float value: 'nan'"),
        pytest.param(["--latency-limit", "0"], "invalid positive float value: '0'", marks=pytest.mark.slow),
        pytest.param(["--threads", "x"], "invalid counts", marks=pytest.mark.slow),
    ],
)
def test_a_number_that_is_none_is_a_usage_error(tmp_path: Path, options: list[str], told: str) -> None:
    done = bench(*options, "--collect-only", cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert told in done.stderr


@pytest.mark.slow
def test_traffic_that_cannot_be_served_fails_with_a_sentence(quick: list[object], tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("\n\n")
    done = bench(*quick, "--traffic", "none.txt", "-k", "capacity and fp32", cwd=tmp_path)
    assert done.returncode == 1
    assert "none.txt holds no text" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_accuracy_cells_judge_every_document(saved: tuple[str, dict[str, Any]], news: Dataset) -> None:
    for benchmark in (one for one in saved[1]["benchmarks"] if one["group"].startswith("accuracy")):
        info = benchmark["extra_info"]
        assert info["documents"] == benchmark["stats"]["rounds"] == len(news.test)
        assert info["f1_drop"] == pytest.approx(info["f1_baseline"] - info["f1"])
        assert info["f1_drop_low"] <= info["f1_drop"] <= info["f1_drop_high"]
        assert info["flips"] == len(info["flipped"])
        assert 0 <= info["mcnemar_p"] <= 1
        assert (info["logit_error"] == 0) == (info["variant"] == "fp32")


@pytest.mark.slow
def test_the_run_ends_with_one_table_that_fits_80_columns(saved: tuple[str, dict[str, Any]]) -> None:
    table = saved[0][saved[0].index("qbert: ") :]
    assert "tiny, 16 tokens" in table
    assert "tiny, 32 tokens" in table
    assert max(map(len, table.splitlines())) <= 80


def test_an_f1_drop_over_the_limit_fails_and_shows_the_figures(quick: list[object], tmp_path: Path) -> None:
    done = bench(*quick, "--max-f1-drop", "-0.5", "-k", f"accuracy and 16 and {INT8}", cwd=tmp_path)
    assert done.returncode == 1
    assert f"tiny-16-{INT8}: F1 drop" in done.stdout
    assert "is over the limit -0.5000" in done.stdout
    assert "McNemar" in done.stdout
    strict = [*quick, "--max-f1-drop", "0", "--f1-guard", "interval"]
    by_interval = bench(*strict, "-k", f"accuracy and 16 and {INT8}", cwd=tmp_path)
    assert by_interval.returncode == 1
    assert "the F1 drop is surely no more than" in by_interval.stdout
    baseline = bench(*strict, "-k", "accuracy and 16 and fp32", cwd=tmp_path)
    assert baseline.returncode == 0  # nothing to hold it against


@pytest.mark.slow
def test_a_cell_that_was_within_its_limit_and_is_over_it_now_is_told(quick: list[object], tmp_path: Path) -> None:
    few = [*quick, "--variants", "default", "-k", "accuracy and 16 and int8-dynamic"]
    assert bench(*few, "--benchmark-autosave", cwd=tmp_path).returncode == 0
    compared = [*few, "--max-f1-drop", "-0.5", "--benchmark-compare"]
    told = bench(*compared, cwd=tmp_path)
    assert told.returncode == 0
    assert ", and was not in the previous run" in told.stdout
    assert bench(*compared, "--benchmark-compare-fail=median:900%", cwd=tmp_path).returncode == 1


@pytest.mark.slow
def test_a_variant_brought_along_is_marked_where_it_is_over_the_limit_or_cannot_run(
    quick: list[object], few: Path
) -> None:
    over = [*quick, "-p", "few", "--variants", "default", "-k", "accuracy and 16"]
    over += ["--max-f1-drop", "0", "--f1-guard", "interval"]
    done = bench(*over, "--benchmark-autosave", cwd=few, PYTHONPATH=str(few))
    assert done.returncode == 0, done.stdout
    said = " ".join(done.stdout.split())
    assert f"tiny-16-{INT8}: the interval of its F1 drop, " in said
    assert "is over the limit 0.0000 --variants names none of these, so the run passes" in said
    assert said.count("no such operator") == 1
    (path,) = saved_runs(few)
    marks = {one["extra_info"]["variant"]: one["extra_info"] for one in json.loads(path.read_text())["benchmarks"]}
    assert {name: info["over_limit"] for name, info in marks.items()} == {"fp32": False, INT8: True}
    assert not marks[INT8]["named"]
    again = bench(*over, "--benchmark-compare", cwd=few, PYTHONPATH=str(few))
    assert again.returncode == 0, again.stdout
    assert "previous one" not in again.stdout, "it was over the limit before"
    assert bench(*over, "--strict-guard", cwd=few, PYTHONPATH=str(few)).returncode == 1


ODD = """
import numpy as np
from qbert.variants import VARIANTS, Classifier, Variant, eager, register

def load(folder):
    right, calls = eager.load(folder), []
    def run(encoding):
        calls.append(encoding)
        return right(encoding) * (np.nan if len(calls) > 30 else 1)
    return Classifier(run, right.evidence)

for name in set(VARIANTS) - {"fp32"}:
    del VARIANTS[name]
register(Variant("odd", "none", "fp32", load, default=True))
"""


def test_a_variant_that_is_left_out_in_the_middle_leaves_the_run_whole(quick: list[object], tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    arguments = [*quick, "-p", "odd", "--variants", "default", "-k", "accuracy and 16", "--benchmark-autosave"]
    done = bench(*arguments, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 skipped" in done.stdout
    assert list(history.load(saved_runs(tmp_path))["variant"]) == ["fp32"]


def test_a_named_variant_that_cannot_run_fails_with_a_sentence(quick: list[object], few: Path) -> None:
    named = [*quick, "-p", "few", "--variants", "fp32,broken", "-k", "latency and 16 and broken"]
    done = bench(*named, cwd=few, PYTHONPATH=str(few))
    assert done.returncode == 1
    assert "no such operator" in done.stdout
    assert "in load" not in done.stdout
    shown = bench(*named, cwd=few, PYTHONPATH=str(few), QBERT_TRACEBACK="1")
    assert "in load" in shown.stdout + shown.stderr


def test_what_is_raised_in_collecting_is_a_sentence_unless_a_developer_asks(
    quick: list[object], tmp_path: Path
) -> None:
    (tmp_path / "faulty.py").write_text("""
from qbert.variants import Variant, eager, register
register(Variant("faulty", "none", "fp32", eager.load, unsupported=lambda: 1 / 0))
""")
    arguments = ["-p", "faulty", *quick, "--variants", "faulty", "--collect-only"]
    done = bench(*arguments, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ZeroDivisionError: division by zero: qbert did not expect this" in done.stderr
    assert "faulty.py" not in done.stdout + done.stderr
    asked = bench(*arguments, cwd=tmp_path, PYTHONPATH=str(tmp_path), QBERT_TRACEBACK="1")
    assert "faulty.py" in asked.stdout + asked.stderr


@pytest.fixture(scope="session")
def stored(timed_here: Run, made: Made) -> Path:
    """A folder with the storage of one saved run of four cells."""

    def make(folder: Path) -> None:
        done = timed_here(*BOTH, "--benchmark-autosave", cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr

    return made("stored", make)


@pytest.fixture
def again(stored: Path, tmp_path: Path) -> Path:
    """A copy of it, to change and to save to."""
    return Path(shutil.copytree(stored, tmp_path / "again"))


def saved_runs(folder: Path) -> list[Path]:
    return sorted((folder / ".benchmarks").rglob("*.json"))


def change(folder: Path, measured: str, **info: Any) -> None:
    """Give each benchmark of the saved run that is of `measured` other figures; a dictionary is merged."""
    (path,) = saved_runs(folder)
    run = json.loads(path.read_text())
    for benchmark in run["benchmarks"]:
        if benchmark["extra_info"]["measured"] == measured:
            for name, value in info.items():
                old = benchmark["extra_info"].get(name)
                benchmark["extra_info"][name] = old | value if isinstance(value, dict) else value
    path.write_text(json.dumps(run))


def quicken(folder: Path) -> None:
    """Have the saved run be a thousand times as fast as it was."""
    (path,) = saved_runs(folder)
    run = json.loads(path.read_text())
    for benchmark in run["benchmarks"]:
        for figures, names in (("stats", ("q1", "median", "q3")), ("extra_info", ("p50_s", "p95_s", "floor_s"))):
            found = benchmark[figures]
            found |= {name: found[name] / 1000 for name in names if name in found}
    path.write_text(json.dumps(run))


def test_a_run_is_saved_compared_and_grouped_as_pytest_benchmark_does(timed_here: Run, again: Path) -> None:
    done = timed_here(*BOTH, "--benchmark-compare", "--benchmark-group-by", "param:variant", cwd=again)
    assert done.returncode == 0
    assert "Comparing against benchmarks from" in done.stdout + done.stderr
    assert f"benchmark 'variant={INT8}': 4 tests" in done.stdout


def test_a_regression_fails_the_session_and_the_table_still_comes(timed_here: Run, again: Path) -> None:
    quicken(again)
    compare = ("--benchmark-compare", "--benchmark-compare-fail=median:5%")
    done = timed_here(*BOTH, *compare, "--benchmark-autosave", cwd=again)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "test_latency[tiny-16-fp32]: median 0.0" in done.stdout
    assert "tiny, 16 tokens" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "raise PerformanceRegression" not in done.stdout + done.stderr
    assert len(saved_runs(again)) == 1, "it would be what the next run is compared with"


@pytest.mark.slow
def test_what_would_measure_a_cell_twice_is_refused_before_anything_runs(quick: list[object], tmp_path: Path) -> None:
    repeated = [ROOT / "bench", "--keep-duplicates", *quick, "-k", "latency and 16"]
    done = bench(*repeated, cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "would measure one cell twice: leave out what repeats it" in done.stderr
    assert bench(*repeated, "--benchmark-disable", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_a_test_that_is_run_again_counts_as_it_ended(timed_here: Run, tmp_path: Path) -> None:
    (tmp_path / "again.py").write_text("""
from _pytest.runner import runtestprotocol
def pytest_runtest_protocol(item, nextitem):  # as pytest-rerunfailures does
    runtestprotocol(item, nextitem=nextitem, log=False)
    item._initrequest()
""")
    done = timed_here("-k", "latency and 16", "-p", "again", "--benchmark-json", "run.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert len(history.read(tmp_path / "run.json")) == 2


@pytest.mark.slow
def test_the_same_cells_again_pass_and_are_saved(timed_here: Run, again: Path) -> None:
    done = timed_here(*BOTH, *COMPARE, "--benchmark-autosave", cwd=again)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "previous one" not in done.stdout
    assert "machine_info is different" not in done.stdout + done.stderr
    assert len(saved_runs(again)) == 2


def test_a_cell_that_is_missing_fails_the_session_and_is_named(timed_here: Run, again: Path) -> None:
    done = timed_here("-k", f"latency and 16 and {INT8}", "--benchmark-compare", "--benchmark-autosave", cwd=again)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "3 of the previous run's cells were not run" in done.stdout
    assert "test_latency[tiny-16-fp32]" in done.stdout
    assert len(saved_runs(again)) == 1, "it would be what the next run is compared with"


def test_nothing_selected_is_no_pass(timed_here: Run, again: Path) -> None:
    done = timed_here("-k", "nothing_like_it", "--benchmark-compare", cwd=again)
    assert done.returncode != 0
    assert "4 of the previous run's cells were not run" in done.stdout


@pytest.mark.parametrize("off", ["--benchmark-disable", *slowly("--benchmark-skip")])
def test_benchmarks_that_are_off_compare_nothing(timed_here: Run, again: Path, off: str) -> None:
    done = timed_here("--benchmark-compare", off, cwd=again)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "needs benchmarks, and they are off" in done.stdout + done.stderr


@pytest.mark.slow
def test_collecting_compares_nothing(timed_here: Run, again: Path) -> None:
    done = timed_here("--collect-only", "-q", *COMPARE, cwd=again)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was not run" not in done.stdout


def test_no_previous_run_is_no_pass(timed_here: Run, tmp_path: Path) -> None:
    done = timed_here(*COMPARE, cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "finds no previous run" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_previous_run_of_another_subject_is_named_and_not_compared(timed_here: Run, again: Path) -> None:
    change(again, "latency", identity={"processor": "Another"})
    quicken(again)  # would be a regression
    done = timed_here(*BOTH, "--benchmark-compare", cwd=again)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not comparable, processor: Another, " in done.stdout
    table = done.stdout[done.stdout.index("benchmark 'latency tiny-16'") :]
    assert "(NOW)" not in table[: table.index("qbert: ")], "latency was shown beside the other processor's"
    gated = timed_here(*BOTH, *COMPARE, cwd=again)
    assert gated.returncode != 0


@pytest.mark.parametrize(
    "damage", ['{"benchmarks": [{}]}', *slowly("[]", '{"benchmarks": null}', "{", '{"datetime": 3}')]
)
def test_a_previous_run_that_is_damaged_is_a_usage_error(timed_here: Run, again: Path, damage: str) -> None:
    (path,) = saved_runs(again)
    path.write_text(damage)
    done = timed_here("-k", "latency and 16", "--benchmark-compare", cwd=again)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_f1_is_compared_with_the_previous_run(timed_here: Run, again: Path) -> None:
    change(again, "accuracy", f1=1.0, f1_baseline=1.0, f1_drop=0.0)
    few = [*BOTH, "--max-f1-drop", "0.2"]
    told = timed_here(*few, "--benchmark-compare", cwd=again)
    assert told.returncode == 0
    assert "F1 1.0000 -> " in told.stdout
    failed = timed_here(*few, *COMPARE, "--benchmark-autosave", cwd=again)
    assert failed.returncode == 1
    assert "F1 1.0000 -> " in failed.stdout
    assert len(saved_runs(again)) == 1


@pytest.mark.slow
def test_a_run_whose_guards_failed_is_not_saved_and_not_compared_with(timed_here: Run, again: Path) -> None:
    done = timed_here(*BOTH, "--max-f1-drop", "-0.5", "--benchmark-autosave", "--benchmark-json", "run.json", cwd=again)
    assert done.returncode == 1
    assert "this run failed, so it was not saved" in done.stdout
    assert len(saved_runs(again)) == 1
    assert json.loads((again / "run.json").read_text())["qbert"]["failed"]
    compared = timed_here("--benchmark-compare=run.json", cwd=again)
    assert compared.returncode == pytest.ExitCode.USAGE_ERROR
    assert "failed itself" in compared.stdout + compared.stderr


INTERRUPT = """
import pytest

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    yield
    if item.name == "test_accuracy[tiny-16-fp32]":
        raise KeyboardInterrupt
"""


def test_an_interrupted_run_keeps_its_whole_cells_as_a_part(timed_here: Run, tmp_path: Path) -> None:
    (tmp_path / "interrupt.py").write_text(INTERRUPT)
    save = ["--benchmark-json", "part.json", "--benchmark-autosave"]
    arguments = ["-p", "interrupt", *BOTH, *save]
    part = timed_here(*arguments, cwd=tmp_path)
    assert part.returncode == pytest.ExitCode.INTERRUPTED
    assert "this run was interrupted: it has 2 whole cells" in part.stdout
    assert "Traceback" not in part.stdout + part.stderr
    (stored,) = (tmp_path / ".benchmarks").rglob("*.json")
    for path in (tmp_path / "part.json", stored):
        run = json.loads(path.read_text())
        assert run["qbert"]["part"] is True
        assert {one["name"] for one in run["benchmarks"]} == {
            f"test_latency[tiny-16-{variant}]" for variant in ("fp32", INT8)
        }
    assert set(history.load([stored])["variant"]) == {"fp32", INT8}
    (tmp_path / "interrupt.py").write_text("")
    whole = timed_here(*arguments, "--benchmark-compare", cwd=tmp_path)
    assert whole.returncode == 0, whole.stdout
    assert "the previous run was interrupted: only the 2 cells that it has are compared" in whole.stdout
    assert json.loads((tmp_path / "part.json").read_text())["qbert"]["part"] is False


def test_a_group_may_be_followed_by_another_projects_test(timed_here: Run, tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_elsewhere(): pass")
    done = timed_here(tmp_path / "test_own.py", "-k", "(latency and 16) or elsewhere", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert "INTERNALERROR" not in done.stdout


def test_a_table_appears_as_soon_as_its_cells_are_whole(timed_here: Run, tmp_path: Path) -> None:
    done = timed_here("-k", "latency or accuracy", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    first, left = (done.stdout.index(text) for text in ("tiny, 16 tokens", "4 of 8 cells after 0:"))
    assert first < left < done.stdout.index("tiny, 32 tokens")
    assert "left: 2 latency, 2 accuracy, about 0:" in done.stdout[left:]


@pytest.mark.slow
def test_disabled_benchmarks_are_a_quick_functional_pass(quick: list[object], tmp_path: Path) -> None:
    done = bench(*quick, "--benchmark-disable", "--max-f1-drop", "-1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "12 passed" in done.stdout


@pytest.mark.slow
def test_a_variant_comes_from_outside(quick: list[object], outside: Path, tmp_path: Path) -> None:
    done = bench("-p", "outside", *quick, "--variants", "mine", "-k", "16", cwd=tmp_path, PYTHONPATH=str(outside))
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    assert "mine" in done.stdout
    by_itself = bench(
        "-p", "outside", *quick, "--variants", "mine", "-k", "footprint", cwd=tmp_path, PYTHONPATH=str(outside)
    )
    assert by_itself.returncode == 0, by_itself.stdout


def test_cells_that_run_in_processes_of_their_own_are_in_the_order_of_their_runtimes(tmp_path: Path) -> None:
    ids = collected("--variants", "fp32,int8-dynamic", "-k", "capacity or latency", cwd=tmp_path)
    names = {kind: [name.partition("[")[2] for name in ids if kind in name] for kind in ("capacity", "latency")}
    assert [name.partition("-384-")[2] for name in names["capacity"]] == ["fp32]"] * 2 + ["int8-dynamic]"] * 2
    assert [name[:9] for name in names["latency"]] == ["bert-base"] * 6 + ["bert-tiny"] * 6


def collected(*arguments: object, cwd: Path) -> list[str]:
    done = bench("--collect-only", "-q", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split("::")[1] for line in done.stdout.splitlines() if "::" in line]


def test_the_default_run_judges_the_trained_model_alone(tmp_path: Path) -> None:
    ids = collected("--variants", "fp32", cwd=tmp_path)
    lengths = (128, 256, 384)
    assert ids == [
        *(f"test_latency[bert-base-{length}-fp32]" for length in lengths),
        *(f"test_{kind}[bert-tiny-{length}-fp32]" for length in lengths for kind in ("latency", "accuracy")),
        *(
            f"test_{kind}[{model}-384-fp32]"
            for kind in ("footprint", "capacity")
            for model in ("bert-base", "bert-tiny")
        ),
    ]


def test_experiments_are_training_seeds_of_the_built_in_model(tmp_path: Path) -> None:
    ids = collected("--experiments", "3", "--max-lengths", "128", "--variants", "fp32", "-k", "accuracy", cwd=tmp_path)
    assert ids == [f"test_accuracy[bert-tiny{seed}-128-fp32]" for seed in ("", "-seed1", "-seed2")]


def test_models_of_one_name_are_told_apart(trained: Checkpoint, news: Dataset, tmp_path: Path) -> None:
    copy = shutil.copytree(trained.folder, tmp_path / "tiny")
    arguments = ["--model", trained.folder, "--model", copy, "--dataset", news.folder, "--max-lengths", "16"]
    ids = collected(*arguments, "--variants", "fp32", "-k", "latency", cwd=tmp_path)
    assert ids == ["test_latency[tiny-16-fp32]", "test_latency[tiny-copy1-16-fp32]"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./missing"], "model './missing' is no folder here"),
        pytest.param(["--dataset", "missing"], "dataset 'missing' is no folder", marks=pytest.mark.slow),
        pytest.param(["--variants", "int9"], "unknown variant 'int9'", marks=pytest.mark.slow),
        pytest.param(["--max-lengths", "513"], "max_length 513 is beyond", marks=pytest.mark.slow),
        (["--max-lengths", "0"], "invalid counts value: '0'"),
        (["--documents", "0"], "invalid positive int value: '0'"),
        (["--seconds-per-cell", "inf"], "invalid positive float value: 'inf'"),
        (["--f1-guard", "hope"], "invalid choice: 'hope'"),
        (["-p", "no:benchmark"], "the cells need pytest-benchmark, and it is off"),
        (["--dist", "loadfile"], "pytest-benchmark is off beside pytest-xdist: leave out --dist (or give -n 0)"),
        (["--benchmark-compare-fail=median:5%"], "--benchmark-compare-fail judges what --benchmark-compare compares"),
        (["--benchmark-compare", "--benchmark-compare-fail=median:x"], "Could not parse value: 'median:x'"),
    ],
)
def test_a_mistake_is_a_usage_error(quick: list[object], tmp_path: Path, arguments: list[str], message: str) -> None:
    done = bench(*quick, *arguments, cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "INTERNALERROR" not in done.stdout + done.stderr


@pytest.mark.parametrize("option", ["--max-drop", "--max-f1-drop", "--seconds-per-cell"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_an_option_that_is_no_number_is_a_usage_error(tmp_path: Path, option: str, value: str) -> None:
    done = bench(f"{option}={value}", "--collect-only", cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert re.search(rf"argument (--max-drop/)?{option}(/--max-f1-drop)?: invalid", done.stderr)


@pytest.mark.skipif(importlib.util.find_spec("pygal") is not None, reason="pygal is here")
def test_a_histogram_that_cannot_be_drawn_is_refused_before_anything_runs(quick: list[object], tmp_path: Path) -> None:
    done = bench(*quick, "--benchmark-histogram", cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "needs pygal, not installed: pip install " in done.stderr


def test_labels_that_are_not_the_datasets_are_a_usage_error(
    quick: list[object], pairs: Dataset, tmp_path: Path
) -> None:
    done = bench(*quick, "--dataset", pairs.folder, cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "tells 5 labels apart and the dataset pairs has 2" in done.stdout + done.stderr
