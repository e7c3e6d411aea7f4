"""Repositories as people have them: which tree, models and data the two sides of the gate get."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qbert.gate import sides
from qbert.system.errors import InputError

COMMIT = ["-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "-qm", "one"]


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def write_model(folder: Path, content: str) -> None:
    """Write what is taken for a checkpoint's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(content)
    (folder / "model.safetensors").write_text(content)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit that holds a model, in a folder whose name has blanks; we are in it."""
    folder = tmp_path / "our  own repository"
    write_model(folder / "the model", "of base")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, *COMMIT)
    monkeypatch.chdir(folder)
    return folder


def both(ref: str, model: Path) -> Iterator[tuple[str, str]]:
    """What base and head have in the model's configuration."""
    with sides.base_and_head((str(model),), "news_mini", ref=ref) as found:
        yield tuple((Path(side.models[0]) / "config.json").read_text() for side in found)


def test_a_dirty_tree_is_head_and_its_commit_is_base(repository: Path) -> None:
    write_model(repository / "the model", "of head")
    assert next(both("HEAD", repository / "the model")) == ("of base", "of head")


def test_a_detached_head_is_a_head(repository: Path) -> None:
    write_model(repository / "the model", "of head")
    git(repository, "add", ".")
    git(repository, *COMMIT)
    git(repository, "checkout", "-q", "--detach")
    assert next(both("HEAD~1", repository / "the model")) == ("of base", "of head")


def test_a_shallow_clone_says_how_to_get_the_base(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(repository, *COMMIT, "--allow-empty")
    clone = repository.parent / "shallow"
    git(repository.parent, "clone", "-q", "--depth", "1", f"file://{repository}", str(clone))
    monkeypatch.chdir(clone)
    with pytest.raises(InputError, match=r"--base-ref HEAD~1 is no commit .* \(git fetch --unshallow\)"):
        next(both("HEAD~1", clone / "the model"))


def test_a_models_submodule_is_told(repository: Path) -> None:
    other = repository.parent / "models"
    write_model(other / "one", "of another repository")
    git(other, "init", "-q")
    git(other, "add", ".")
    git(other, *COMMIT)
    git(repository, "submodule", "--quiet", "add", str(other), "modules")
    git(repository, *COMMIT)
    with pytest.raises(InputError, match=r"has no modules/one/config.json .*modules is a submodule.* --base-model"):
        next(both("HEAD", repository / "modules" / "one"))


def test_an_ignored_model_is_told(repository: Path) -> None:
    (repository / ".gitignore").write_text("ignored/\n")
    write_model(repository / "ignored", "here alone")
    with pytest.raises(InputError, match=r"HEAD has no ignored/config.json .*ignored\): commit it, or name base"):
        next(both("HEAD", repository / "ignored"))


def test_nothing_is_left_of_a_base(repository: Path) -> None:
    with sides.base_and_head(("bert-tiny",), "news_mini", ref="HEAD") as (base, _):
        tree = base.tree
        assert tree
        assert tree.is_dir()
    assert not tree.exists()
    assert git(repository, "worktree", "list").count("\n") == 0


def test_qbert_is_the_installed_one_on_both_sides(repository: Path) -> None:
    assert repository.is_dir()
    with sides.base_and_head(("bert-tiny",), "news_mini", ref="HEAD") as found:
        for side in found:
            path = os.pathsep.join([*([str(side.tree)] if side.tree else []), *side.path])
            script = "import qbert; print(qbert.__file__)"
            run = [side.python, "-P", "-c", script]
            place = subprocess.run(
                run, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
            )
            assert Path(place.stdout.strip()) == Path(sys.modules["qbert"].__file__ or "")
