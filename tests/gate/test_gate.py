"""The gate as a user runs it: base and head as real processes, each exit code, and what a failure leaves behind."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from sklearn.metrics import f1_score

from qbert import variants
from qbert.cli import main
from qbert.gate import run, sides
from qbert.gate import worker as timing
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.inputs.settings import Limit
from qbert.measure import accuracy
from qbert.results import verdicts
from qbert.system import sources
from qbert.system.errors import InputError
from qbert.variants import VARIANTS

PLUGIN = """
import gc, os, time
import numpy as np
from safetensors.numpy import load_file
from qbert.variants import Classifier, Variant, register

def called():
    {when_called}

def classifier(folder, called):
    weights = load_file(folder / "model.safetensors")
    words, labels = weights["bert.embeddings.word_embeddings.weight"], weights["classifier.weight"]
    def run(encoding):
        called()
        return np.tanh(words)[encoding["input_ids"][0]].mean(axis=0, keepdims=True) @ labels.T
    return Classifier(run, {{"threads": 1}})

def load(folder, **options):
    return classifier(folder, called)

register(Variant("mine", "NumPy", "fp32", load, options={options}))
"""
"""A variant whose process is there at once: it needs no torch."""
OTHER = """
def load_other(folder):
    return classifier(folder, lambda: None)

register(Variant("other", "NumPy", "fp32", load_other))
"""
TIMED = "if not gc.isenabled(): "  # as it is while the gate warms up and times, and not while it prepares


def plugin(when_called: str = "pass", options: str = "{}") -> str:
    return PLUGIN.format(when_called=when_called, options=options)


WHO = ["-c", "user.name=n", "-c", "user.email=e@example.org"]


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *WHO, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def negate(folder: Path) -> None:
    """Have the checkpoint in `folder` predict what it took for the least likely."""
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= -1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def write_as_predicted(trained: Checkpoint, news: Dataset, folder: Path) -> None:
    """Write a dataset whose test documents are labelled as the checkpoint predicts."""
    shutil.copytree(news.folder, folder)
    logits, _ = accuracy.run(variants.build(VARIANTS["fp32"], trained), trained.encoder, news.test, 16)
    news.test.assign(label=logits.argmax(axis=1)).to_csv(folder / "test.csv", index=False)


@pytest.fixture
def repository(tmp_path: Path) -> Callable[[str, str], Path]:
    """Make a git repository whose commit has one plugin, and whose working tree has another."""

    def make(base: str, head: str) -> Path:
        folder = tmp_path / "repository"
        folder.mkdir()
        (folder / "outside.py").write_text(base)
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "base"]):
            git(folder, *command)
        (folder / "outside.py").write_text(head)
        return folder

    return make


@pytest.fixture
def start(trained: Checkpoint, news: Dataset, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `qbert gate` on the small model (unless `bare`) and one length; worktrees go to a folder of their own."""
    (tmp_path / "temporary").mkdir()

    def begin(
        *arguments: object, cwd: Path = tmp_path, plugins: Sequence[str] = (), bare: bool = False
    ) -> subprocess.Popen[str]:
        settings = ["--max-lengths", "16", "--documents", "20"]
        settings += [] if bare else ["--model", trained.folder, "--dataset", news.folder]
        command = [sys.executable, "-m", "qbert", *(part for name in plugins for part in ("-p", name)), "gate"]
        return subprocess.Popen(
            [*command, *map(str, [*settings, *arguments])],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(tmp_path / "temporary"), "COLUMNS": "80"},
        )

    return begin


@pytest.fixture
def nothing_is_left(tmp_path: Path, processes: Callable[[str], list[str]]) -> Callable[[], bool]:
    """Tell whether no process and no worktree of a gate is left."""

    def check() -> bool:
        worktrees = git(tmp_path / "repository", "worktree", "list").splitlines()
        temporary = tmp_path / "temporary"
        return not processes(f"TMPDIR={temporary}") and len(worktrees) == 1 and not any(temporary.iterdir())

    return check


@pytest.mark.slow
def test_a_slower_cell_is_a_regression_and_an_equal_one_is_the_same(
    start: Callable[..., subprocess.Popen[str]],
    repository: Callable[[str, str], Path],
    tmp_path: Path,
    nothing_is_left: Callable[[], bool],
) -> None:
    slow = "end = time.perf_counter() + 0.001\n    while time.perf_counter() < end: pass"
    folder = repository(plugin() + OTHER, plugin(slow) + OTHER)
    files = ["--json", tmp_path / "gate.json", "--markdown", tmp_path / "gate.md"]
    process = start(
        *("--base-ref", "HEAD", "--variants", "other,mine", "--min-effect", "20%", *files),
        cwd=folder,
        plugins=["outside"],
    )
    output, errors = process.communicate()
    assert process.returncode == run.REGRESSION, output + errors
    found = json.loads((tmp_path / "gate.json").read_text())
    cells = {cell["variant"]: cell for cell in found["cells"]}
    assert {name: cell["verdict"] for name, cell in cells.items()} == {"other": "same", "mine": "slower"}
    assert cells["mine"]["change_low"] > 0.2
    assert len(cells["mine"]["log_ratios"]) >= 7, "fewer pairs cannot be sure of two cells"
    assert (
        0.0007 < cells["mine"]["head_s"] - cells["mine"]["base_s"] < 0.003
    )  # a millisecond, and a busy machine's more
    assert [cell["f1"]["verdict"] for cell in found["cells"]] == ["same", "same"]
    assert [cell["f1"]["documents"] for cell in found["cells"]] == [20, 20]
    assert output.startswith("2 cells: 1 slower, 1 same")
    assert max(map(len, output.splitlines())) <= 80
    markdown = (tmp_path / "gate.md").read_text()
    assert "### 2 cells: 1 slower, 1 same" in markdown
    assert "| slower |" in markdown
    assert nothing_is_left()


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., contextlib.AbstractContextManager[sides.Worker]]:
    """Start the process of a side, with a plugin where it is given, for one length."""

    @contextlib.contextmanager
    def start(
        model: object, dataset: object, variants: str = "fp32", plugin: str = "", name: str = "head"
    ) -> Iterator[sides.Worker]:
        (tmp_path / "outside.py").write_text(plugin)
        side = sides.Side(name, sys.executable, sides.tree_here(), (str(model),), str(dataset), (str(tmp_path),))
        subject = sides.Subject((16,), variants, plugins=("outside",) if plugin else ())
        with sides.Worker(side, subject, timeout_s=600) as worker:
            worker.send_open()
            yield worker

    return start


def recorded(worker: sides.Worker, variant: str = "fp32", documents: int = 20) -> dict[str, Any]:
    """What the gate keeps of a side's first cell."""
    named = {"model": worker.receive()["models"][0], "max_length": 16, "variant": variant}
    return worker.ask("prepare", **named) | worker.ask("judge", documents=documents, **named)


@pytest.mark.slow
def test_f1_and_limits_are_regressions_too(
    opened: Callable[..., Any], trained: Checkpoint, news: Dataset, tmp_path: Path
) -> None:
    write_as_predicted(trained, news, tmp_path / "as_predicted")
    worse = Path(shutil.copytree(trained.folder, tmp_path / "worse"))
    negate(worse)
    records = []
    for model in (trained.folder, worse):
        with opened(model, tmp_path / "as_predicted") as worker:
            records.append(recorded(worker) | {"peak_rss_bytes": 60e6})
    limits = [
        Limit(variant="fp*", max_disk_mb=0.5, max_memory_mb=50, max_latency_ms=0.001, max_f1_drop=-0.01),
        Limit(model="another", max_disk_mb=0.1),
    ]
    base, head = ({(0, 16, "fp32"): record, (1, 16, "fp32"): records[0]} for record in records)
    changed, same = run.compared(base, head, run.Budget(), limits, {"checkpoint_sha256"})
    assert (same.model, changed.model) == ("tiny", "worse")
    assert (same.judged["drop_verdict"], changed.judged["drop_verdict"]) == ("same", "worse")
    assert (same.judged["flips"], changed.judged["flips"] > 10) == (0, True)
    assert same.judged["score"] == 1, "what it predicts is what is asked for"
    same.head_s = [0.001, 0.002]
    run.judge_latency([same], limits)
    assert [sentence.split(" ")[0] for sentence in same.over] == ["F1", "disk", "memory", "latency"]
    assert run.exit_code([same]) == run.exit_code([changed]) == run.REGRESSION
    assert any(line.startswith("tiny-16-fp32: disk ") for line in verdicts.details([same.as_dict()]))


@pytest.mark.slow
def test_both_sides_are_judged_by_all_labels_of_a_document(
    opened: Callable[..., Any], multi: Checkpoint, several: Dataset, tmp_path: Path
) -> None:
    worse = Path(shutil.copytree(multi.folder, tmp_path / "worse"))
    weights = load_file(worse / "model.safetensors")
    weights["classifier.bias"] += 9  # every label of every document
    save_file(weights, worse / "model.safetensors", {"format": "pt"})
    answers = []
    for model in (multi.folder, worse):
        with opened(model, several.folder) as worker:
            answers.append(recorded(worker)["answers"])
    found = accuracy.compare_answers(*answers, 0.95, 0.01)
    assert found["documents"] == 20
    assert found["flips"] == 20 < found["label_flips"]
    every = np.ones((20, 5), dtype=bool)
    true = several.indicators(several.documents(20))
    assert found["score"] == pytest.approx(f1_score(true, every, average="weighted", zero_division=0))


@pytest.mark.parametrize(
    ("base", "head", "told"),
    [(0.0, 0.01, None), (0.02, 0.0, None), (0.0, 0.02, "base's is not"), (0.03, 0.02, "as base's is")],
)
def test_a_drop_over_the_variant_s_own_limit_is_told_of_head_and_decides_nothing(
    base: float, head: float, told: str | None
) -> None:
    lines = run.over_own_limit(*({"drop": drop, "max_drop": 0.01, "answers": {}} for drop in (base, head)))
    assert [line.endswith(str(told)) for line in lines] == [True] * bool(told)
    (cell, *_) = cells()
    cell.told = lines
    assert run.exit_code([cell]) == run.PASSED
    assert [line.removeprefix("m-1-v: ") for line in verdicts.details([cell.as_dict()])] == lines


@pytest.mark.slow
def test_a_gate_that_decides_nothing_says_so_at_once_and_does_not_pass(
    start: Callable[..., subprocess.Popen[str]], repository: Callable[[str, str], Path]
) -> None:
    folder = repository(plugin(), plugin("0"))
    few = ["--base-ref", "HEAD", "--variants", "mine", "--json", "gate.json", "--max-pairs", "5"]
    process = start(*few, cwd=folder, plugins=["outside"])
    output, errors = process.communicate()
    assert process.returncode == run.INCONCLUSIVE, output + errors
    assert "1 cell: 1 inconclusive" in output
    assert "give --max-pairs" in " ".join(output.split())
    assert "give --max-pairs" in errors
    (cell,) = json.loads((folder / "gate.json").read_text())["cells"]
    assert len(cell["log_ratios"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when_called", "told"),
    [
        ("os.kill(os.getpid(), 9)", "base could not run: its process was killed by signal 9"),
        ("time.sleep(3600)", "base could not run: its process has said nothing for 20 s ('build "),
        ("raise ValueError('broken')", "base could not run: ValueError: broken"),
    ],
    ids=["killed", "hangs", "raises"],
)
def test_a_side_that_fails_while_it_is_timed_is_named(
    opened: Callable[..., Any],
    trained: Checkpoint,
    news: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    when_called: str,
    told: str,
) -> None:
    code = plugin(TIMED + when_called)
    with opened(trained.folder, news.folder, "mine", code, name="base") as worker:
        load = recorded(worker, "mine")["load"]
        monkeypatch.setattr(worker, "timeout_s", 20)
        with pytest.raises(sides.SideError, match=re.escape(told)):  # it is warmed up as it is timed
            worker.ask("build", cell="a", model="tiny", load=load)


def test_a_side_that_cannot_run_is_named_and_leaves_nothing(
    start: Callable[..., subprocess.Popen[str]],
    repository: Callable[[str, str], Path],
    nothing_is_left: Callable[[], bool],
) -> None:
    folder = repository("import no_such_module", plugin())
    process = start("--base-ref", "HEAD", "--variants", "mine", cwd=folder, plugins=["outside"])
    output, errors = process.communicate()
    assert process.returncode == run.NOT_COMPARABLE, output + errors
    assert "base could not run: ModuleNotFoundError: No module named 'no_such_module'" in errors
    assert "Traceback" not in errors
    assert nothing_is_left()


@pytest.mark.slow
def test_sides_that_are_not_the_same_subject_are_not_compared(
    opened: Callable[..., Any], trained: Checkpoint, news: Dataset
) -> None:
    records = []
    for number in (1, 2):
        with opened(trained.folder, news.folder, "mine", plugin(options=f"{{'dtype': {number}}}")) as worker:
            records.append({(0, 16, "mine"): recorded(worker, "mine")})
    (cell,) = run.compared(*records, run.Budget(), (), ())
    assert run.exit_code([cell]) == run.NOT_COMPARABLE
    assert any("definition options: {'dtype': 1}, {'dtype': 2}" in why for why in cell.differs)
    assert not cell.judged


@pytest.mark.slow
def test_a_gate_that_is_killed_leaves_no_process_and_the_next_removes_its_tree(
    start: Callable[..., subprocess.Popen[str]],
    repository: Callable[[str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nothing_is_left: Callable[[], bool],
    processes: Callable[[str], list[str]],
    wait_until: Callable[..., None],
) -> None:
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path / "cache"))
    folder = repository(plugin(), plugin("0"))
    options = ["--base-ref", "HEAD", "--model", "bert-tiny", "--variants", "fp32"]
    process = start(*options, "--dataset", "news_mini", cwd=folder, plugins=["outside"], bare=True)
    while not list((tmp_path / "cache").glob("models/*/..*")):  # a side's training has begun
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.kill()
    process.wait()  # and not until its standard error is closed, which its children have open
    wait_until(lambda: not processes(f"TMPDIR={tmp_path / 'temporary'}"))
    assert len(git(folder, "worktree", "list").splitlines()) == 2
    monkeypatch.chdir(folder)
    with sides.commit("HEAD"):
        pass
    assert nothing_is_left()


def test_a_gate_keeps_the_tree_of_another_that_runs(
    repository: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository("", "")
    monkeypatch.chdir(folder)
    with sides.commit("HEAD") as first:
        with sides.commit("HEAD") as second:
            assert first.tree != second.tree
        assert (first.tree / "outside.py").is_file()
        assert len(git(folder, "worktree", "list").splitlines()) == 2


@pytest.mark.parametrize("gone", [False, True])
def test_a_tree_that_was_left_is_removed_and_one_of_the_person_s_is_not(
    *, repository: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    folder = repository("", "")
    left, theirs = (tmp_path / place / "tree" for place in ("qbert-base-left", "theirs"))
    for tree in (left, theirs):
        git(folder, "worktree", "add", "--detach", str(tree))
        (tree.parent / "lock").touch()
    if gone:
        shutil.rmtree(left.parent)
    monkeypatch.chdir(folder)
    with sides.commit("HEAD"):
        pass
    listed = git(folder, "worktree", "list").splitlines()
    assert [Path(line.split()[0]) for line in listed] == [folder, theirs]
    assert not left.parent.exists()
    assert (theirs / "outside.py").is_file()


def test_a_gate_that_is_stopped_leaves_nothing(
    start: Callable[..., subprocess.Popen[str]],
    repository: Callable[[str, str], Path],
    tmp_path: Path,
    nothing_is_left: Callable[[], bool],
) -> None:
    folder = repository(plugin(), plugin("time.sleep(0.5)"))
    process = start("--base-ref", "HEAD", "--variants", "mine", cwd=folder, plugins=["outside"])
    while not any((tmp_path / "temporary").iterdir()):
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM
    assert nothing_is_left()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name what to hold against"),
        (["--calibrate", "--base-ref", "HEAD"], "leave out --base-ref"),
        (["--calibrate", "--base-dataset", "HEAD"], "leave out --base-ref"),
        (["--base-ref", "HEAD"], "needs a git repository"),
        (["--base-python", "missing"], "'missing' does not exist"),
        (["--base-python", sys.executable, "--min-effect", "5"], "'5' is no percentage"),
        (["--base-python", sys.executable, "--max-lengths", "a"], "--max-lengths 'a'"),
        (["--base-model", "a", "--base-model", "b"], "given 2 times for 1 models"),
    ],
)
def test_a_mistake_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["gate", "--model", "./any", *arguments])
    assert done.exit_code == run.USAGE
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_mistake_that_head_finds_is_a_sentence(
    opened: Callable[..., Any], trained: Checkpoint, news: Dataset
) -> None:
    with (
        opened(trained.folder, news.folder, "int9") as worker,
        pytest.raises(InputError, match="unknown variant 'int9'"),
    ):
        worker.receive()
    with opened(trained.folder, news.folder) as worker:
        worker.receive()
        with pytest.raises(InputError, match="base and head have the same code, libraries, models and dataset, so"):
            run.refuse_equal_sides(worker, worker)


def cells(**changed: Any) -> list[run.Cell]:
    return [run.Cell("m", 1, "v", "m", 0.025, verdict="same"), run.Cell("m", 2, "v", "m", 0.025, **changed)]


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"verdict": "same"}, run.PASSED),
        ({"verdict": "faster"}, run.PASSED),
        ({"verdict": "new"}, run.PASSED),
        ({"verdict": "slower"}, run.REGRESSION),
        ({"verdict": "same", "judged": {"drop_verdict": "worse"}}, run.REGRESSION),
        ({"verdict": "same", "judged": {"drop_verdict": "better"}}, run.PASSED),
        ({"verdict": "not comparable", "over": ["disk"]}, run.REGRESSION),
        ({"verdict": "not comparable"}, run.NOT_COMPARABLE),
        ({"verdict": "inconclusive"}, run.PASSED),
        ({"verdict": "same", "judged": {"drop_verdict": "inconclusive"}}, run.PASSED),
    ],
)
def test_every_end_has_its_exit_code(changed: dict[str, Any], code: int) -> None:
    assert run.exit_code(cells(**changed)) == code
    unsure = "inconclusive" in (changed["verdict"], changed.get("judged", {}).get("drop_verdict"))
    assert run.exit_code(cells(**changed), strict=True) == (run.INCONCLUSIVE if unsure else code)
    assert run.exit_code(cells(verdict="inconclusive")[1:]) == run.INCONCLUSIVE, "nothing was decided"


def test_nothing_in_common_is_not_comparable() -> None:
    assert run.exit_code([]) == run.NOT_COMPARABLE


def test_a_pair_is_the_median_of_its_abbas() -> None:
    cell = run.Cell("m", 1, "v", "m", 0.025)
    # base head head base, three times; the machine gets slower by a tenth within each, and the second was disturbed
    cell.add([1.0, 1.1, 1.0, 1.1, 1.0, 1.1], [1.05, 1.05, 9.0, 1.05, 1.05, 1.05])
    (ratio,) = cell.log_ratios
    assert ratio == pytest.approx(0.0011, abs=1e-3)


@pytest.fixture(scope="module")
def worker(trained: Checkpoint, news: Dataset) -> Any:
    here = sides.Side("head", sys.executable, sides.tree_here(), (str(trained.folder),), str(news.folder))
    subject = sides.Subject((16, 64), "fp32")
    with sides.Worker(here, subject, timeout_s=600) as started:
        started.send_open()
        assert started.receive() == {"models": ["tiny"], "variants": ["fp32"]}
        yield started


def test_a_worker_times_what_it_built(worker: Any) -> None:
    prepared = worker.ask("prepare", model="tiny", max_length=64, variant="fp32")
    costs, plain, slowed = [], [], []
    for _ in range(5):  # more where a neighbour had the core
        costs.append(worker.ask("build", cell="a", model="tiny", load=prepared["load"]))
        cost = min(costs)
        for _ in range(9):
            plain.append(worker.ask("time", cell="a", cost_s=cost, slowdown=0.0))
            slowed.append(worker.ask("time", cell="a", cost_s=cost, slowdown=3.0))
        ratio = min(slowed) / min(plain)  # the least of each, which neighbours have delayed least
        if 3 < ratio < 5:
            break
    assert 2 < ratio < 8, "4 where nothing else runs"
    assert cost / 3 < min(plain) < 3 * cost


def test_a_slowdown_is_a_share_of_the_call() -> None:
    slowed, plain = [], []
    for _ in range(10):  # the least of each in turns, for a machine that is busy
        slowed.append(timing.seconds(lambda: time.sleep(0.05), 0.5))
        plain.append(timing.seconds(lambda: time.sleep(0.05), 0.0))
    assert min(plain) >= 0.05
    assert min(slowed) / min(plain) == pytest.approx(1.5, rel=0.05)


@pytest.mark.parametrize(
    ("cost_s", "untimed", "timed"), [(0.001, 4, 6), (0.003, 2, 2), (0.01, 1, 1), (0.02, 0, 1), (0.8, 0, 1)]
)
def test_short_calls_fill_a_turn_and_long_ones_are_one(cost_s: float, untimed: int, timed: int) -> None:
    assert (timing.TURN.settling_calls(cost_s), timing.TURN.timed_calls(cost_s)) == (untimed, timed)


@pytest.mark.parametrize(
    ("abbas", "spread", "spent_s", "enough"),
    [
        (0, 0.0, 0.0, False),
        (30, 0.001, 0.4, False),  # too soon, whatever they say
        (5, 0.001, 0.6, False),
        (6, 0.001, 0.6, True),
        (30, 0.05, 0.6, False),
        (60, 0.05, 1.2, True),
        (30, 0.1, 1.99, True),  # the next would be beyond the most
        (1, 0.0, 1.2, True),
        (1, 0.0, 0.9, False),
    ],
)
def test_a_cell_is_timed_until_its_abbas_tell_or_two_seconds_have_passed(
    abbas: int, spread: float, spent_s: float, *, enough: bool
) -> None:
    ratios = spread * np.random.default_rng(0).standard_normal(abbas)
    assert run.is_enough(ratios, spent_s) == enough


def test_a_calibration_tells_what_a_gate_finds_by_the_spread_of_the_worst_cell() -> None:
    def found(*spreads: float) -> list[dict[str, Any]]:
        noise = np.random.default_rng(0).standard_normal((len(spreads), 16)) * np.array(spreads)[:, None]
        cells = [{"log_ratios": ratios.tolist()} for ratios in noise]
        return run.calibrated({"cells": cells, "settings": {"max_pairs": 40}}, (0.02, 0.05))

    quiet, wide = found(0.005, 0.005), found(0.005, 0.03)
    assert [row["found"] for row in quiet] == [pytest.approx(1, abs=0.01)] * 2
    assert wide[0]["found"] < 0.8 < wide[1]["found"]
    for row in (*quiet, *wide):
        assert row["found_at_least"] <= row["found"]
        assert row["false_alarms"] <= 0.05
    assert wide[1]["spread"] == pytest.approx(0.03, rel=0.5)
    assert run.calibrated({"cells": [], "settings": {}}, (0.02,)) == []


@pytest.mark.parametrize(
    ("cells", "pair_s", "max_seconds", "told"),
    [
        (12, 10.0, None, ""),
        (
            12,
            10.0,
            100.0,
            "for 12 cells 12 pairs of 10 s are needed at least, and 100 s hold 10: give --max-seconds 180, or ",
        ),
        (1, 60.0, 60.0, "for 1 cell 8 pairs of 60 s are needed"),
    ],
)
def test_what_cannot_be_decided_in_time_is_told_with_what_can(
    cells: int, pair_s: float, max_seconds: float | None, told: str
) -> None:
    said = run.too_short(cells, pair_s, run.Budget(max_seconds=max_seconds))
    assert said.startswith(told)
    assert bool(said) == bool(told)


def test_a_cell_that_is_decided_leaves_its_error_to_the_rest() -> None:
    def judged(first_pairs: int) -> list[str]:
        both = cells(verdict="inconclusive")
        for cell, pairs in zip(both, (first_pairs, 8), strict=True):
            cell.log_ratios = [0.1 + number / 1e6 for number in range(pairs)]
        run.judge(both, looks=40)
        return [cell.verdict for cell in both]

    assert run.min_pairs(1, 40) == 8 < run.min_pairs(2, 40) == 9
    assert judged(8) == ["inconclusive", "inconclusive"]
    assert judged(9) == ["slower", "slower"]


def test_either_side_is_first_once_in_every_two_times_and_which_is_drawn() -> None:
    orders = run.random_orders("base", "head", np.random.default_rng(0))
    twos = [(next(orders), next(orders)) for _ in range(400)]
    assert all(set(two) == {("base", "head"), ("head", "base")} for two in twos)
    assert 0.4 < sum(one == ("base", "head") for one, _ in twos) / len(twos) < 0.6
    changes = sum(one[0] != other[0] for one, other in itertools.pairwise(twos))
    assert 0.4 < changes / len(twos) < 0.6, "drawn anew, not in a pattern"


def test_a_gate_that_looks_too_seldom_says_so() -> None:
    assert "give --max-pairs" in run.too_short(60, 1.0, run.Budget(max_pairs=8))


@pytest.fixture
def theirs(trained: Checkpoint, news: Dataset, tmp_path: Path) -> Path:
    """A stranger's repository: a model and a dataset, a plugin with a helper in a subfolder, and none of our code."""
    folder = tmp_path / "their repository"
    shutil.copytree(trained.folder, folder / "models" / "ours")
    write_as_predicted(trained, news, folder / "data" / "texts")
    (folder / "plugins").mkdir()
    (folder / "plugins" / "outside.py").write_text("import helper\n" + plugin())
    (folder / "plugins" / "helper.py").write_text("SCALE = 1\n")
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "base"]):
        git(folder, *command)
    return folder


@pytest.mark.slow
def test_a_model_in_the_repository_is_on_each_side_its_own(
    start: Callable[..., subprocess.Popen[str]], theirs: Path, tmp_path: Path
) -> None:
    negate(theirs / "models" / "ours")
    asked = ["--model", "ours", "--dataset", "../data/texts", "--variants", "fp32", "--max-pairs", "1"]
    (theirs / "pyproject.toml").write_text("[[tool.qbert.gate.limits]]\nmax_disk_mb = 0.5")
    process = start(*asked, "--base-ref", "main", "--json", tmp_path / "gate.json", cwd=theirs / "models", bare=True)
    output, errors = process.communicate()
    assert process.returncode == run.REGRESSION, output + errors
    found = json.loads((tmp_path / "gate.json").read_text())
    (cell,) = found["cells"]
    assert cell["f1"]["verdict"] == "worse"
    assert cell["f1"]["f1"] < cell["f1"]["f1_baseline"]
    assert cell["over"], "limits are the repository's, from whichever folder"
    assert found["sides"]["base"]["ref"] == "main"


@pytest.fixture
def sides_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[sides.Side, sides.Side]]:
    """Give base and head as the gate would make them in `folder`; base's files are gone by then unless `look` looks."""

    def make(folder: Path, model: str, dataset: str, **told: Any) -> Any:
        monkeypatch.chdir(folder)
        look = told.pop("look", lambda base, head: (base, head))
        told = {"ref": "main"} | told
        model, dataset = (os.path.normpath(folder / path) for path in (model, dataset))
        with sides.base_and_head((model,), dataset, **told) as (base, head):
            return look(base, head)

    return make


@pytest.mark.slow
def test_a_commit_that_changes_nothing_that_is_run_does_not_pass(
    theirs: Path, trained: Checkpoint, news: Dataset, sides_of: Callable[..., Any]
) -> None:
    negate(theirs / "models" / "ours")  # the model and the dataset that are asked for lie elsewhere

    def refuse(*both: sides.Side) -> None:
        subject = sides.Subject((16,), "fp32")
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(sides.Worker(side, subject, timeout_s=600)) for side in both]
            for worker in workers:
                worker.send_open()
                worker.receive()
            run.refuse_equal_sides(*workers)

    told = r"base \(main\) and head have the same code, .* dataset, none of them from the repo"
    with pytest.raises(InputError, match=told):
        sides_of(theirs, str(trained.folder), str(news.folder), look=refuse)


@pytest.mark.parametrize("start", ["", "models/ours", "data"])
def test_what_lies_in_the_repository_is_found_in_base_from_any_folder(
    theirs: Path, sides_of: Callable[..., Any], start: str
) -> None:
    negate(theirs / "models" / "ours")
    model, dataset = (os.path.relpath(theirs / path, theirs / start) for path in ("models/ours", "data/texts"))
    base, head, weights = sides_of(
        *(theirs / start, model, dataset),
        look=lambda base, head: (
            base,
            head,
            [load_file(Path(side.models[0], "model.safetensors")) for side in (base, head)],
        ),
    )
    assert base.tree
    assert base.models == (str(base.tree / "models" / "ours"),)
    assert base.dataset == str(base.tree / "data" / "texts")
    assert head.models == (str(theirs / "models" / "ours"),)
    assert (weights[0]["classifier.weight"] == -weights[1]["classifier.weight"]).all()


def test_a_link_in_the_repository_leads_base_where_it_led_then(theirs: Path, sides_of: Callable[..., Any]) -> None:
    shutil.copytree(theirs / "models" / "ours", theirs / "models" / "next")
    (theirs / "models" / "current").symlink_to("ours")
    git(theirs, "add", ".")
    git(theirs, "commit", "-qm", "link")
    (theirs / "models" / "current").unlink()
    (theirs / "models" / "current").symlink_to("next")
    led = sides_of(
        *(theirs, "models/current", "data/texts"),
        look=lambda *both: [Path(side.models[0]).resolve().name for side in both],
    )
    assert led == ["ours", "next"]


def test_what_lies_outside_the_repository_is_for_both(
    theirs: Path, trained: Checkpoint, news: Dataset, sides_of: Callable[..., Any]
) -> None:
    base, head = sides_of(theirs, str(trained.folder), str(news.folder))
    assert (base.models, base.dataset) == (head.models, head.dataset)


def test_what_is_named_for_base_is_taken_as_it_is_named(theirs: Path, sides_of: Callable[..., Any]) -> None:
    git(theirs, "rm", "-qr", "--cached", ".")
    git(theirs, "commit", "-qm", "nothing")
    model, dataset = str(theirs / "models" / "ours"), str(theirs / "data" / "texts")
    base, head = sides_of(theirs, model, dataset, base_models=(model,), base_dataset=dataset)
    assert (base.models, base.dataset) == (head.models, head.dataset) == ((model,), dataset)


def _untracked(folder: Path) -> None:
    shutil.copytree(folder / "models" / "ours", folder / "models" / "new")


def _ignored(folder: Path) -> None:
    (folder / ".gitignore").write_text("*.safetensors\n")
    _untracked(folder)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "model")


@pytest.mark.parametrize(
    ("change", "model", "dataset", "told"),
    [
        (_untracked, "new", "texts", "main has no models/new/config.json of its own .* with --base-model"),
        (_ignored, "new", "texts", r"main has no models/new/\*.safetensors of its own .* with --base-model"),
        (lambda _: None, "ours", "none", "main has no data/none/train.csv of its own .* with --base-dataset"),
    ],
    ids=["only at head", "weights ignored", "no dataset"],
)
def test_what_base_lacks_is_named(
    theirs: Path, sides_of: Callable[..., Any], change: Callable[[Path], None], model: str, dataset: str, told: str
) -> None:
    change(theirs)
    with pytest.raises(InputError, match=told):
        sides_of(theirs, f"models/{model}", f"data/{dataset}")
    assert len(git(theirs, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize("file", ["models/ours/model.safetensors", "data/texts/test.csv"])
@pytest.mark.parametrize("side", ["base", "head"])
def test_a_pointer_of_git_lfs_is_no_damage(theirs: Path, sides_of: Callable[..., Any], side: str, file: str) -> None:
    whole = (theirs / file).read_bytes()
    (theirs / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    if side == "base":
        git(theirs, "commit", "-qam", "pointer")
        (theirs / file).write_bytes(whole)
    with pytest.raises(InputError, match=f"{side}'s {file} is a Git LFS pointer .*git lfs pull"):
        sides_of(theirs, "models/ours", "data/texts")


def test_modules_in_the_repository_are_base_s_own(
    theirs: Path, trained: Checkpoint, news: Dataset, sides_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{theirs / 'plugins'}{os.pathsep}/elsewhere")
    monkeypatch.syspath_prepend(str(theirs / "editable"))
    monkeypatch.syspath_prepend(str(theirs / ".venv" / "lib" / "site-packages"))
    base, head = sides_of(theirs, str(trained.folder), str(news.folder))
    assert head.path == (str(theirs / "plugins"), "/elsewhere", str(theirs / "editable"))
    assert base.path == (str(base.tree / "plugins"), "/elsewhere", str(base.tree / "editable"))


def test_modules_are_found_where_the_gate_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "plugins")
    assert sides.module_path(None) == (str(tmp_path / "plugins"),)
    monkeypatch.syspath_prepend(str(tmp_path))  # as python -m does
    assert sides.module_path(None) == (str(tmp_path / "plugins"), str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("edited", "same"), [("helper.py", False), ("unrelated.py", True)])
def test_code_is_the_same_where_nothing_that_is_imported_was_edited(
    *,
    theirs: Path,
    trained: Checkpoint,
    news: Dataset,
    sides_of: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    edited: str,
    same: bool,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(theirs / "plugins"))
    (theirs / "plugins" / edited).write_text("SCALE = 2\n")
    subject = sides.Subject((16,), "mine", plugins=("outside",))

    def fingerprints(*both: sides.Side) -> list[Any]:
        found = []
        for side in both:
            with sides.Worker(side, subject, timeout_s=600, shown=True) as worker:
                worker.send_open()
                assert worker.receive() == {"models": ["tiny"], "variants": ["mine"]}
                found.append(worker.ask("fingerprints")["same"])
        return found

    base, head = sides_of(theirs, str(trained.folder), str(news.folder), look=fingerprints)
    assert (base["code"] == head["code"]) == same
    assert {name for name in base if base[name] != head[name]} <= {"code"}


def test_what_a_worker_brings_along_imports_nothing_that_an_older_side_may_lack() -> None:
    brought = re.findall(r'own_module\("(\w+)", "(\w+)"\)', Path(timing.__file__).read_text(encoding="utf-8"))
    assert len(brought) > 2
    for room, name in brought:
        assert set(sources.files(f"qbert.{room}.{name}")) == {f"qbert.{room}.{name}"}


def test_a_worker_takes_a_module_by_the_name_that_its_side_has() -> None:
    assert timing.first_module("qbert.measure.accuracy", "qbert.evaluate").__name__ == "qbert.measure.accuracy"
    assert timing.first_module("qbert.no_such_module", "qbert.inputs.labels").__name__ == "qbert.inputs.labels"
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        timing.first_module("qbert.no_such_module", "qbert.nor_this_one")
