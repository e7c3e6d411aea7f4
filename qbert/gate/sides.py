"""The two sides of `qbert gate`: where code, libraries, models and data of each come from, and its process."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from filelock import FileLock

from qbert import children
from qbert.dataset import FILES
from qbert.errors import CannotRunError, InputError

CELL = ("cell", "model", "max_length", "variant")
CHECKPOINT = ("config.json", "*.safetensors")
"""What the folder of a model has, as patterns."""


class SideError(Exception):
    """A side could not run; the message says which, and why."""


@dataclass(frozen=True)
class Side:
    """Where one side's code, libraries, models and data come from."""

    name: str
    """`base` or `head`."""
    python: str
    tree: Path | None
    """Comes first on the module path; without one, qbert is what the interpreter has installed."""
    models: tuple[str, ...]
    dataset: str
    path: tuple[str, ...] = ()
    """Comes next on the module path: where plugins and what they import may lie."""
    ref: str | None = None
    """What the person calls the commit that `tree` is of, where it is one."""


@dataclass(frozen=True)
class Subject:
    """What both sides run."""

    max_lengths: tuple[int, ...]
    variants: str
    documents: int | None = None
    plugins: tuple[str, ...] = ()


class Worker:
    """A side's process; leaving the context kills it and all that it started."""

    def __init__(self, side: Side, subject: Subject, *, timeout_s: float, shown: bool = False) -> None:
        """Start it; `shown` lets what it says while building through to standard error.

        Raises:
            SideError: it cannot be started.
        """
        self.side, self._timeout_s, self._subject = side, timeout_s, subject
        path = os.pathsep.join([*([str(side.tree)] if side.tree else []), *side.path])
        program = str(Path(__file__).with_name("worker.py"))
        try:
            self._process = children.Answering(
                side.python, program, path=path, stderr=None if shown else subprocess.DEVNULL
            )
        except OSError as error:
            raise SideError(f"{side.name} could not run: {side.python}: {error.strerror}") from error
        self._doing = ""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what is left of it."""
        self._process.end()

    def send_open(self) -> None:
        """Have it make its suite; the answer is `models`, their names in order, and the names of the `variants`."""
        subject = asdict(self._subject)
        del subject["documents"]
        self.send(
            "open", **subject, dataset=self.side.dataset, models=self.side.models, lenient=self.side.name == "base"
        )

    def ask(self, do: str, **arguments: Any) -> Any:  # noqa: ANN401
        """Send a request and return its answer."""
        self.send(do, **arguments)
        return self.receive()

    def send(self, do: str, **arguments: Any) -> None:  # noqa: ANN401
        """Send a request; `receive` waits for its answer."""
        self._doing = " ".join([do, *(str(arguments[name]) for name in CELL if name in arguments)])
        self._process.send(do, **arguments)

    def receive(self) -> Any:  # noqa: ANN401
        """Return the answer to the last request.

        Raises:
            InputError: head finds a mistake in what the person asked for.
            CannotRunError: the variant that was named cannot run the model.
            SideError: the side failed, ended, or did not answer in time.
        """
        try:
            answer = self._process.receive(self._timeout_s)
        except TimeoutError as error:
            raise self._failed(f"no answer in {self._timeout_s:g} s to '{self._doing}'") from error
        except EOFError as error:
            raise self._failed(f"its process {error} during '{self._doing}'") from error
        if "error" not in answer:
            return answer["answer"]
        if answer.get("cannot"):
            raise CannotRunError(answer["error"])
        if answer["mistake"] and self.side.name == "head" and self._doing == "open":
            raise InputError(answer["error"])
        raise self._failed(f"{answer['error']} ('{self._doing}')")

    def _failed(self, why: str) -> SideError:
        return SideError(f"{self.side.name} could not run: {why}")


@dataclass(frozen=True)
class Commit:
    """A commit of the repository here, checked out into a folder of its own."""

    ref: str
    """As the person named it."""
    repository: Path
    tree: Path

    def side(self, side: Side, *, models: bool, dataset: bool) -> Side:
        """Return `side` with this commit's code; with its own `models` and `dataset`, too, where they are asked for."""
        return replace(
            side,
            tree=self.tree,
            models=tuple(self.own(one, CHECKPOINT, "--base-model") for one in side.models) if models else side.models,
            dataset=self.own(side.dataset, FILES, "--base-dataset") if dataset else side.dataset,
            path=tuple(map(self.place, side.path)),
            ref=self.ref,
        )

    def place(self, path: str) -> str:
        """Return where `path` is in this commit's tree; `path` itself where it lies outside the repository."""
        # As it is named first: what a link in the repository leads to is the commit's own, too.
        inside = [one for one in (Path(path), Path(path).resolve()) if one.is_relative_to(self.repository)]
        places = [self.tree / one.relative_to(self.repository) for one in inside]
        return str(next((place for place in places if place.exists()), places[-1])) if places else path

    def _submodule(self, inside: Path) -> Path | None:
        """Return the submodule that the path `inside` this commit's tree leads into; None where it is in none."""
        kinds = {one: git("-C", str(self.tree), "ls-files", "--stage", str(one)) for one in (inside, *inside.parents)}
        return next((one for one, said in kinds.items() if said and said.startswith(SUBMODULE)), None)

    def own(self, folder: str, needed: Sequence[str], option: str) -> str:
        """Return this commit's own of what head has in `folder`; `option` names another in its stead.

        Raises:
            InputError: this commit has no such folder, or nothing there that fits one of the patterns `needed`.
        """
        if not Path(folder).is_absolute():  # built in, or on the hub
            return folder
        place = Path(self.place(folder))
        if place.is_relative_to(self.tree) and (
            lacking := [pattern for pattern in needed if not any(place.glob(pattern))]
        ):
            inside = place.relative_to(self.tree)
            why = "not committed there, or ignored): commit it, or"
            if module := self._submodule(inside):
                why = f"{module} is a submodule, of which it holds the commit's number alone): check that out and"
            raise InputError(f"{self.ref} has no {inside / lacking[0]} of its own ({why} name base's with {option}")
        return str(place)


SUBMODULE = "160000 "
"""The mode by which git lists one."""


@contextlib.contextmanager
def commit(ref: str) -> Iterator[Commit]:
    """Check `ref` of the repository here out into a folder of its own, and remove that at the end.

    Raises:
        InputError: there is no repository, or no such commit.
    """
    root = git("rev-parse", "--show-toplevel")
    if not root:
        raise InputError("--base-ref needs a git repository, and there is none here")
    found = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if not found:
        deepen = "git fetch --unshallow" if git("rev-parse", "--is-shallow-repository") == "true" else "git fetch"
        raise InputError(f"--base-ref {ref} is no commit of this repository: fetch it ({deepen}), or name another")
    _remove_left_trees()
    with tempfile.TemporaryDirectory(prefix=PLACE) as name:
        place = Path(name).resolve()
        with FileLock(place / LOCK):
            tree = place / TREE
            try:
                if git("worktree", "add", "--detach", str(tree), found) is None:
                    raise InputError(f"git cannot check {ref} out into {tree}")
                yield Commit(ref, Path(root).resolve(), tree)
            finally:
                git("worktree", "remove", "--force", "--force", str(tree))


PLACE, TREE, LOCK = "qbert-base-", "tree", "lock"
"""A temporary folder's name begins with PLACE; it holds a commit's TREE, and a LOCK as long as its gate lives."""


def _remove_left_trees() -> None:
    """Remove what gates that were killed have left of this repository's commits."""
    for line in (git("worktree", "list", "--porcelain") or "").splitlines():
        tree = Path(line.removeprefix("worktree "))
        place = tree.parent
        if tree.name != TREE or not place.name.startswith(PLACE) or not (place / LOCK).is_file():
            continue
        with contextlib.suppress(OSError), FileLock(place / LOCK, timeout=0):  # a Timeout is an OSError
            git("worktree", "remove", "--force", "--force", str(tree))
            shutil.rmtree(place, ignore_errors=True)
    git("worktree", "prune")  # those whose folder somebody else has removed


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
    """Give head, which is what is here with `models` and `dataset`, and base: the same, but for what is told.

    Raises:
        InputError: there is no such commit, it lacks what is asked for, or a file is a pointer of Git LFS.
    """
    with commit(ref) if ref else contextlib.nullcontext() as checked_out:
        here = checked_out.repository if checked_out else tree_here()
        path = module_path(checked_out.repository if checked_out else None)
        head = Side("head", sys.executable, here, models, dataset, path)
        base = replace(head, name="base", python=python or head.python)
        if checked_out:
            base = checked_out.side(base, models=not base_models, dataset=not base_dataset)
        base = replace(base, models=base_models or base.models, dataset=base_dataset or base.dataset)
        for side in (head, base):
            refuse_pointers(side)
        yield base, head


def refuse_pointers(side: Side) -> None:
    """Raise InputError where a model or the dataset of `side` is of Git LFS and was not fetched."""
    for folder in (Path(name) for name in (*side.models, side.dataset)):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix in READ and path.is_file() and _is_pointer(path):
                shown = path.relative_to(side.tree) if side.tree and path.is_relative_to(side.tree) else path
                raise InputError(
                    f"{side.name}'s {shown} is a Git LFS pointer and not the file itself: "
                    "install git-lfs (git lfs install), then fetch it (git lfs pull)"
                )


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


READ = {".json", ".safetensors", ".txt", ".model", ".csv"}
"""What the files of checkpoints and datasets end in."""
POINTER = b"version https://git-lfs.github.com/spec/v1"


def module_path(repository: Path | None) -> tuple[str, ...]:
    """Return where this process finds modules, beside the libraries of its interpreter: entries as a child needs them.

    Of what is not in PYTHONPATH these are the folder here and, of `repository`, what an editable install has added.
    """
    named = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]  # noqa: PTH100
    here = [
        entry
        for entry in sys.path
        if entry == str(Path.cwd())
        or (repository and Path(entry).is_relative_to(repository) and "site-packages" not in Path(entry).parts)
    ]
    return tuple(dict.fromkeys([*named, *here]))


def git(*arguments: str) -> str | None:
    """Return what git prints; None where it fails."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def tree_here() -> Path | None:
    """Return the tree of this qbert; None where it is installed as a package."""
    source = Path(__file__).resolve().parents[2]
    return source if (source / "pyproject.toml").is_file() else None
