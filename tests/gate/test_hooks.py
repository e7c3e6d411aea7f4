"""The gate in a git hook: what is committed is what the person meant, and our git sees nothing of the hook's."""

import ast
import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import qbert
from qbert.cli import setup as init
from qbert.gate import sides
from qbert.system.errors import InputError

WHO = ("-c", "user.name=n", "-c", "user.email=e@example.org")
LOCAL = subprocess.run(["git", "rev-parse", "--local-env-vars"], capture_output=True, text=True, check=True).stdout
LOOK = f"""#!{sys.executable}
from pathlib import Path
from qbert.gate import sides
with sides.commit("HEAD") as base:
    Path("{{seen}}").write_text((base.tree / "model").read_text())
"""
"""A hook that looks at base as the gate does."""


def git(folder: Path, *arguments: str) -> str:
    command = ["git", *WHO, "-c", "init.defaultBranch=main", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit of two files; we are in it."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "model").write_text("of base")
    (folder / "beside").write_text("of base")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    monkeypatch.chdir(folder)
    return folder


def _linked(repository: Path) -> Path:
    git(repository, "worktree", "add", "-q", "-b", "other", "../linked")
    return repository.parent / "linked"


@pytest.mark.parametrize(
    ("linked", "hook", "arguments"),
    [
        (False, "pre-commit", ["-a"]),
        (False, "commit-msg", ["model"]),
        (False, "prepare-commit-msg", []),
        (True, "pre-commit", []),
        (True, "commit-msg", ["--include", "model"]),
    ],
)
def test_what_is_committed_is_what_the_person_wrote(
    repository: Path, *, linked: bool, hook: str, arguments: list[str]
) -> None:
    folder = _linked(repository) if linked else repository
    write_script(repository / ".git" / "hooks" / hook, LOOK.format(seen=repository.parent / "seen"))
    (folder / "model").write_text("of head")
    if not arguments:
        git(folder, "add", "model")
    git(folder, "commit", "-qm", "two", *arguments)
    assert (repository.parent / "seen").read_text() == "of base"
    assert git(folder, "show", "HEAD:model") == "of head"
    assert git(folder, "show", "HEAD:beside") == "of base"
    assert git(folder, "status", "--porcelain") == ""
    assert git(repository, "worktree", "list").count("\n") == int(linked)


def test_what_is_staged_in_part_stays_so(repository: Path) -> None:
    write_script(repository / ".git" / "hooks" / "pre-commit", LOOK.format(seen=repository.parent / "seen"))
    (repository / "model").write_text("staged")
    git(repository, "add", "model")
    (repository / "model").write_text("not staged")
    git(repository, "commit", "-qm", "two")
    assert git(repository, "show", "HEAD:model") == "staged"
    assert git(repository, "status", "--porcelain") == "M model"
    assert (repository / "model").read_text() == "not staged"


def test_an_alias_and_a_command_of_settings_change_nothing(repository: Path) -> None:
    write_script(repository.parent / "look", LOOK.format(seen=repository.parent / "seen"))
    (repository / "model").write_text("of head")
    git(repository, "-c", f"alias.look=!{repository.parent / 'look'}", "-c", "core.bare=true", "look")
    assert (repository.parent / "seen").read_text() == "of base"
    assert git(repository, "status", "--porcelain") == "M model"


def test_no_git_that_we_start_sees_the_names_of_another(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.run(["sh", "-c", "command -v git"], capture_output=True, text=True, check=True).stdout.strip()
    write_script(
        tmp_path / "bin" / "git", f'#!/bin/sh\n{{ echo "called $*"; env; }} >> {tmp_path}/log\nexec {real} "$@"\n'
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for name in LOCAL.split():
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", "/nowhere")  # not of one repository: kept
    with sides.base_and_head(("bert-tiny",), "news_mini", ref="HEAD"):
        pass
    with contextlib.suppress(InputError):
        init.repository(repository)
    log = (tmp_path / "log").read_text().splitlines()
    assert sum(line.startswith("called") for line in log) > 4
    assert "GIT_CEILING_DIRECTORIES=/nowhere" in log
    assert not {line.partition("=")[0] for line in log} & set(LOCAL.split())


def test_one_function_starts_git() -> None:
    root = Path(qbert.__file__).parent
    starting = [
        path.relative_to(root)
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.List | ast.Tuple) and node.elts
        if isinstance(node.elts[0], ast.Constant) and node.elts[0].value == "git"
    ]
    assert starting == [Path("system/git.py")]


@pytest.mark.parametrize("place", [".git/hooks", "hooks of the team"])
def test_no_hook_and_no_monitor_of_the_repository_runs(repository: Path, tmp_path: Path, place: str) -> None:
    if place != ".git/hooks":
        git(repository, "config", "core.hooksPath", place)
    told = f"#!/bin/sh\necho $0 >> {tmp_path}/ran\n"
    for name in ("post-checkout", "post-index-change", "reference-transaction"):
        write_script(repository / place / name, told)
    write_script(tmp_path / "monitor", told)
    git(repository, "config", "core.fsmonitor", str(tmp_path / "monitor"))
    git(repository, "config", "hook.ours.command", f"echo configured >> {tmp_path}/ran")
    for event in ("post-checkout", "post-index-change", "reference-transaction"):
        git(repository, "config", "--add", "hook.ours.event", event)
    (tmp_path / "ran").unlink(missing_ok=True)
    with sides.commit("HEAD") as base:
        assert (base.tree / "model").read_text() == "of base"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (
            lambda _, patch: patch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1"),
            "dubious ownership.*safe.directory",
        ),
        (lambda folder, _: (folder / ".git" / "config").write_text("[core"), "bad config"),
        (lambda _, patch: patch.setenv("PATH", "/nowhere"), "git cannot be started"),
        (lambda folder, patch: patch.chdir(folder.parent), "not a git repository"),
    ],
    ids=["another owner", "damaged", "no git", "none"],
)
def test_why_there_is_no_repository_is_git_s_own_reason(
    repository: Path, monkeypatch: pytest.MonkeyPatch, break_it: Callable[..., object], told: str
) -> None:
    break_it(repository, monkeypatch)
    with pytest.raises(InputError, match=f"--base-ref needs a git repository.*{told}"), sides.commit("HEAD"):
        pass


def test_why_a_commit_cannot_be_checked_out_is_git_s_own_reason(repository: Path) -> None:
    (repository / ".gitattributes").write_text("model filter=ours\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "two")
    git(repository, "config", "filter.ours.smudge", "echo the store is closed >&2; false")
    git(repository, "config", "filter.ours.required", "true")
    with pytest.raises(InputError, match=r"cannot check HEAD out.*the store is closed"), sides.commit("HEAD"):
        pass
    assert git(repository, "worktree", "list").count("\n") == 0


def test_the_person_s_worktrees_are_kept_though_their_folders_are_away(repository: Path) -> None:
    folder = _linked(repository)
    folder.rename(repository.parent / "unplugged")
    with sides.commit("HEAD"):
        pass
    (repository.parent / "unplugged").rename(folder)
    assert git(folder, "rev-parse", "--abbrev-ref", "HEAD") == "other"


def test_a_gate_s_worktree_without_a_folder_is_forgotten(repository: Path, tmp_path: Path) -> None:
    lost = tmp_path / f"{sides.FOLDER}lost" / sides.TREE
    git(repository, "worktree", "add", "-q", "--detach", str(lost))
    (lost / ".git").unlink()
    for path in [*lost.iterdir(), lost, lost.parent]:
        path.rmdir() if path.is_dir() else path.unlink()
    with sides.commit("HEAD"):
        pass
    assert git(repository, "worktree", "list").count("\n") == 0
