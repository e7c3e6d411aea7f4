"""Saved runs as pytest-benchmark leaves them: reading, what is no run, change points, spreads, the commands."""

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from garble import FIGURES, garbled_runs
from hypothesis import given, settings
from hypothesis import strategies as st

from qbert.cli import main
from qbert.inputs import labels
from qbert.results import answers as answers_compared
from qbert.results import changes, history
from qbert.system.errors import InputError

IDENTITY = {
    "processor": "P",
    "instruction_sets": ["avx2"],
    "checkpoint_sha256": "c",
    "dataset": "news",
    "dataset_sha256": "d",
    "threads": 1,
    "definition": {"precision": "fp32"},
    "versions": {"torch": "2.13"},
}


def benchmark(measured: str, **info: Any) -> dict[str, Any]:
    place = {"model": "tiny", "max_length": 128, "variant": "fp32", "trained": True, "identity": IDENTITY}
    median = info.pop("median", 0.1)
    extra = place | {"measured": measured, "p50_s": median, "p95_s": 1.1 * median} | FIGURES[measured] | info
    if measured == "accuracy":
        extra.setdefault("f1_drop", extra["f1_baseline"] - extra["f1"])
    name = f"test_{measured}[tiny-128-{extra['variant']}]"
    return {
        "name": name,
        "fullname": f"bench/{name}",
        "stats": {"median": median, "q1": median, "q3": median},
        "extra_info": extra,
    }


Save = Callable[..., Path]


def run(*benchmarks: dict[str, Any], day: int = 1, commit: str = "a" * 40, **more: Any) -> dict[str, Any]:
    when = f"2026-{1 + day // 28:02}-{1 + day % 28:02}T12:00:00+00:00"
    return {
        "machine_info": {"node": "n"},
        "commit_info": {"id": commit, "dirty": False},
        "datetime": when,
        "version": "5.3.1",
        "benchmarks": list(benchmarks),
    } | more


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save a run into a storage as pytest-benchmark lays it out."""
    count = 0

    def write(content: Any, python: str = "3.11") -> Path:
        nonlocal count
        count += 1
        folder = tmp_path / ".benchmarks" / f"Linux-CPython-{python}-64bit"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{count:04}_run.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


DAMAGED = "the run is damaged, so name another one"


def refused(path: Path, message: str = DAMAGED) -> None:
    with pytest.raises(InputError, match=message) as caught:
        history.read(path)
    assert str(caught.value).startswith(str(path))


def test_a_cell_is_one_row_of_its_three_benchmarks(save: Save) -> None:
    path = save(
        run(
            benchmark("latency", median=0.01, speedup=2.0),
            benchmark("accuracy", f1=0.9, flips=3, median=7.0),
            benchmark("footprint", disk_bytes=5, median=8.0),
        )
    )
    (row,) = history.read(path).to_dict("records")
    assert (row["median_s"], row["speedup"], row["score"], row["disk_bytes"]) == (0.01, 2.0, 0.9, 5)
    assert row["machine"] == "P (avx2)"
    assert row["commit"] == "aaaaaaaaaaaa"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be used .* name a run that pytest-benchmark saved"),
        ('{"benchmarks": [', "cannot be used .* name a run that pytest-benchmark saved"),
        ("[" * 100_000, "cannot be used .* name a run that pytest-benchmark saved"),
        ("[]", "Expected `object`, got `array`"),
        ('{"benchmarks": 3}', "Expected `array`, got `int`"),
        (run(), "holds no cell of this suite"),
        (run(datetime="yesterday"), "Invalid RFC3339"),
        ('{"benchmarks": [3]}', "Expected `object`, got `int`"),
        (run({"name": "x", "stats": {"median": 1, "q1": 1, "q3": 1}, "extra_info": {}}), "holds no cell of this suite"),
        (run(benchmark("latency") | {"stats": {}}), "missing required field `median`"),
        (run(benchmark("latency", identity=None)), r"test_latency\[tiny-128-fp32\] .* got `null` - at `\$.identity`"),
    ],
)
def test_what_is_no_run_is_said_in_a_sentence(save: Save, content: Any, message: str) -> None:
    refused(save(content), message)


@pytest.mark.parametrize(
    ("measured", "name", "value"),
    [
        *(("latency", "speedup", value) for value in (None, 0, -1.0, 1e300, "2.0", True, [])),
        ("latency", "speedup_low", None),
        ("latency", "baseline_p50_s", 0),
        ("latency", "p50_s", 0.2),
        ("latency", "measured", "latencies"),
        ("latency", "trained", 1),
        ("latency", "max_length", 0),
        ("latency", "max_length", "128"),
        ("latency", "model", None),
        ("latency", "identity", {"processor": "P"}),
        ("latency", "identity", IDENTITY | {"definition": {"precision": 32}}),
        ("accuracy", "f1", 1.01),
        ("accuracy", "f1_drop", 0.2),
        ("accuracy", "documents", 0),
        ("accuracy", "flips", -1),
        ("accuracy", "flips", 1.5),
        ("accuracy", "mcnemar_p", None),
        ("accuracy", "flipped", None),
        ("accuracy", "flipped", [{"row": 3}]),
        ("footprint", "load_s", 0),
        ("footprint", "disk_bytes", -1),
        ("footprint", "peak_rss_bytes", "many"),
    ],
)
def test_a_garbled_figure_is_an_error_of_its_file(save: Save, measured: str, name: str, value: Any) -> None:
    garbled = benchmark(measured)
    garbled["extra_info"][name] = value
    refused(save(run(benchmark("latency", variant="other"), garbled)), f"test_{measured}.* {DAMAGED}")


@pytest.mark.parametrize("stats", [{"median": 0}, {"q1": -0.1}, {"q1": 0.2}, {"median": 0.2, "q3": 0.2}, {"q3": None}])
def test_an_impossible_statistic_is_an_error_of_its_file(save: Save, stats: dict[str, float]) -> None:
    garbled = benchmark("latency")
    garbled["stats"] |= stats
    refused(save(run(garbled)), "cannot be used")


@pytest.mark.parametrize("name", ["model", "max_length", "variant", "trained", "identity", "measured", "speedup"])
def test_a_cell_without_a_part_is_not_left_out_in_silence(save: Save, name: str) -> None:
    garbled = benchmark("latency")
    del garbled["extra_info"][name]
    refused(save(run(benchmark("latency", variant="other"), garbled)))


@pytest.mark.parametrize("info", [{}, {"model": "other"}])
def test_a_cell_is_known_by_its_parameters_too(save: Save, info: dict[str, Any]) -> None:
    garbled = benchmark("latency") | {"params": {"model": "tiny", "max_length": 128, "variant": "fp32"}}
    garbled["extra_info"] = (garbled["extra_info"] | info) if info else {}
    refused(save(run(benchmark("latency", variant="other"), garbled)))


def test_the_benchmarks_of_a_cell_are_of_one_subject(save: Save) -> None:
    other = benchmark("accuracy", identity=IDENTITY | {"checkpoint_sha256": "e"})
    refused(save(run(benchmark("latency"), other)), "another `identity`")


def merged(measured: str, **other: Any) -> dict[str, Any]:
    """Two files of one cell, merged by hand, whose figures differ; the cell beside it is there once."""
    beside = benchmark(measured, variant="other")
    return run(benchmark(measured, median=0.3), beside, benchmark(measured, median=0.5, **other))


@pytest.mark.parametrize("measured", FIGURES)
def test_the_order_of_two_entries_of_a_cell_decides_nothing(save: Save, measured: str) -> None:
    content = merged(measured, loaded_p50_s=0.5) if measured == "capacity" else merged(measured)
    content["benchmarks"][0]["extra_info"] |= {"loaded_p50_s": 0.3} if measured == "capacity" else {}
    for entries in (content["benchmarks"], content["benchmarks"][::-1]):
        message = rf"has measured one cell twice \(test_{measured}.*\): keep one of them"
        refused(save(content | {"benchmarks": entries}), message)


def test_entries_that_repetition_has_named_apart_are_of_one_cell(save: Save) -> None:
    entries = [benchmark("latency", median=median) for median in (0.1, 0.2)]
    for number, entry in enumerate(entries, 1):
        for name in ("name", "fullname"):
            entry[name] = entry[name].replace("]", f"-{number}-2]")
    entries[1]["extra_info"]["max_length"] = 128.0
    refused(save(run(*entries)), r"twice \(test_latency.*-1-2\] and test_latency.*-2-2\]\)")


@pytest.mark.parametrize("command", ["compare", "report", "history"])
def test_every_reader_refuses_a_cell_that_is_there_twice(save: Save, command: str) -> None:
    twice, once = save(merged("latency")), save(run(benchmark("latency")))
    arguments = {
        "compare": [str(once), str(twice)],
        "report": [str(twice), "--csv", str(twice.with_suffix(".csv"))],
        "history": [str(twice.parents[1])],
    }[command]
    done = CliRunner().invoke(main, [command, *arguments])
    assert "has measured one cell twice" in " ".join((done.output + done.stderr).split())
    assert done.exit_code == (0 if command == "history" else 2), "a history goes on without the run"


def test_benchmarks_of_other_projects_are_left_out(save: Save) -> None:
    theirs = {
        "name": "test_x",
        "stats": {"median": 0.0, "q1": 0.0, "q3": 0.0},
        "extra_info": {"model": 3, "variant": None},
    }
    assert len(history.read(save(run(theirs, benchmark("latency"))))) == 1


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks_in_somebodys_own_notes_changes_nothing(save: Save, number: float) -> None:
    noted = run(benchmark("latency", watts=[number]), machine_info={"node": "n", "fan": number})
    expected, found = (history.read(save(one)).drop(columns="file") for one in (run(benchmark("latency")), noted))
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize(
    ("measured", "name"), [("latency", "speedup"), ("accuracy", "f1"), ("accuracy", "max_f1_drop")]
)
def test_a_number_that_json_lacks_in_a_figure_of_ours_is_damage(save: Save, measured: str, name: str) -> None:
    damaged = benchmark(measured)
    damaged["extra_info"][name] = math.nan
    refused(save(run(damaged)), f"got `null` - at `\\$.{name}`.*{DAMAGED}")


@pytest.mark.parametrize(
    "theirs",
    [
        {},
        *({"stats": stats} for stats in ({}, {"median": None}, {"median": math.nan, "q1": "x"}, {"total": 3})),
        {"params": {"model": math.nan}, "options": {"timeout": math.inf}},
    ],
)
def test_an_entry_of_another_project_is_its_own_affair(save: Save, theirs: dict[str, Any]) -> None:
    entry = {"name": "test_x[NaN]", "fullname": "test_x.py::test_x[NaN]", "extra_info": {"f1": math.nan}} | theirs
    assert len(history.read(save(run(entry, benchmark("latency"))))) == 1


def test_a_judgement_that_broke_off_leaves_the_rest_of_the_run(save: Save) -> None:
    begun = benchmark("accuracy")
    del begun["extra_info"]["f1"]
    table = history.read(save(run(benchmark("latency"), begun, qbert={"failed": [begun["fullname"]]})))
    assert table["median_s"].tolist() == [0.1]


PAIRED = {"speedup_low": 0.9, "speedup_high": 1.1, "baseline_p50_s": 0.1, "floor_s": 0.05, "share_of_limit": 0.5}
PAIRED |= {"best_floor_s": 0.04, "share_of_best_limit": 0.4}


@pytest.mark.parametrize("name", PAIRED)
def test_a_figure_that_the_others_have_is_not_missing(save: Save, name: str) -> None:
    whole, garbled = benchmark("latency", variant="other", **PAIRED), benchmark("latency", **PAIRED)
    assert len(history.read(save(run(whole, garbled)))) == 2
    del garbled["extra_info"][name]
    refused(save(run(whole, garbled)))


def test_figures_that_an_old_run_lacks_are_not_known(save: Save) -> None:
    (row,) = history.read(save(run(benchmark("latency")))).to_dict("records")
    assert math.isnan(row["baseline_p50_s"])


def test_damage_is_told_or_changes_nothing(save: Save) -> None:
    whole = run(
        *(
            benchmark(measured, variant=variant) | {"params": {"model": "tiny", "max_length": 128, "variant": variant}}
            for measured in FIGURES
            for variant in ("fp32", "bf16")
        )
    )
    figures = ["model", "max_length", "variant", "median_s", "speedup", "score", "flips", "disk_bytes", "load_s"]
    path = save(whole)
    expected = history.read(path)[figures]
    told = []
    for damage, content in garbled_runs(path.read_bytes(), seed=0, count=300):
        path.write_bytes(content)
        try:
            found = history.read(path)[figures]
        except InputError as error:
            told.append(str(error))
        else:
            assert "bits flipped" in damage or found.equals(expected), damage  # one digit for another is a figure too
    assert all(sentence.startswith(str(path)) and "\n" not in sentence for sentence in told)
    assert len(told) > 150


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["benchmarks", "extra_info", "stats", "median", "identity", "model", "commit_info", "qbert"]
                ),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_no_json_brings_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    whole = run(benchmark("latency", **({"identity": content} if isinstance(content, list) else {})))
    for written in (content, {"benchmarks": content}, {"benchmarks": [content]}, whole | {"commit_info": content}):
        path.write_text(json.dumps(written))
        with contextlib.suppress(InputError):
            assert not history.read(path).empty


def series(*levels: tuple[float, int], spread: float = 0.01, seed: int = 0) -> list[float]:
    generator = np.random.default_rng(seed)
    return [level * math.exp(generator.normal(0, spread)) for level, count in levels for _ in range(count)]


def test_a_change_is_found_where_it_is() -> None:
    assert changes.change_points(series((0.1, 12), (0.11, 9))) == [12]
    assert changes.change_points(series((0.1, 10), (0.15, 10), (0.1, 10))) == [10, 20]


def test_a_change_smaller_than_the_minimum_effect_is_none() -> None:
    values = series((0.1, 20), (0.1015, 20), spread=0.001)
    assert changes.change_points(values) == []
    assert changes.change_points(values, min_effect=0.005) == [20]


def test_a_single_outlier_is_no_change() -> None:
    values = series((0.1, 20))
    values[9] *= 1.3
    assert changes.change_points(values) == []


@pytest.mark.parametrize("runs", [5, 12, 40, 100])
def test_constant_series_have_no_change(runs: int) -> None:
    found = [bool(changes.change_points(series((0.1, runs), spread=0.02, seed=seed))) for seed in range(300)]
    assert np.mean(found) < 0.05


def test_few_or_equal_runs_have_no_change() -> None:
    for values in ([], [0.1], [0.1, 0.2, 0.3], [0.1] * 10):
        assert changes.change_points(values) == []


def later(save: Save, **more: Any) -> Any:
    return history.load([save(run(benchmark("latency", **more), day=300))])


def test_a_series_levels_are_five_values_and_the_last_one_three() -> None:
    values = series((0.1, 12), (0.13, 4), (0.1, 12), spread=0.002)
    assert changes.change_points(values) == []
    assert changes.change_points(values[:14]) == []
    assert changes.change_points(values[:15]) == [12]
    assert changes.change_points(series((0.1, 4), (0.13, 3), spread=0.002)) == []
    assert changes.change_points(series((0.1, 5), (0.13, 3), spread=0.002)) == [5]


def test_two_bad_runs_are_no_level() -> None:
    for place in range(19):
        values = series((0.1, 20))
        for bad in (place, place + 1):
            values[bad] *= 1.2
        assert changes.change_points(values) == []


def at(*starts: str, host: str = "n", boot: str = "") -> pd.DataFrame:
    return pd.DataFrame({"when": pd.to_datetime(list(starts), utc=True), "host": host, "boot": boot})


def test_runs_of_one_boot_a_few_hours_apart_are_a_session() -> None:
    day = at("2026-01-01T08:00", "2026-01-01T13:59", "2026-01-01T20:00", "2026-01-02T12:00")
    assert history.sessions(day) == [0, 0, 2, 3]
    assert history.sessions(day.iloc[::-1]) == [3, 2, 0, 0]


def test_a_session_ends_after_a_day() -> None:
    hours = pd.date_range("2026-01-01", periods=50, freq="h", tz="UTC").astype(str)
    assert pd.Series(history.sessions(at(*hours))).value_counts().tolist() == [24, 24, 2]


@pytest.mark.parametrize(
    ("other", "together"),
    [
        ({"host": "n", "boot": "b"}, True),
        ({"host": "m", "boot": "b"}, True),  # containers of one machine
        ({"host": "n", "boot": "c"}, False),
        ({"host": "n", "boot": ""}, True),
        ({"host": "m", "boot": ""}, False),
    ],
)
def test_a_boot_tells_more_than_a_host(other: dict[str, str], *, together: bool) -> None:
    table = pd.concat([at("2026-01-01T08:00", host="n", boot="b"), at("2026-01-01T09:00", **other)])
    assert (len(set(history.sessions(table))) == 1) == together


def test_two_hosts_that_take_turns_have_their_own_sessions() -> None:
    table = pd.concat(
        [at(*(f"2026-01-01T{hour:02}:00" for hour in range(start, 12, 2)), host=f"h{start}") for start in (0, 1)]
    )
    assert history.sessions(table) == [0] * 6 + [1] * 6


def test_runs_of_a_session_are_one_value_of_a_series(save: Save, tmp_path: Path) -> None:
    for day, median in enumerate(series((0.1, 8), (0.12, 4))):
        for hour in (9, 10, 11):
            # The change comes with the second run of day 8.
            level = 0.1 if (day, hour) == (8, 9) else median
            when = f"2026-01-{day + 1:02}T{hour:02}:00:00+00:00"
            save(run(benchmark("latency", median=level), datetime=when, commit=f"{day:02}{hour:02}" * 10))
    table, _ = history.stored(tmp_path / ".benchmarks")
    (row,) = changes.changes(table)
    (change,) = row["changes"]
    assert (change["run"], change["commits"], row["runs"]) == (25, "0809080..0810081", 36)
    assert change["change"] == pytest.approx(0.2, abs=0.02)
    assert [freedom for _, freedom in changes.spreads(table, later(save)).values()] == [10]


def test_the_compared_runs_and_their_sessions_are_no_history(save: Save, tmp_path: Path) -> None:
    days = [save(run(benchmark("latency", median=median), day=day)) for day, median in enumerate(series((0.1, 12)))]
    table, _ = history.stored(tmp_path / ".benchmarks")
    copy = tmp_path / "copy.json"
    copy.write_bytes(days[3].read_bytes())
    same_day = tmp_path / "same_day.json"
    same_day.write_text(json.dumps(run(benchmark("latency"), datetime="2026-01-06T15:00:00+00:00")))
    for compared, freedom in ([copy], 10), ([days[3], copy], 10), ([copy, same_day], 9):
        assert [found[1] for found in changes.spreads(table, history.load(compared)).values()] == [freedom]
    assert changes.spreads(table, history.load(days)) == {}


HARDWARE = {"family": 25, "model": 1, "stepping": 1, "logical cores": 2, "L3 unified": "32M"}


def hardware(**other: Any) -> dict[str, Any]:
    return IDENTITY | {"hardware": HARDWARE | {name.replace("_", " "): value for name, value in other.items()}}


def machines(save: Save, *identities: dict[str, Any], **more: Any) -> list[str]:
    table = history.load([save(run(benchmark("latency", identity=one), **more)) for one in identities])
    return table["machine"].tolist()


def test_machines_of_one_name_are_told_apart_by_their_hardware(save: Save) -> None:
    short = "P, family 25 model 1, 2 cores (avx2)"
    assert machines(save, hardware(), hardware()) == [short, short]
    assert machines(save, hardware(), hardware(model=17))[1] == "P, family 25 model 17, 2 cores (avx2)"
    assert machines(save, hardware(), hardware(stepping=2)) == [f"{short}, stepping 1", f"{short}, stepping 2"]
    assert machines(save, hardware(), hardware(L3_unified="16M"))[1] == f"{short}, L3 unified 16M"


def test_a_machine_with_a_name_is_another_one(save: Save) -> None:
    named = hardware() | {"machine_name": "the small one"}
    assert machines(save, hardware(), named) == [
        "P, family 25 model 1, 2 cores (avx2)",
        "the small one, P, family 25 model 1, 2 cores (avx2)",
    ]
    files = [save(run(benchmark("latency", identity=one), day=day)) for day, one in enumerate((hardware(), named))]
    assert "machine name: none, the small one" in qbert("compare", *files)[1]
    assert (
        machines(save, named, named | hardware(stepping=2))[0] != machines(save, named, named | hardware(stepping=2))[1]
    )


def test_an_older_run_knows_what_pytest_benchmark_saved(save: Save) -> None:
    cpu = {"family": 25, "model": 1, "stepping": 1, "count": 2, "brand_raw": "P"}
    short = "P, family 25 model 1, 2 cores (avx2)"
    assert machines(save, IDENTITY, machine_info={"node": "n", "cpu": cpu}) == [short]
    older = run(benchmark("latency"), machine_info={"node": "n", "cpu": cpu})
    newer = run(benchmark("latency", identity=hardware()), day=2)
    assert set(history.load([save(older), save(newer)])["machine"]) == {short}
    other = run(benchmark("latency", identity=hardware(stepping=2)), day=3)
    assert "hardware stepping: 1, 2" in qbert("compare", save(older), save(other))[1].replace("\n", " ")
    assert "inconclusive" in qbert("compare", save(older), save(newer))[1]
    assert machines(save, IDENTITY, machine_info={"cpu": "garbled"}) == ["P (avx2)"]


def test_another_machines_history_tells_nothing_of_this_one(save: Save, tmp_path: Path) -> None:
    for day, median in enumerate(series((0.1, 12))):
        save(run(benchmark("latency", median=median, identity=hardware()), day=day))
    table, _ = history.stored(tmp_path / ".benchmarks")
    assert changes.spreads(table, later(save, identity=hardware(stepping=2))) == {}
    assert len(changes.spreads(table, later(save, identity=hardware()))) == 1
    assert len(changes.spreads(table, later(save))) == 1  # it does not know


@pytest.mark.parametrize("wrong", [3, [], {"family": None}, {"caches": {"L1": "32K"}}])
def test_garbled_hardware_is_an_error_of_its_file(save: Save, wrong: Any) -> None:
    refused(save(run(benchmark("latency", identity=IDENTITY | {"hardware": wrong}))))


@pytest.mark.parametrize("more", [{"machine_info": 3}, {"qbert": {"failed": [], "boot": 3}}])
def test_a_garbled_session_is_an_error_of_its_file(save: Save, more: dict[str, Any]) -> None:
    refused(save(run(benchmark("latency"), **more)), "name a run that pytest-benchmark saved")


def test_spreads_are_those_between_changes(save: Save, tmp_path: Path) -> None:
    for day, median in enumerate(series((0.1, 30), (0.2, 30))):
        save(run(benchmark("latency", median=median), day=day))
    table, _ = history.stored(tmp_path / ".benchmarks")
    ((spread, freedom),) = changes.spreads(table, later(save)).values()
    assert spread == pytest.approx(0.01, rel=0.3)
    assert freedom == 58


def test_another_dataset_is_another_history(save: Save, tmp_path: Path) -> None:
    for day, median in enumerate(series((0.1, 10), (0.2, 10))):
        identity = IDENTITY | ({"dataset": "other", "dataset_sha256": "e" * 64} if day >= 10 else {})
        save(run(benchmark("latency", median=median, identity=identity), day=day))
    table, _ = history.stored(tmp_path / ".benchmarks")
    assert [(row["runs"], row["changes"]) for row in changes.changes(table)] == [(10, []), (10, [])]
    ((spread, freedom),) = changes.spreads(table, later(save)).values()
    assert (spread, freedom) == (pytest.approx(0.01, rel=0.5), 18)
    code, output = qbert("history", tmp_path / ".benchmarks")
    assert code == 0
    assert "P (avx2), other (eeeeeeeeeeee)" in output


def test_a_terminal_obeys_nothing_in_a_history(save: Save, tmp_path: Path) -> None:
    codes = "\x1b]0;x\x07\x1b[2J\x9b\r\u202e"
    identity = IDENTITY | {"processor": codes, "dataset": codes}
    for day, median in enumerate(series((0.1, 8), (0.2, 8))):
        cell = benchmark("latency", median=median, model=codes, variant=codes, identity=identity)
        path = save(run(cell, day=day, commit=codes))
    save("{", python=codes)
    out = {form: tmp_path / f"o.{form}" for form in ("csv", "markdown", "json")}
    drawn = tmp_path / "h.svg"
    said = [
        *(qbert("history", tmp_path / ".benchmarks", "--plot", drawn), drawn.read_text()),
        *qbert(
            "compare",
            path,
            path,
            "--history",
            tmp_path / ".benchmarks",
            *(x for f in out.items() for x in (f"--{f[0]}", f[1])),
        ),
        *(file.read_text() for file in out.values()),
        *qbert("report", save("{", python=codes), "-o", tmp_path / "x.html"),
    ]
    for text in said:
        assert not set("\x1b\x07\x9b\r\u202e") & set(str(text))


def test_a_storage_is_read_across_pythons_in_the_order_of_time(save: Save, tmp_path: Path) -> None:
    save(run(benchmark("latency", median=0.3), day=3), python="3.12")
    save(run(benchmark("latency", median=0.1), day=1), python="3.13")
    save(run(benchmark("latency", median=0.2), day=2))
    table, left_out = history.stored(tmp_path / ".benchmarks")
    assert table["median_s"].tolist() == [0.1, 0.2, 0.3]
    assert left_out == []


def test_damaged_and_failed_runs_are_left_out_and_named(save: Save, tmp_path: Path) -> None:
    save(run(benchmark("latency")))
    damaged, failed = save("{"), save(run(benchmark("latency"), qbert={"failed": ["x"]}))
    table, left_out = history.stored(tmp_path / ".benchmarks")
    assert len(table) == 1
    assert [str(damaged) in left_out[0], str(failed) in left_out[1]] == [True, True]


def qbert(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], env={"COLUMNS": "80"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_a_history_without_latencies_is_a_sentence(save: Save, tmp_path: Path) -> None:
    save(run(benchmark("accuracy")))
    code, output = qbert("history", tmp_path / ".benchmarks")
    assert code == 2
    assert ".benchmarks holds no run that measured latency: save some" in " ".join(output.split())


def test_history_keeps_machines_apart_and_names_the_commit(save: Save, tmp_path: Path) -> None:
    for day, median in enumerate(series((0.1, 8), (0.12, 8))):
        commit = f"{'b' if day < 8 else 'c'}{day:06}" * 6
        save(run(benchmark("latency", median=median), day=day, commit=commit))
        other = benchmark(
            "latency", median=median * (1 if day < 8 else 1 / 1.2) * 3, identity=IDENTITY | {"processor": "Q"}
        )
        save(run(other, day=day, commit=commit))
    plot = tmp_path / "h.svg"
    code, output = qbert("history", tmp_path / ".benchmarks", "--plot", plot)
    assert code == 0
    assert output.index("P (avx2)") < output.index("b000007..c000008 2026-01-09") < output.index("Q (avx2)")
    assert output.count("..") == 1
    assert max(map(len, output.splitlines())) <= 80
    drawn = plot.read_text()
    assert drawn.startswith("<?xml")
    assert "tiny, 128 tokens: Q" in drawn or "<path" in drawn


def test_bad_places_are_sentences(tmp_path: Path, save: Save) -> None:
    code, output = qbert("history", tmp_path / "missing")
    assert code == 2
    assert "is no folder" in output
    save("{")
    code, output = qbert("history", tmp_path / ".benchmarks")
    assert code == 2
    assert "holds no run of this suite" in output
    good = save(run(benchmark("latency")))
    assert qbert("compare", good, tmp_path / "missing.json")[0] == 2
    assert "cannot be drawn" in qbert("history", tmp_path / ".benchmarks", "--plot", tmp_path / "x.zip")[1]


def test_compare_writes_what_it_shows(save: Save, tmp_path: Path) -> None:
    accuracy = benchmark("accuracy", f1=0.9, flipped=[])
    footprint = benchmark("footprint", disk_bytes=1e6)
    base, slow = (
        [
            save(run(benchmark("latency", median=value), accuracy, footprint, day=day))
            for day, value in enumerate(series((level, 4)))
        ]
        for level in (0.1, 0.12)
    )
    files = {form: tmp_path / f"out.{form}" for form in ("json", "csv", "markdown")}
    options = [part for form, path in files.items() for part in (f"--{form}", path)]
    code, output = qbert("compare", *base, "--", *slow, *options)
    assert code == 0
    assert "1 slower" in output
    assert "4 and 4 runs" in output
    assert max(map(len, output.splitlines())) <= 80
    (row,) = json.loads(files["json"].read_text())["cells"]
    assert row["verdict"] == "slower"
    assert row["change"] == pytest.approx(0.2, abs=0.02)
    assert "| tiny-128-fp32 |" in files["markdown"].read_text()
    assert files["csv"].read_text().splitlines()[1].startswith("tiny,128,fp32,slower")


def test_compare_of_two_runs_says_what_it_cannot_know(save: Save) -> None:
    code, output = qbert("compare", save(run(benchmark("latency"))), save(run(benchmark("latency", median=0.2))))
    assert code == 0
    assert "inconclusive" in output
    assert "save runs\nof several days, or use qbert gate" in output


def test_several_runs_of_a_session_are_no_surer_than_one(save: Save, tmp_path: Path) -> None:
    base = [save(run(benchmark("latency", median=value))) for value in series((0.1, 5))]
    head = [save(run(benchmark("latency", median=value), day=2)) for value in series((0.2, 5))]
    code, output = qbert("compare", *base, "--", *head, "--history", tmp_path / ".benchmarks")
    assert code == 0
    assert "1 inconclusive" in output
    assert "5 and 5 runs, of 1 and 1 sessions" in output
    assert "save runs\nof several days, or use qbert gate" in output


def test_compare_takes_the_noise_from_the_history(save: Save, tmp_path: Path) -> None:
    base, head = save(run(benchmark("latency"))), save(run(benchmark("latency", median=0.12)))
    for day, median in enumerate(series((0.1, 20))):
        save(run(benchmark("latency", median=median), day=day))
    output = qbert("compare", base, head, "--history", tmp_path / ".benchmarks")[1]
    assert "1 slower" in output


def test_a_hundred_runs_are_compared_in_little_more_time_than_reading_them_takes(save: Save) -> None:
    data = [0.1234567890123 + number * 1e-9 for number in range(800)]
    cells = [benchmark("latency", median=0.1, variant=f"v{number}") for number in range(54)]
    content = run(*(cell | {"stats": cell["stats"] | {"data": data}} for cell in cells))
    text = json.dumps(content, indent=4)
    assert len(text) > 1.5e6
    paths = [save(text) for _ in range(100)]

    def used_s() -> float:
        before = os.times()
        command = [sys.executable, "-m", "qbert", "compare", *map(str, paths[:50]), "--", *map(str, paths[50:])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        after = os.times()
        assert done.returncode == 0, done.stderr
        return after.children_user + after.children_system - before.children_user - before.children_system

    def read_s() -> float:
        before = time.process_time()
        for path in paths:
            json.loads(path.read_bytes())
        return time.process_time() - before

    # In turns, so that neighbours who fill the caches slow both: beside a load it was 1.9 to 2.7 times as long.
    used, read = zip(*((used_s(), read_s()) for _ in range(3)), strict=True)
    assert min(used) < 4 * min(read)


NUMBERS = {"metric": "ndcg", "labels": "0 1.5", "queries": "0 0", "logits_sha256": "a"}
NUMBERS |= labels.packed_logits(np.array([[0.5], [-1]], dtype=np.float32))


@pytest.mark.parametrize(
    "answers",
    [
        {"labels": "0,1 -", "predicted": "2 0,1", "logits_sha256": "a"},
        {"labels": "0 1", "predicted": "0 1", "logits_sha256": "a"},
    ],
)
def test_answers_of_any_kind_are_read(save: Save, answers: dict[str, str]) -> None:
    saved = history.read(save(run(benchmark("accuracy", documents=2, answers=answers))))
    assert saved["answers"].tolist() == [answers]


def ranked(**changed: object) -> dict[str, Any]:
    judged = benchmark("accuracy", documents=2)
    info = {name.replace("f1", "ndcg"): value for name, value in judged["extra_info"].items()}
    answers = {name: value for name, value in (NUMBERS | changed).items() if value is not None}
    return judged | {"extra_info": info | {"answers": answers}}


def test_numbers_are_read(save: Save) -> None:
    saved = history.read(save(run(ranked())))
    assert saved[["metric", "score", "max_drop"]].to_numpy().tolist() == [["ndcg", FIGURES["accuracy"]["f1"], 0.01]]
    assert answers_compared.compare({"one": saved["answers"][0], "other": saved["answers"][0]}) is not None


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"queries": None}, "have neither `predicted` labels nor numbers"),
        ({"queries": "0"}, "are not of as many `documents`"),
        ({"labels": "0 1e999"}, "have neither `predicted` labels nor numbers"),
        ({"labels": "0 -1"}, "have neither `predicted` labels nor numbers"),
        ({"labels": "0 a"}, "Expected `str` matching regex"),
        ({"logits": None}, "have neither `predicted` labels nor numbers"),
        ({"logits_type": None}, "have neither `predicted` labels nor numbers"),
        (
            labels.packed_logits(np.array([[np.nan], [1]], dtype=np.float32)) or {"logits": "AADAfwAAgD8="},
            "nor numbers",
        ),
        (labels.packed_logits(np.ones((2, 2), dtype=np.float32)), "nor numbers"),
        ({"metric": "pearson"}, "is judged by ndcg, and its `answers` by pearson"),
        ({"activation": "softplus"}, "Invalid enum value 'softplus'"),
    ],
)
def test_numbers_that_are_garbled_are_refused(save: Save, changed: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        history.read(save(run(ranked(**changed))))
