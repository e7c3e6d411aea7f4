"""The command `qbert init`: shows, then writes what a repository needs to keep its classifier fast."""

import sys
import textwrap
from pathlib import Path

import click

from qbert.cli import options
from qbert.inputs.settings import DEFAULTS, Settings
from qbert.system.errors import InputError
from qbert.system.terminal import echo


@click.command()
@options.shared("model", multiple=True, default=("bert-tiny",))
@options.shared("dataset", default=DEFAULTS.dataset)
@options.shared("variants", default=DEFAULTS.variants, help="Names with commas between.")
@options.shared("max-lengths", default=",".join(map(str, DEFAULTS.max_lengths)), help="Tokens.")
@click.option("--yes", is_flag=True, help="Write without asking.")
def init(models: tuple[str, ...], dataset: str, variants: str, max_lengths: str, *, yes: bool) -> None:
    """Set a git repository up: settings, a workflow that gates pull requests, and what .gitignore needs.

    The options fill the table [tool.qbert] of pyproject.toml. Everything is shown before it is written. Nothing is
    overwritten: a table or a workflow that is there stays as it is.
    """
    from qbert import variants as table
    from qbert.cli import setup
    from qbert.inputs.dataset import BUILT_IN
    from qbert.inputs.training import GEOMETRIES

    root = setup.repository(Path.cwd())
    table.import_installed()
    if unknown := sorted(table.named(variants) - set(table.VARIANTS)):
        raise InputError(f"--variants {variants}: there is no {', '.join(unknown)}; `qbert variants` lists them")
    settings = Settings(
        tuple(dict.fromkeys(model if model in GEOMETRIES else _model(model, root) for model in models)),
        dataset if dataset == BUILT_IN else _dataset(dataset, root),
        variants,
        options.lengths(max_lengths),
    )
    plan = setup.plan(root, settings)
    echo(f"The repository is {root}.")
    for sentence in plan.kept:
        echo(f"{sentence}.")
    if not plan.changes:
        echo("There is nothing to do.")
        return
    for change in plan.changes:
        echo(f"\n{change.path.relative_to(root)}, {'a new file' if change.before is None else 'at its end'}:\n")
        echo(textwrap.indent(change.added.strip("\n"), "    "))
    echo("")
    for sentence in plan.advice:
        echo(f"Note: {sentence}.\n")
    if not yes:
        if not sys.stdin.isatty():
            raise InputError("nothing was written, as there is no terminal to ask at: give --yes to have it written")
        click.confirm("Write this?", abort=True)
        if setup.plan(root, settings) != plan:
            raise InputError(f"files in {root} have changed meanwhile, so nothing was written: run it again")
    setup.write(plan.changes)
    echo("Written; look at it with git status, and commit it.")


def _model(source: str, root: Path) -> str:
    from qbert.cli import setup
    from qbert.inputs.checkpoint import is_path

    folder = Path(source)
    if folder.is_dir():
        return setup.inside(folder, root, "--model")
    if is_path(source):
        raise InputError(f"--model {source} is no folder: give a checkpoint's folder or a hub id")
    return source


def _dataset(source: str, root: Path) -> str:
    from qbert.cli import setup
    from qbert.inputs.dataset import BUILT_IN, FILES

    if not Path(source).is_dir():
        raise InputError(f"--dataset {source} is no folder: give one with {', '.join(FILES)}, or {BUILT_IN}")
    return setup.inside(Path(source), root, "--dataset")
