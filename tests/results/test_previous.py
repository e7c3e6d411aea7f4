"""What the comparison with a previous run says beside the timings."""

import copy
import math
from typing import Any

import pytest

from qbert.results import previous

IDENTITY = {
    "processor": "P",
    "instruction_sets": ["avx2"],
    "threads": 1,
    "dataset_sha256": "d" * 64,
    "checkpoint_sha256": "c" * 64,
    "definition": {"precision": "fp32", "options": {}},
    "versions": {"torch": "2.13"},
}


def cell(name: str, **info: Any) -> dict[str, Any]:
    extra = {"identity": copy.deepcopy(IDENTITY), "max_f1_drop": 0.01} | info
    return {"name": name, "fullname": f"bench/{name}", "extra_info": extra}


STATS = {"median": 1.0, "q1": 1.0, "q3": 1.0}


def saved(*benchmarks: dict[str, Any]) -> dict[str, Any]:
    entries = [one | {"stats": STATS} for one in benchmarks]
    return {"datetime": "2026-11-01T12:00:00+00:00", "commit_info": {"id": "a"}, "benchmarks": entries}


def test_identical_runs_have_nothing_to_tell() -> None:
    run = [cell("a", f1=0.9), cell("b", disk_bytes=5, peak_rss_bytes=7)]
    assert previous.compare_cells(run, copy.deepcopy(run)).lines() == []


def test_a_cell_that_is_gone_is_named_and_a_new_one_is_not() -> None:
    findings = previous.compare_cells([cell("a"), cell("c")], [cell("a"), cell("b")])
    assert findings.missing == ["b"]
    assert findings.lines() == ["1 of the previous run's cells was not run: b"]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("processor", "Q", "processor: Q, P"),
        ("instruction_sets", ["avx2", "avx512f"], "instruction sets: avx512f, no more"),
        ("threads", 2, "threads: 2, 1"),
        ("dataset_sha256", "e" * 64, "dataset: eeeeeeeeeeee, dddddddddddd"),
        ("checkpoint_sha256", "e" * 64, "checkpoint: eeeeeeeeeeee, cccccccccccc"),
        ("definition", {"precision": "int8", "options": {}}, "definition precision: int8, fp32"),
        ("versions", {"torch": "2.12"}, "torch: 2.12, 2.13"),
        ("versions", {"torch": "2.13", "onnx": "1"}, "onnx: 1, none"),
    ],
)
def test_another_subject_is_named_and_not_compared(key: str, value: Any, told: str) -> None:
    before = cell("a", f1=0.99)
    before["extra_info"]["identity"][key] = value
    findings = previous.compare_cells([cell("a", f1=0.5)], [before])
    assert findings.lines() == [f"not comparable, {told}: a"]
    assert findings.incomparable == {"bench/a"}


def test_a_difference_of_many_cells_is_told_once() -> None:
    names = [f"cell{number}" for number in range(9)]
    before = [cell(name) for name in names]
    for one in before:
        one["extra_info"]["identity"]["versions"]["torch"] = "2.12"
    (line,) = previous.compare_cells([cell(name) for name in names], before).lines()
    assert line == "not comparable, torch: 2.12, 2.13: cell0, cell1, cell2, cell3, cell4, cell5 and 3 more"


def test_a_previous_run_without_identity_is_not_comparable() -> None:
    before = cell("a")
    del before["extra_info"]["identity"]
    assert previous.compare_cells([cell("a")], [before]).incomparable == {"bench/a"}


def test_benchmarks_of_others_are_compared_by_time_alone() -> None:
    other = {"name": "x", "fullname": "other/x", "extra_info": {}}
    assert previous.compare_cells([other], [copy.deepcopy(other)]).lines() == []


@pytest.mark.parametrize(
    ("figure", "before", "after", "told"),
    [
        ("f1", 0.95, 0.9399, "a: F1 0.9500 -> 0.9399, more than 0.01 lower"),
        ("f1", 0.95, 0.9401, None),
        ("f1", 0.94, 0.99, None),
        ("disk_bytes", 100e6, 105.1e6, "a: size on disk 100.0 -> 105.1 MB, more than 5% greater"),
        ("disk_bytes", 100e6, 104.9e6, None),
        ("peak_rss_bytes", 400e6, 421e6, "a: peak memory 400.0 -> 421.0 MB, more than 5% greater"),
        ("peak_rss_bytes", 400e6, 300e6, None),
    ],
)
def test_f1_size_and_memory_are_compared(figure: str, before: float, after: float, told: str | None) -> None:
    findings = previous.compare_cells([cell("a", **{figure: after})], [cell("a", **{figure: before})])
    assert findings.worse == ([told] if told else [])


def test_the_f1_limit_can_be_given() -> None:
    runs = [cell("a", f1=0.90)], [cell("a", f1=0.95)]
    assert previous.compare_cells(*runs, max_drop=0.1).worse == []
    assert previous.compare_cells(*runs, max_drop=0.04).worse


@pytest.mark.parametrize(("before", "now", "told"), [(False, True, 1), (True, True, 0), (True, False, 0)])
def test_a_cell_that_is_over_its_limit_by_now_is_told(*, before: bool, now: bool, told: int) -> None:
    accuracy = {"model": "m", "max_length": 16, "variant": "v", "f1": 0.9, "f1_drop": 0.02, "f1_drop_low": 0.0}
    accuracy |= {"f1_drop_high": 0.04, "f1_guard": "point"}
    runs = [[cell("a", **accuracy, over_limit=over)] for over in (now, before)]
    lines = previous.compare_cells(*runs).worse
    assert len(lines) == told
    assert all("F1 drop, +0.0200" in line and "not in the previous run" in line for line in lines)


def test_what_cannot_be_compared_with_is_said() -> None:
    assert "finds no previous run" in previous.unusable([], disabled=False)
    assert "they are off" in previous.unusable([{}], disabled=True)
    failed = saved() | {"qbert": {"failed": ["test_accuracy[a]"]}}
    assert "2026-11-01T12:00:00+00:00 failed itself (test_accuracy[a])" in previous.unusable([failed], disabled=False)
    assert previous.unusable([saved()], disabled=False) == ""


CELL = {"model": "m", "max_length": 16, "variant": "v"}


@pytest.mark.parametrize(
    "damage",
    [
        {"benchmarks": 3},
        {"benchmarks": [{"name": "a", "stats": STATS}]},
        *(
            {"benchmarks": [{"name": "test_accuracy[a]", "stats": STATS, "extra_info": info, "params": CELL}]}
            for info in ({"identity": None}, {"f1": None}, {"f1": math.nan}, {"disk_bytes": math.inf})
        ),
        {"qbert": {"failed": 3}},
    ],
)
def test_a_damaged_previous_run_is_named(damage: dict[str, Any]) -> None:
    why = previous.unusable([saved() | damage], disabled=False)
    assert why.startswith("the previous run of 2026-11-01T12:00:00+00:00")
    assert "cannot be used" in why


def test_a_previous_run_that_holds_a_cell_twice_is_refused_and_other_projects_are_their_own_affair() -> None:
    measured = {"model": "m", "max_length": 16, "variant": "v", "trained": True, "measured": "latency"}
    ours, theirs = cell("a", **measured), {"name": "x", "fullname": "x", "extra_info": {"model": [3]}}
    assert "one cell twice (a)" in previous.unusable([saved(ours, theirs, ours)], disabled=False)
    only_theirs = saved({"name": "x", "fullname": "x", "extra_info": {"model": [3]}}, theirs)
    assert previous.unusable([only_theirs], disabled=False) == ""


@pytest.mark.parametrize("info", [{"f1": {"macro": 1}, "identity": "us"}, {"f1": 0.9}, {"disk_bytes": math.nan}])
def test_what_another_project_calls_as_we_do_is_its_own(info: dict[str, Any]) -> None:
    theirs = {"name": "x", "fullname": "x", "extra_info": info}
    assert previous.unusable([saved(theirs)], disabled=False) == ""
    assert previous.compare_cells([theirs], [copy.deepcopy(theirs)]).lines() == []


def test_a_terminal_obeys_nothing_in_what_is_told() -> None:
    before = cell("a\x1b[2J", f1=0.99)
    before["extra_info"]["identity"]["processor"] = "\x9b\u202eQ"
    lines = [
        *previous.compare_cells([], [cell("\x1b]0;b\x07")]).lines(),
        *previous.compare_cells([cell("a\x1b[2J", f1=0.5)], [before]).lines(),
        *previous.compare_cells([cell("c\r", f1=0.5)], [cell("c\r", f1=0.9)]).lines(),
        previous.unusable([{"datetime": "\x1b[2J"}], disabled=False),
    ]
    assert len(lines) == 4
    assert not set("\x1b\x9b\x07\r\u202e") & set("".join(lines))
