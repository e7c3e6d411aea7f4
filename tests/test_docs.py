"""The README, the changelog and docs/: links lead somewhere, and commands, settings and code in them are understood."""

import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import pytest
from packaging.requirements import Requirement

import qbert
from qbert.cli import main
from qbert.inputs.settings import read

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(page for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md") if (page := ROOT / name).exists()),
    *sorted((ROOT / "docs").glob("*.md")),
]

LONGEST_README = 130  # lines: what a person reads in one go
FIRST_SCREEN = 25  # lines
LANGUAGES = {"sh", "toml", "python", "csv", "dockerfile"}
OTHERS = {"", "bash", "curl", "pre-commit", "python", "uvicorn"}
"""Programs, and lines of settings alone, that nothing is known of here."""
SEPARATORS = {"&&", "|", ";"}
IN_THIS_REPOSITORY = re.compile(r"(?:qbert|tests|tools|bench|data|docs|\.github|\.ci)/[\w./-]+")

PARSE = """
import json, os, sys
import pytest
from _pytest.config import get_config

answers = []
for folder, argv in json.load(sys.stdin):
    os.chdir(folder)
    config = get_config(argv)
    error, options, ours = "", [], []
    try:
        config.parse(argv)
        parser = config._parser
        options = list(parser.optparser._option_string_actions)
        ours = [name for group in parser._groups if group.name == "qbert" for o in group.options for name in o.names()]
    except (pytest.UsageError, ImportError, SystemExit) as mistake:
        error = str(mistake) or repr(mistake)
    finally:
        config._ensure_unconfigure()
    answers.append({"error": error, "options": options, "ours": ours})
json.dump(answers, sys.stdout)
"""
"""What pytest says to each command line, without collecting anything."""


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: Path
    line: int
    """Of its first line of code, from 1."""
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    """Find the fenced blocks of a page, in these languages or in all."""
    for found in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", page.read_text(encoding="utf-8"), re.MULTILINE):
        line = found.string.count("\n", 0, found.start(2)) + 1
        if not languages or found[1] in languages:
            yield Block(page, line, found[1], found[2])


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```(?:.*\n)*?```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


def spans(page: Path) -> list[str]:
    """Return the code within a page's sentences; a `|` in a table is escaped."""
    return [span.replace("\n", " ").replace("\\|", "|") for span in re.findall(r"`([^`]+)`", prose(page))]


def simple_commands(code: str) -> Iterator[list[str]]:
    """Split lines of shell into commands of a program and its arguments, without variables set for it."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for is_separator, words in groupby(lexer, SEPARATORS.__contains__):
            command = list(words)
            while not is_separator and command and re.match(r"[A-Z_]+=", command[0]):
                command.pop(0)
            if command and not is_separator:
                yield [Path(command[0]).name, *command[1:]]


def written(program: str) -> list[tuple[str, list[str], bool]]:
    """Return each use of `program`: where, with which arguments, and whether it is a whole command of a block."""
    found = []
    for page in PAGES:
        pieces = [(str(block), block.code, True) for block in blocks(page, "sh")]
        pieces += [(page.name, span, False) for span in spans(page) if span.split()[0] == program]
        for where, code, whole in pieces:
            found += [(where, args, whole) for name, *args in simple_commands(code) if name == program]
    return found


def slugs(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def examples() -> dict[str, str]:
    """Return the modules that a page writes out, by the file name in their first line."""
    code = [block.code for page in PAGES for block in blocks(page, "python")]
    return {name[1]: text for text in code if (name := re.match(r"# (\w+\.py)\n", text))}


def parse(folder: Path, *command_lines: list[str]) -> list[dict[str, Any]]:
    """Let pytest parse command lines in one other process: in this clone, or in a project that has only the plugin."""
    for name, text in examples().items():
        (folder / name).write_text(text, encoding="utf-8")
    told = []
    for argv in command_lines:
        elsewhere = "qbert.pytest_plugin" in argv
        # tests/conftest.py imports for seconds and adds no option
        told.append((str(folder if elsewhere else ROOT), ["bench/" if a.startswith("tests/") else a for a in argv]))
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-c", PARSE]
    answer = subprocess.run(
        command, input=json.dumps(told), stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    answers: list[dict[str, Any]] = json.loads(answer.stdout)
    return answers


@dataclass(frozen=True)
class Parsed:
    """What pytest says to all command lines of these tests."""

    uses: list[tuple[str, list[str], str]]
    """In the pages: where, the arguments, and the mistake."""
    mistakes: list[str]
    """That it finds in lines with one each."""
    options: set[str]
    """That it knows in this clone."""
    ours: set[str]
    """That are the benchmarks' own."""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> Parsed:
    uses = [(where, args) for where, args, _ in written("pytest")]
    uses += [(where, ["bench/", *args[1:]]) for where, args, _ in written("qbert") if args[:1] == ["bench"]]
    uses = list({tuple(args): (where, args) for where, args in uses}.values())
    wrong = [["bench/", "--no-such-option"], ["bench/", "--max-lengths", "long"], ["-p", "no_such_module", "bench/"]]
    clone, *answers = parse(tmp_path_factory.mktemp("project"), ["bench/"], *wrong, *(args for _, args in uses))
    return Parsed(
        [(*use, answer["error"]) for use, answer in zip(uses, answers[len(wrong) :], strict=True)],
        [answer["error"] for answer in answers[: len(wrong)]],
        set(clone["options"]),
        {option.replace("--qbert-", "--") for option in clone["ours"]},
    )


def commands() -> dict[str, click.Command]:
    return main.commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        assert not anchor or anchor in slugs(target), f"{page.name} links to {link}: no such heading in {target.name}"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#\s]+)", prose(ROOT / "README.md")))
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_this_repository_that_a_page_names_is_there(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # of what was, too
    named = [path for span in spans(page) for path in span.split() if IN_THIS_REPOSITORY.fullmatch(path)]
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_in_a_language_that_is_checked_here(page: Path) -> None:
    assert {block.language for block in blocks(page)} <= LANGUAGES


def test_every_block_of_shell_is_shell_and_calls_programs_that_are_checked_here() -> None:
    for page in PAGES:
        for block in blocks(page, "sh"):
            assert subprocess.run(["bash", "-n", "-c", block.code], check=False).returncode == 0, block
            programs = {command[0] for command in simple_commands(block.code)}
            assert programs <= {"qbert", "pytest", "pip", "python3", "echo", *OTHERS}, block


def mistake(args: list[str], *, whole: bool) -> str:
    """Say what qbert would not understand of a command; what it lacks, only where it is a whole one."""
    try:
        rest_of_all = click.Argument(["rest"], nargs=-1, type=click.UNPROCESSED)
        front = click.Command("qbert", {"allow_interspersed_args": False}, params=[*main.params, rest_of_all])
        context = front.make_context("qbert", list(args))
        rest = list(context.params["rest"])
        if rest and rest[0] != "bench":  # what bench is given is pytest's
            name, command, rest = main.resolve_command(context, rest)
            assert command is not None
            command.make_context(name, rest, parent=context)
    except click.MissingParameter as error:
        return error.format_message() if whole else ""
    except click.UsageError as error:
        return error.format_message()
    return ""


def test_qbert_understands_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in commands().values():
        for parameter in command.params:
            if isinstance(parameter.type, click.Path):
                monkeypatch.setattr(parameter.type, "exists", False)  # the reader's files are not here
    uses = written("qbert")
    assert len(uses) > 30  # the pages have that many
    for where, args, whole in uses:
        assert not (why := mistake(args, whole=whole)), f"{where}: qbert {shlex.join(args)}: {why}"
    assert mistake(["gate", "--base-rev", "main"], whole=False)
    assert mistake(["gates"], whole=False)
    assert mistake(["quantize", "--model", "model"], whole=True)


def test_pytest_understands_every_command(parsed: Parsed) -> None:
    assert len(parsed.uses) >= 8  # the pages have that many
    for where, args, error in parsed.uses:
        assert not error, f"{where}: pytest {shlex.join(args)}: {error}"
        paths = [argument for argument in args if argument.startswith(("tests/", "bench/"))]
        assert [path for path in paths if not (ROOT / path).exists()] == [], where
    assert all(parsed.mistakes)


BUILDERS = ("auditwheel", "build", "hatchling", "twine", "ziglang")


def test_pip_would_find_every_requirement() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for where, args, _ in written("pip"):
        assert args[0] == "install", where
        for argument in args[1:]:
            if argument.startswith(("-", "https://")):
                continue
            requirement = Requirement(re.sub(r"^\.(?=\[)", "pytest-qbert", argument))
            assert requirement.name in {"pytest-qbert", "torch", "onnxruntime", "openvino", "tokenizers", *BUILDERS}, (
                where
            )
            assert requirement.extras <= extras, f"{where}: {argument}"


def test_every_extra_for_users_is_described() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert extras - {"dev", "test"} <= set(spans(ROOT / "docs" / "running.md"))


def test_every_option_in_a_sentence_is_one(parsed: Parsed) -> None:
    known = parsed.options | {
        name for command in commands().values() for option in command.params for name in option.opts
    }
    for page in PAGES:
        for span in spans(page):
            if option := re.fullmatch(r"(--[a-z0-9-]+[a-z0-9])([ =].*)?", span):
                assert option[1].replace("--qbert-", "--") in known, f"{page.name}: {option[1]}"


def test_every_option_of_the_benchmarks_is_described(parsed: Parsed) -> None:
    described = {span.split()[0] for span in spans(ROOT / "docs" / "running.md")}
    assert len(parsed.ours) >= 10
    assert parsed.ours <= described


def test_the_readme_names_every_command() -> None:
    named = {word for span in spans(ROOT / "README.md") for word in span.removeprefix("qbert ").split()[:1]}
    assert set(commands()) <= named


def test_every_block_of_toml_has_settings_that_exist(tmp_path: Path, parsed: Parsed) -> None:
    known = {"plugins", "gate", "models", "prices"} | {option[2:].replace("-", "_") for option in parsed.options}
    for page in PAGES:
        for block in blocks(page, "toml"):
            settings = tomllib.loads(block.code).get("tool", {}).get("qbert", {})
            assert set(settings) <= known, block
            file = tmp_path / "pyproject.toml"
            file.write_text(block.code)
            assert len(read(file).gate.limits) == len(settings.get("gate", {}).get("limits", [])), block


def test_every_block_of_python_compiles_and_names_what_there_is() -> None:
    for page in PAGES:
        for block in blocks(page, "python"):
            tree = ast.parse(textwrap.dedent(block.code), str(block))
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(str(node.module))
                    assert [name.name for name in node.names if not hasattr(module, name.name)] == [], block
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "qbert":
                    assert node.attr in qbert.__all__, block


def test_the_readme_is_short_and_begins_with_a_command() -> None:
    readme = ROOT / "README.md"
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= LONGEST_README
    assert next(blocks(readme, "sh")).line <= FIRST_SCREEN


def test_the_readmes_first_line_with_pytest_tests_is_the_test_command() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    first = next(line for line in lines if "pytest tests/" in line)  # as .ci/run finds it
    assert first == "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest tests/"


def test_the_readmes_table_is_that_of_the_results() -> None:
    def figures(page: str, heading: str) -> dict[str, list[str]]:
        text = (ROOT / page).read_text(encoding="utf-8").partition(heading)[2]
        table = text.partition("\n\n| variant")[2].partition("\n\n")[0]
        rows = re.findall(r"^\| `([\w-]+)`[^|]*\|(.*)\|$", table, re.MULTILINE)
        return {name: [cell.strip(" *") for cell in cells.split("|")] for name, cells in rows}

    short = figures("README.md", "Which variant should I take?")
    speedups = figures("docs/results.md", "The ranking turns over")
    quality = figures("docs/results.md", "F1 on real text")
    assert len(short) >= 8
    for name, (amd, intel, drop, flips) in short.items():
        assert float(amd) == pytest.approx(float(speedups[name][2]), abs=0.0501)
        assert float(intel) == pytest.approx(float(speedups[name][5]), abs=0.0501)
        if name in quality and name != "fp32":
            assert float(drop) == pytest.approx(float(quality[name][2].split()[0]), abs=0.000501)
            assert flips == quality[name][3]
