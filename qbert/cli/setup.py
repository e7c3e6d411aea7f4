"""What `qbert init` writes into a repository: the table [tool.qbert], a GitHub workflow, and a line of .gitignore."""

import contextlib
import json
import re
import secrets
import shutil
import string
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from qbert.gate.sides import git
from qbert.inputs.settings import Settings
from qbert.system import parse
from qbert.system.errors import InputError, reason
from qbert.system.git import GitError, run_git

WORKFLOW = Path(".github/workflows/qbert.yml")
IGNORED = ".benchmarks/"
"""Where pytest-benchmark saves runs, which differ by machine."""
MINUTES = 90
"""The time limit of the GitHub job: BERT-base in all variants at three lengths takes an hour."""


@dataclass(frozen=True)
class Change:
    """A file to make, or to append to."""

    path: Path
    added: str
    """The text to add, with `\\n` as line end whatever the file has."""
    before: bytes | None = None
    """The contents of the file; None where it does not exist."""

    @property
    def content(self) -> bytes:
        """The new contents of the file: the old ones, then what is added, with the same line ends."""
        before = self.before or b""
        end = b"\r\n" if b"\r\n" in before else b"\n"
        missing = end if before and not before.endswith(b"\n") else b""
        return before + missing + self.added.encode().replace(b"\n", end)


@dataclass(frozen=True)
class Plan:
    """What will be written into the repository at `root`, and sentences on what is kept."""

    root: Path
    changes: list[Change]
    kept: list[str]
    advice: list[str]
    """Sentences on what the user has to do before the gate is useful."""


def write(changes: Iterable[Change]) -> None:
    """Write all the files, or none: they are made beside their places, and renamed when all are whole.

    Raises:
        InputError: one cannot be written.
    """
    ready = []
    with contextlib.ExitStack() as undo:
        for change in changes:
            with _explaining(change):
                stage = _stage(change, change.content, undo)
                backup = None if change.before is None else _stage(change, change.before, undo)
            ready.append((change, change.path.resolve(), stage, backup))
        for change, place, stage, backup in ready:
            with _explaining(change):
                stage.replace(place)
            undo.callback(partial(backup.replace, place) if backup else place.unlink)
        undo.pop_all()
    for *_, backup in ready:
        with contextlib.suppress(OSError):
            if backup:
                backup.unlink()


@contextlib.contextmanager
def _explaining(change: Change) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{change.path} cannot be written ({error.strerror}), so nothing was: mend that, and run it again"
        ) from error


def _stage(change: Change, content: bytes, undo: contextlib.ExitStack) -> Path:
    """Return a file with `content` beside the one to write, and with its mode; `undo` removes what was made."""
    place = change.path.resolve()
    for folder in reversed([folder for folder in place.parents if not folder.exists()]):
        folder.mkdir()
        undo.callback(folder.rmdir)
    stage = place.with_name(f".{place.name}.unfinished-{secrets.token_hex(4)}")
    undo.callback(stage.unlink, missing_ok=True)
    stage.write_bytes(content)
    if change.before is not None:
        shutil.copymode(place, stage)
    return stage


class _Template(string.Template):
    delimiter = "%"  # the dollar is used by the shell and by GitHub


def render(template: str, /, **values: str) -> str:
    """Return `template` with each %{key} replaced by its value."""
    text = (resources.files("qbert.cli") / "templates" / template).read_text(encoding="utf-8")
    return _Template(text).substitute(values)


def repository(folder: Path) -> Path:
    """Return the root of the git repository that `folder` is in.

    Raises:
        InputError: it is in none that git opens.
    """
    try:
        root = run_git("-C", str(folder), "rev-parse", "--show-toplevel")
    except GitError as error:
        raise InputError(
            f"{folder} is in no git repository that git opens ({error}): run git init first, or go to a folder of one"
        ) from error
    return Path(root).resolve()


def inside(folder: Path, root: Path, option: str) -> str:
    """Return the path of `folder`, which `option` gave, relative to `root`.

    Raises:
        InputError: it is not in the repository, or its name is no UTF-8.
    """
    path = folder.resolve()
    if not path.is_relative_to(root):
        raise InputError(
            f"{option} {folder} lies outside the repository {root}, where CI cannot find it: move it there"
        )
    relative = path.relative_to(root)
    parse.check_name(relative)
    return relative.as_posix()


def plan(root: Path, settings: Settings) -> Plan:
    """Return the plan for the repository at `root`.

    Raises:
        InputError: a file there cannot be read, is no TOML, or has no room for the table, or a place cannot be written.
    """
    planned = Plan(root, [], [], [])
    table = _plan_table(planned, settings)
    _plan_workflow(planned, table)
    _plan_gitignore(planned)
    for change in planned.changes:
        _check_place(change.path, root)
    return planned


def _check_place(path: Path, root: Path) -> None:
    above = [folder for folder in reversed(path.parents) if folder != root and folder.is_relative_to(root)]
    for place in (*above, path):
        if place.is_symlink() and not place.exists():
            raise InputError(f"{place} is a link to nothing ({place.readlink()}): remove it, or make what it names")
        if place in above and place.exists() and not place.is_dir():
            raise InputError(f"{place} is a file, where {path.relative_to(root)} needs a folder: move it away")
    if not path.resolve().is_relative_to(root):
        raise InputError(f"{path} leads out of the repository, to {path.resolve()}: put a file in its place")


def _plan_table(planned: Plan, settings: Settings) -> dict[str, Any]:
    """Plan the table, and return its contents, new or existing."""
    path = planned.root / "pyproject.toml"
    before = parse.read_bytes(path, "it gets the table [tool.qbert]") if path.exists() else None
    new_table = {name: getattr(settings, name) for name in ("models", "dataset", "variants", "max_lengths")}
    try:
        document = tomllib.loads((before or b"").decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no TOML ({reason(error)}): mend it first") from error
    tool = document.get("tool", {})
    existing = tool.get("qbert") if isinstance(tool, dict) else None
    note = f"{path.name} has a table [tool.qbert], which is left as it is"
    if isinstance(existing, dict) and set(existing) != {"gate"}:
        planned.kept.append(note)
        return existing
    added = render("settings.toml", **{key: _quoted(value) for key, value in new_table.items()})
    change = Change(path, f"\n{added}" if before else added, before)
    try:
        tomllib.loads(change.content.decode())
    except tomllib.TOMLDecodeError as error:
        if isinstance(existing, dict):  # the limits of the gate follow a header [tool.qbert]
            planned.kept.append(note)
            return existing
        # An inline table, such as tool = {...}, cannot be extended.
        raise InputError(f"{path} has no room for a table [tool.qbert] at its end: add it by hand") from error
    planned.changes.append(change)
    return new_table


def _plan_workflow(planned: Plan, table: dict[str, Any]) -> None:
    path = planned.root / WORKFLOW
    for file in sorted(path.parent.glob("*.y*ml")):
        if b"qbert gate" in parse.read_bytes(file, "it may be a workflow of qbert's") or file == path:
            planned.kept.append(f"{file.relative_to(planned.root)} exists, and is left as it is")
            return
    models = table.get("models", [])
    sources = [*(models if isinstance(models, list | tuple) else [models]), table.get("dataset")]
    folders = [source for source in sources if isinstance(source, str) and (planned.root / source).is_dir()]
    if not folders:
        planned.advice.append(
            "neither a model nor the dataset is a folder of this repository, so no pull request changes what the gate "
            f"compares: name yours in [tool.qbert], and under paths in {WORKFLOW}"
        )
    branch = git("-C", str(planned.root), "symbolic-ref", "--short", "refs/remotes/origin/HEAD")
    if not branch:
        branch = git("-C", str(planned.root), "symbolic-ref", "--short", "HEAD") or "main"
        if git("-C", str(planned.root), "rev-parse", "--verify", "--quiet", "refs/remotes/origin/main"):
            branch = "main"
        planned.advice.append(f"runs are saved of the branch {branch}: name another in {WORKFLOW} if that is not yours")
    text = render(
        "workflow.yml",
        about="Made by `qbert init`, and yours to change.",
        name=path.stem,
        changed=paths("paths", "what the gate compares; sides that are the same it refuses", _patterns(folders)),
        branch=_quoted(branch.removeprefix("origin/")),
        minutes=str(MINUTES),
        requirement="'pytest-qbert[all]'",
        gate_options="",
        bench="qbert bench",
    )
    planned.changes.append(Change(path, text))


def _patterns(folders: list[str]) -> list[str]:
    """Return GitHub's patterns for the files in `folders`; without folders, for every checkpoint and dataset."""
    special = re.compile(r"[\\*?+\[\]!]")
    names = [special.sub(r"\\\g<0>", Path(folder).as_posix()) for folder in folders]
    return ["**" if name == "." else f"{name}/**" for name in names] or ["**.safetensors", "**.csv"]


def paths(key: str, comment: str, patterns: Iterable[str]) -> str:
    """Return the lines of the workflow's `on.pull_request` with the files for which it starts."""
    return "\n".join([f"{key}: # {comment}", *(f"      - {_quoted(pattern)}" for pattern in patterns)])


def _quoted(value: object) -> str:
    """Return `value` as TOML and YAML write it: JSON, but with their escape for what neither takes as it is."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(character if character.isprintable() else f"\\U{ord(character):08x}" for character in text)


def _plan_gitignore(planned: Plan) -> None:
    path = planned.root / ".gitignore"
    before = parse.read_bytes(path, "it gets a line") if path.exists() else None
    if IGNORED.strip("/").encode() in {line.strip().strip(b"/") for line in (before or b"").splitlines()}:
        planned.kept.append(f"{path.name} has {IGNORED}")
    else:
        planned.changes.append(Change(path, f"{IGNORED}\n", before))
