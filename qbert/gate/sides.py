"""The two sides of `qbert gate`: the sources of each side's code, libraries, models and data, and its process."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from qbert.inputs.dataset import files_of
from qbert.system.children import Child, ChildError
from qbert.system.errors import CannotRunError, InputError
from qbert.system.git import GitError, run_git

CELL = ("cell", "model", "max_length", "variant")
CHECKPOINT = ("config.json", "*.safetensors")
"""Patterns of the files in a model's folder."""


class SideError(Exception):
    """A side could not run; the message says which side, and why."""


@dataclass(frozen=True)
class Side:
    """Where one side's code, libraries, models and data come from."""

    name: str
    """`base` or `head`."""
    python: str
    tree: Path | None
    """First on the module path; None: the qbert that the interpreter has installed."""
    models: tuple[str, ...]
    dataset: str
    path: tuple[str, ...] = ()
    """Next on the module path: folders of plugins and their imports."""
    ref: str | None = None
    """The user's name for the commit that `tree` is a checkout of; None if it is none."""


@dataclass(frozen=True)
class Subject:
    """What both sides run."""

    max_lengths: tuple[int, ...]
    variants: str
    documents: int | None = None
    plugins: tuple[str, ...] = ()


class Worker(Child):
    """A side's process; leaving the context kills it and its children."""

    def __init__(self, side: Side, subject: Subject, *, timeout_s: float, shown: bool = False) -> None:
        """Start it; with `shown` its messages go to standard error.

        Raises:
            SideError: it cannot be started.
        """
        self.side, self._subject, self._request = side, subject, ""
        path = os.pathsep.join([*([str(side.tree)] if side.tree else []), *side.path])
        program = str(Path(__file__).with_name("worker.py"))
        try:
            super().__init__("its process", program, python=side.python, path=path, shown=shown, timeout_s=timeout_s)
        except OSError as error:
            raise SideError(f"{side.name} could not run: {side.python}: {error.strerror}") from error

    def send_open(self) -> None:
        """Request that it make its suite; the answer has the names of the `models`, in order, and of the `variants`."""
        subject = asdict(self._subject)
        del subject["documents"]
        self.send(
            "open", **subject, dataset=self.side.dataset, models=self.side.models, lenient=self.side.name == "base"
        )

    def send(self, do: str, **arguments: Any) -> None:  # noqa: ANN401
        """Send a request; `receive` waits for its answer."""
        self._request = " ".join([do, *(str(arguments[name]) for name in CELL if name in arguments)])
        super().send(do, **arguments)

    def receive(self) -> Any:  # noqa: ANN401
        """Return the answer to the last request.

        Raises:
            InputError: head finds a mistake in the user's request.
            CannotRunError: the variant cannot run the model.
            SideError: the side failed, ended, or did not answer in time.
        """
        try:
            return super().receive()
        except InputError as error:
            is_mistake = self.side.name == "head" and self._request == "open" and not isinstance(error, ChildError)
            if is_mistake or isinstance(error, CannotRunError):
                raise
            raise SideError(f"{self.side.name} could not run: {error} ('{self._request}')") from error


@dataclass(frozen=True)
class Commit:
    """A commit of the current repository, checked out into a separate folder."""

    ref: str
    """The user's name for it."""
    sha: str
    repository: Path
    tree: Path

    def side(self, side: Side, *, models: bool, dataset: bool) -> Side:
        """Return `side` with this commit's code and, if requested, this commit's `models` and `dataset`."""
        own_models = tuple(self.own(model, CHECKPOINT, "--base-model") for model in side.models) if models else None
        return replace(
            side,
            tree=self.tree,
            models=side.models if own_models is None else own_models,
            dataset=self.own(side.dataset, files_of(side.dataset), "--base-dataset") if dataset else side.dataset,
            path=tuple(map(self.locate, side.path)),
            ref=self.ref,
        )

    def locate(self, path: str) -> str:
        """Return the counterpart of `path` in this commit's tree; `path` itself if it is outside the repository."""
        # The path as given comes first: the target of a link inside the repository is the commit's own, too.
        inside = [name for name in (Path(path), Path(path).resolve()) if name.is_relative_to(self.repository)]
        candidates = [self.tree / name.relative_to(self.repository) for name in inside]
        return str(next((file for file in candidates if file.exists()), candidates[-1])) if candidates else path

    def _submodule(self, relative: Path) -> Path | None:
        """Return the submodule that contains the path `relative` to this commit's tree; None if none does."""
        listed = {
            path: git("ls-tree", "--full-tree", self.sha, "--", str(path))
            for path in (relative, *relative.parents[:-1])
        }
        return next((path for path, line in listed.items() if line and line.startswith(SUBMODULE)), None)

    def own(self, folder: str, needed: Sequence[str], option: str) -> str:
        """Return this commit's version of head's `folder`; the error message recommends `option` to name another.

        Raises:
            InputError: this commit has no such folder, or no file there matches one of the patterns `needed`.
        """
        if not Path(folder).is_absolute():  # built in, or on the hub
            return folder
        counterpart = Path(self.locate(folder))
        if counterpart.is_relative_to(self.tree) and (
            missing := [pattern for pattern in needed if not any(counterpart.glob(pattern))]
        ):
            relative = counterpart.relative_to(self.tree)
            why = "not committed there, or ignored): commit it, or"
            if module := self._submodule(relative):
                why = f"{module} is a submodule, of which it holds the commit's number alone): check that out and"
            raise InputError(f"{self.ref} has no {relative / missing[0]} of its own ({why} name base's with {option}")
        return str(counterpart)


SUBMODULE = "160000 "
"""The mode with which git lists a submodule."""


@contextlib.contextmanager
def commit(ref: str) -> Iterator[Commit]:
    """Check out `ref` of the current repository into a temporary folder, which is removed at the end.

    Raises:
        InputError: there is no repository, or no such commit, or it cannot be checked out.
    """
    try:
        root = run_git("rev-parse", "--show-toplevel")
    except GitError as error:
        raise InputError(f"--base-ref needs a git repository, and here git says: {error}") from error
    try:
        sha = run_git("rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}")
    except GitError as error:
        deepen = "git fetch --unshallow" if git("rev-parse", "--is-shallow-repository") == "true" else "git fetch"
        raise InputError(
            f"--base-ref {ref} is no commit of this repository ({error}): fetch it ({deepen}), or name another"
        ) from error
    _remove_leftover_trees()
    with tempfile.TemporaryDirectory(prefix=FOLDER) as name:
        folder = Path(name).resolve()
        with FileLock(folder / LOCK):
            tree = folder / TREE
            try:
                try:
                    run_git("worktree", "add", "--quiet", "--detach", str(tree), sha)
                except GitError as error:
                    raise InputError(f"git cannot check {ref} out into {tree}: {error}") from error
                yield Commit(ref, sha, Path(root).resolve(), tree)
            finally:
                git("worktree", "remove", "--force", "--force", str(tree))


FOLDER, TREE, LOCK = "qbert-base-", "tree", "lock"
"""The prefix of the temporary folder's name; in it, the commit's tree, and a lock held while the gate runs."""


def _remove_leftover_trees() -> None:
    """Remove checkouts of this repository's commits that killed gates have left; no worktree of the person's."""
    for line in (git("worktree", "list", "--porcelain") or "").splitlines():
        tree = Path(line.removeprefix("worktree "))
        folder = tree.parent
        if tree.name != TREE or not folder.name.startswith(FOLDER):
            continue
        if not (folder / LOCK).is_file():
            if not tree.exists():
                git("worktree", "remove", "--force", "--force", str(tree))
            continue
        with contextlib.suppress(OSError), FileLock(folder / LOCK, timeout=0):  # a Timeout is an OSError
            git("worktree", "remove", "--force", "--force", str(tree))
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def base_and_head(
    models: tuple[str, ...],
    dataset: str,
    *,
    ref: str | None = None,
    python: str | None = None,
    base_models: tuple[str, ...] = (),
    base_dataset: str | None = None,
) -> Iterator[tuple[Side, Side]]:
    """Provide base and head: head is the current tree with `models` and `dataset`, base differs in the options given.

    Raises:
        InputError: there is no such commit, it lacks a model or the dataset, or a file is a Git LFS pointer.
    """
    with commit(ref) if ref else contextlib.nullcontext() as checked_out:
        tree = checked_out.repository if checked_out else tree_here()
        path = module_path(checked_out.repository if checked_out else None)
        head = Side("head", sys.executable, tree, models, dataset, path)
        base = replace(head, name="base", python=python or head.python)
        if checked_out:
            base = checked_out.side(base, models=not base_models, dataset=not base_dataset)
        base = replace(base, models=base_models or base.models, dataset=base_dataset or base.dataset)
        for side in (head, base):
            refuse_pointers(side)
        yield base, head


def refuse_pointers(side: Side) -> None:
    """Raise InputError if a model or the dataset of `side` is in Git LFS and was not fetched."""
    for folder in (Path(name) for name in (*side.models, side.dataset)):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix in SUFFIXES and path.is_file() and _is_pointer(path):
                shown = path.relative_to(side.tree) if side.tree and path.is_relative_to(side.tree) else path
                raise InputError(
                    f"{side.name}'s {shown} is a Git LFS pointer and not the file itself: "
                    "install git-lfs (git lfs install), then fetch it (git lfs pull)"
                )


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".csv"}
"""Of the files of checkpoints and datasets."""
POINTER = b"version https://git-lfs.github.com/spec/v1"


def module_path(repository: Path | None) -> tuple[str, ...]:
    """Return the module path that a child needs to import what this process can, besides installed libraries.

    It consists of PYTHONPATH, the current folder, and those folders of `repository` that an editable install has added.
    """
    named = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]  # noqa: PTH100
    implicit = [
        entry
        for entry in sys.path
        if entry == str(Path.cwd())
        or (repository and Path(entry).is_relative_to(repository) and "site-packages" not in Path(entry).parts)
    ]
    return tuple(dict.fromkeys([*named, *implicit]))


def git(*arguments: str) -> str | None:
    """Return git's output; None if it fails."""
    try:
        return run_git(*arguments)
    except GitError:
        return None


def tree_here() -> Path | None:
    """Return the source tree of this qbert; None if it is an installed package."""
    source = Path(__file__).resolve().parents[2]
    return source if (source / "pyproject.toml").is_file() else None
