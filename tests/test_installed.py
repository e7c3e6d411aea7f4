"""The wheel in somebody else's repository: what it brings, what it leaves alone, and what it says."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from qbert.cli.bench import DEFAULTS
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset

ROOT = Path(__file__).parents[1]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
THEIR_CONFTEST = """
import pytest

def pytest_addoption(parser):
    parser.addoption("--model", default="theirs")
    parser.addoption("--dataset")

@pytest.fixture(params=[1, 2])
def cell(request):
    return request.param

@pytest.fixture
def model(pytestconfig):
    return pytestconfig.getoption("--model")
"""
THEIR_TESTS = """
import sys, pytest

@pytest.mark.ours
def test_theirs(cell, model, benchmark):
    benchmark.pedantic(int, rounds=2)
    assert (cell in (1, 2), model) == (True, "theirs")

def test_nothing_heavy_is_imported():
    ours = {name for name in sys.modules if name.partition(".")[0] == "qbert"}
    rooms = {"qbert.system", "qbert.system.errors", "qbert.system.former", "qbert.inputs", "qbert.inputs.options"}
    assert ours <= {"qbert", "qbert.pytest_plugin", *rooms}
    assert not {"torch", "transformers", "pandas", "sklearn"} & set(sys.modules)
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    """Run a module in the repository with a wheel's qbert, before that of this clone."""

    def start(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"PYTHONPATH": str(site), "COLUMNS": "80", "CI": ""}
        return subprocess.run(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | own | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return start


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A repository with options, fixtures, marks and benchmarks of its own, and nothing of ours."""
    (tmp_path / "pyproject.toml").write_text('[tool.pytest]\nstrict = true\nmarkers = ["ours: a mark"]\n')
    (tmp_path / "conftest.py").write_text(THEIR_CONFTEST)
    (tmp_path / "test_theirs.py").write_text(THEIR_TESTS)
    return tmp_path


@pytest.fixture
def table(tmp_path: Path, trained: Checkpoint, news: Dataset) -> Path:
    """A repository whose pyproject.toml has our settings."""
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.qbert]\nmodels = ["{trained.folder}"]\ndataset = "{news.folder}"\n'
        'variants = "fp32,int8-dynamic-onednn"\nmax_lengths = [16]\nmax_f1_drop = 1\n'
    )
    return tmp_path


def test_the_wheel_brings_all_that_runs(site: Path) -> None:
    names = {path.relative_to(site).as_posix() for path in site.rglob("*")}
    for needed in (
        *("qbert/py.typed", "qbert/pytest_plugin.py", "qbert/bench/__init__.py", "qbert/bench/test_latency.py"),
        *("qbert/data/news_mini/train.csv", "qbert/variants/native/native.cpp", "qbert/results/page.html.jinja"),
    ):
        assert needed in names
    assert (site / "qbert/bench/test_latency.py").read_text() == (ROOT / "bench/test_latency.py").read_text()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], marks=SLOW),
        ["-n", "2"],
        pytest.param(["-p", "randomly"], marks=SLOW),
        pytest.param(["-p", "qbert.pytest_plugin"], marks=SLOW),
    ],
)
def test_the_tests_of_others_run_as_without_us(run: Run, theirs: Path, more: list[str]) -> None:
    done = run("pytest", "--benchmark-json=run.json", *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert "tool.qbert" not in done.stdout
    if "-n" not in more:  # pytest-benchmark is off under pytest-xdist
        assert "qbert" not in json.loads((theirs / "run.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize("off", ["qbert.pytest_plugin", "benchmark"])
def test_either_plugin_can_be_off_in_the_tests_of_others(run: Run, off: str) -> None:
    done = run("pytest", "-p", f"no:{off}", "-k", "heavy")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_damaged_table_or_run_is_of_no_concern_to_the_tests_of_others(run: Run, theirs: Path) -> None:
    with (theirs / "pyproject.toml").open("a") as file:
        file.write("[tool.qbert]\nmodels = 3\n")
    done = run("pytest", "--benchmark-autosave")
    again = run("pytest", "--benchmark-compare", "--benchmark-compare-fail=min:100000%")
    assert (done.returncode, again.returncode) == (0, 0), again.stdout
    asked = run("qbert", "bench", "--collect-only")
    assert asked.returncode == 4
    assert f"{theirs / 'pyproject.toml'}: [tool.qbert] cannot be used" in asked.stdout + asked.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("theirs", "table")
@pytest.mark.parametrize(
    "command", ["qbert bench", pytest.param("pytest -p qbert.pytest_plugin --pyargs qbert.bench", marks=SLOW)]
)
def test_the_cases_run_with_the_settings_of_the_repository(run: Run, command: str) -> None:
    done = run(*command.split(), "--collect-only", "-q", "-k", "latency")
    assert done.returncode == 0, done.stdout + done.stderr
    names = [line.rpartition("::")[2] for line in done.stdout.splitlines() if "::" in line]
    assert names == ["test_latency[tiny-16-fp32]", "test_latency[tiny-16-int8-dynamic-onednn]"]


@pytest.mark.slow
@pytest.mark.usefixtures("table")
def test_the_command_line_beats_the_table_and_options_have_two_names(run: Run) -> None:
    for option in ("--max-lengths=8", "--qbert-max-lengths=8"):
        done = run("qbert", "bench", "--collect-only", "-q", "-k", "accuracy and fp32", option)
        assert "test_accuracy[tiny-8-fp32]" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_is_saved_in_the_repository_and_compared_with_the_next(run: Run, table: Path) -> None:
    few = ("qbert", "bench", "-k", "accuracy")
    first = run(*few, "--benchmark-autosave")
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"rootdir: {table}" in first.stdout
    (saved,) = (table / ".benchmarks").rglob("*.json")
    found = json.loads(saved.read_text())
    assert {one["extra_info"]["variant"] for one in found["benchmarks"]} == {"fp32", "int8-dynamic-onednn"}
    for benchmark in found["benchmarks"]:  # as where the environment had another place
        benchmark["fullname"] = f"elsewhere/qbert/bench/{benchmark['fullname']}"
    saved.write_text(json.dumps(found))
    again = run(*few, "--benchmark-compare")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "previous run's cells were not run" not in again.stdout
    assert again.stdout.count("(0001_") == again.stdout.count("(NOW)") == 2  # each cell beside its previous one


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(["-n", "2"], "leave out pytest-xdist's -n", marks=SLOW),
        pytest.param(
            *(["-p", "no:benchmark"], "the cells need pytest-benchmark, and it is off: leave out -p no:benchmark"),
            marks=SLOW,
        ),
        pytest.param(["--model", "nowhere/at/all"], "model 'nowhere/at/all' is no folder here", marks=SLOW),
        pytest.param(["--max-lengths", "0"], "max-lengths: invalid counts value: '0'", marks=SLOW),
    ],
)
def test_what_cannot_be_timed_says_so(run: Run, arguments: list[str], told: str) -> None:
    done = run("qbert", "bench", *arguments)
    assert done.returncode == 4
    assert told in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_teams_own_case_has_our_fixtures(run: Run, table: Path) -> None:
    (table / "test_ours.py").write_text("""
def test_documents(qbert_documents, qbert_suite):
    assert len(qbert_documents) <= len(qbert_suite.dataset.test)

def test_tokenizing(cell, benchmark):
    benchmark.group = cell.name
    encoding = benchmark(cell.encoder, "a text of ours", max_length=cell.max_length)
    assert cell.classifier(encoding).shape == (1, 5)
""")
    done = run("pytest", "test_ours.py", "--benchmark-json=run.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    names = [one["name"] for one in json.loads((table / "run.json").read_text())["benchmarks"]]
    assert names == ["test_tokenizing[tiny-16-fp32]", "test_tokenizing[tiny-16-int8-dynamic-onednn]"]
    parallel = run("pytest", "test_ours.py", "-n", "2")
    assert parallel.returncode == 4
    assert "leave out pytest-xdist's -n" in parallel.stdout


@pytest.mark.parametrize("autoload", [True, pytest.param(False, marks=SLOW)])
def test_the_clone_has_the_short_names_whether_or_not_it_is_installed(*, autoload: bool) -> None:
    options = ["--model", "bert-base", "--qbert-variants", "fp32", "--max-lengths", "16", "-pno:cacheprovider"]
    if not autoload:
        options += ["-p", "pytest_benchmark.plugin", "-p", "pytest_timeout"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "bench/", *options],
        cwd=ROOT,
        env=os.environ | ({} if autoload else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bench/test_latency.py::test_latency[bert-base-16-fp32]" in done.stdout


def test_a_clone_has_the_options_of_pytest_benchmark_that_the_command_gives() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["addopts"]
    assert set(DEFAULTS) <= set(options)
