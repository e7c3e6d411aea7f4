"""What `qbert init` writes into a repository: the table [tool.qbert], a GitHub workflow, a line of .gitignore."""

import json
import re
import shutil
import string
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from qbert import parse
from qbert.cache import write_file
from qbert.errors import InputError, reason
from qbert.gate.sides import git

WORKFLOW = Path(".github/workflows/qbert.yml")
IGNORED = ".benchmarks/"
"""Where pytest-benchmark saves runs: each machine has its own."""
MINUTES = 90
"""After which GitHub ends a job: BERT-base in all variants at three lengths takes an hour."""


@dataclass(frozen=True)
class Settings:
    """What the table says at first."""

    models: tuple[str, ...]
    dataset: str
    variants: str
    max_lengths: tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """A file to make, or to append to."""

    path: Path
    added: str
    """With `\\n` at the end of each line, whatever the file has."""
    before: bytes | None = None
    """What the file holds; None where there is none."""

    @property
    def content(self) -> bytes:
        """What the file will hold: all that it holds now, then what is added, with line ends like those before."""
        before = self.before or b""
        end = b"\r\n" if b"\r\n" in before else b"\n"
        missing = end if before and not before.endswith(b"\n") else b""
        return before + missing + self.added.encode().replace(b"\n", end)

    def write(self) -> None:
        """Write the file; one that exists keeps its mode."""

        def fill(place: Path) -> None:
            place.write_bytes(self.content)
            if self.before is not None:
                shutil.copymode(self.path, place)

        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path, fill)


@dataclass(frozen=True)
class Plan:
    """What will be written into the repository at `root`, and in words what is left as it is."""

    root: Path
    changes: list[Change]
    kept: list[str]
    advice: list[str]
    """What the person has to do for the gate to be of use."""


class _Template(string.Template):
    delimiter = "%"  # the dollar is the shell's and GitHub's


def render(template: str, /, **values: str) -> str:
    """Return `template` with each %{key} replaced by its value."""
    text = (resources.files("qbert") / "templates" / template).read_text(encoding="utf-8")
    return _Template(text).substitute(values)


def repository(folder: Path) -> Path:
    """Return the root of the git repository that `folder` is in.

    Raises:
        InputError: it is in none.
    """
    root = git("-C", str(folder), "rev-parse", "--show-toplevel")
    if not root:
        raise InputError(f"{folder} is in no git repository: run git init first, or go to a folder of one")
    return Path(root).resolve()


def inside(folder: Path, root: Path, option: str) -> str:
    """Return how the table at `root` names `folder`, which `option` gave.

    Raises:
        InputError: it is not in the repository.
    """
    place = folder.resolve()
    if not place.is_relative_to(root):
        raise InputError(
            f"{option} {folder} lies outside the repository {root}, where CI cannot find it: move it there"
        )
    return place.relative_to(root).as_posix()


def plan(root: Path, settings: Settings) -> Plan:
    """Return what the repository at `root` lacks.

    Raises:
        InputError: a file there cannot be read, is no TOML, or has no room for the table.
    """
    found = Plan(root, [], [], [])
    table = _plan_table(found, settings)
    _plan_workflow(found, table)
    _plan_gitignore(found)
    return found


def _plan_table(found: Plan, settings: Settings) -> dict[str, Any]:
    """Plan the table, and return what it will hold, or holds."""
    path = found.root / "pyproject.toml"
    before = parse.read_bytes(path, "it gets the table [tool.qbert]") if path.exists() else None
    wanted = {
        "models": list(settings.models),
        "dataset": settings.dataset,
        "variants": settings.variants,
        "max_lengths": list(settings.max_lengths),
    }
    try:
        document = tomllib.loads((before or b"").decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no TOML ({reason(error)}): mend it first") from error
    tool = document.get("tool", {})
    held = tool.get("qbert") if isinstance(tool, dict) else None
    there = f"{path.name} has a table [tool.qbert], which is left as it is"
    if isinstance(held, dict) and set(held) != {"gate"}:
        found.kept.append(there)
        return held
    added = render("settings.toml", **{key: json.dumps(value, ensure_ascii=False) for key, value in wanted.items()})
    change = Change(path, f"\n{added}" if before else added, before)
    try:
        tomllib.loads(change.content.decode())
    except tomllib.TOMLDecodeError as error:
        if isinstance(held, dict):  # a header of its own stands over the gate's limits
            found.kept.append(there)
            return held
        # What is written otherwise, as tool = {...}, cannot be added to.
        raise InputError(f"{path} has no room for a table [tool.qbert] at its end: add it by hand") from error
    found.changes.append(change)
    return wanted


def _plan_workflow(found: Plan, table: dict[str, Any]) -> None:
    path = found.root / WORKFLOW
    for file in sorted(path.parent.glob("*.y*ml")):
        if file == path or b"qbert gate" in parse.read_bytes(file, "it may be a workflow of qbert's"):
            found.kept.append(f"{file.relative_to(found.root)} exists, and is left as it is")
            return
    models = table.get("models", [])
    sources = [*(models if isinstance(models, list) else [models]), table.get("dataset")]
    folders = [source for source in sources if isinstance(source, str) and (found.root / source).is_dir()]
    if not folders:
        found.advice.append(
            "neither a model nor the dataset is a folder of this repository, so no pull request changes what the gate "
            f"compares: name yours in [tool.qbert], and under paths in {WORKFLOW}"
        )
    branch = git("-C", str(found.root), "symbolic-ref", "--short", "refs/remotes/origin/HEAD") or "origin/main"
    text = render(
        "workflow.yml",
        about="Made by `qbert init`, and yours to change.",
        name=path.stem,
        changed=paths("paths", "what the gate compares; sides that are the same it refuses", _patterns(folders)),
        branch=json.dumps(branch.removeprefix("origin/")),
        minutes=str(MINUTES),
        requirement="'pytest-qbert[all]'",
        gate_options="",
        bench="qbert bench",
    )
    found.changes.append(Change(path, text))


def _patterns(folders: list[str]) -> list[str]:
    """Return GitHub's patterns for all in `folders`; where there are none, for every checkpoint and dataset."""
    special = re.compile(r"[\\*?+\[\]!]")
    names = [special.sub(r"\\\g<0>", Path(folder).as_posix()) for folder in folders]
    return ["**" if name == "." else f"{name}/**" for name in names] or ["**.safetensors", "**.csv"]


def paths(key: str, comment: str, patterns: Iterable[str]) -> str:
    """Return the lines of the workflow's `on.pull_request` that say for which files it starts."""
    return "\n".join([f"{key}: # {comment}", *(f"      - {json.dumps(pattern)}" for pattern in patterns)])


def _plan_gitignore(found: Plan) -> None:
    path = found.root / ".gitignore"
    before = parse.read_bytes(path, "it gets a line") if path.exists() else None
    if IGNORED.strip("/").encode() in {line.strip().strip(b"/") for line in (before or b"").splitlines()}:
        found.kept.append(f"{path.name} has {IGNORED}")
    else:
        found.changes.append(Change(path, f"{IGNORED}\n", before))
