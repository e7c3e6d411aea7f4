"""Options and types that commands share, and the settings of a command."""

import errno
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from qbert.inputs.options import COUNT, OPTIONS, counts
from qbert.inputs.settings import DEFAULTS, Settings
from qbert.measure.stats import MIN_DROP, MIN_EFFECT
from qbert.system.cache import cannot_be_written, write_file
from qbert.system.errors import InputError

Command = TypeVar("Command", bound=Callable[..., Any])


class OutputFile(click.Path):
    """A file to write; whether its folder is there is looked at before the work begins."""

    def __init__(self) -> None:
        """Take any file."""
        super().__init__(path_type=Path, dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ANN401
        """Return the path that `value` names."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.exists() or path.is_file():  # else a device or a pipe
            with cannot_be_written(path):
                folder = path.resolve().parent
                os.stat(f"{folder}{os.sep}")  # noqa: PTH116  fails where that is no folder, too
                if not os.access(folder, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return path


FILE = click.Path(path_type=Path, dir_okay=False)
OUTPUT = OutputFile()


class Percentage(click.ParamType):  # type: ignore[type-arg]
    """A share, given as `2.5%`."""

    name = "percentage"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Return the share that `value` names."""
        if isinstance(value, float):
            return value
        try:
            share = float(value.removesuffix("%")) / 100
        except ValueError:
            share = -1.0
        if not 0 < share < 1 or not value.endswith("%"):
            self.fail(f"{value!r} is no percentage above 0 and below 100, such as 2.5%", param, ctx)
        return share


class Number(click.FloatRange):
    """A finite number within bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Return the number that `value` names."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number.", param, ctx)
        return number


def shared(*names: str, **changes: Any) -> Callable[[Command], Command]:  # noqa: ANN401  click's
    """Return the decorator for the options of the benchmarks of these names, as they are there but for `changes`."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            option = OPTIONS[name]
            repeatable = changes.get("multiple", False)
            sentence = replace(option, repeatable=repeatable).description
            how = {
                "metavar": option.metavar,
                "type": click.IntRange(min=1) if option.parse is COUNT else None,
                "help": f"{sentence[0].upper()}{sentence[1:]}.",
            }
            declared = (f"--{name}", "models") if repeatable else (f"--{name}",)
            command = click.option(*declared, **how | {"show_default": "default" in changes} | changes)(command)
        return command

    return decorate


def output_option(help_text: str = "Folder to write.") -> Callable[[Command], Command]:
    """Return the option that names the folder to write."""
    return click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help=help_text)


min_effect_option = click.option(
    "--min-effect",
    type=Percentage(),
    default=MIN_EFFECT,
    show_default=False,
    metavar="PERCENT",
    help="What is smaller is nobody's regression.  [default: 2.5%]",
)
min_drop_option = click.option(
    "--min-drop",
    "--min-f1-effect",
    "min_drop",
    type=Number(min=0, max=1, min_open=True),
    default=MIN_DROP,
    show_default=True,
    metavar="DROP",
    help="A smaller drop of F1, or of what else answers are judged by, is nobody's regression.",
)


def max_drop_option(least: Number, help_text: str) -> Callable[[Command], Command]:
    """Return the option that names the guard's limit."""
    return click.option("--max-drop", "--max-f1-drop", "max_drop", type=least, metavar="DROP", help=help_text)


json_option = click.option("--json", "json_file", type=OUTPUT, metavar="FILE", help="Write all figures to FILE.")
markdown_option = click.option(
    "--markdown", type=OUTPUT, metavar="FILE", help="Write the table to FILE, for a pull request."
)


def cluster_option(*, required: bool = False) -> Callable[[Command], Command]:
    """Return the option that names a cluster."""
    return click.option(
        "--cluster",
        required=required,
        metavar="ADDRESS",
        help="Dask's workers share the work: a scheduler's address or file, or local:N for N processes here.",
    )


def lengths(text: str) -> tuple[int, ...]:
    """Return the maximum lengths, in tokens, in the comma-separated list `text`."""
    try:
        return counts(text)
    except ValueError as error:
        raise InputError(
            f"--max-lengths {text!r}: give numbers of tokens with commas between, such as 128,256"
        ) from error


def write(path: Path | None, text: str) -> None:
    """Write `text` to `path`, if that is given."""
    if path is None:
        return
    write_file(path, lambda place: place.write_text(text, encoding="utf-8"))


def one_model(settings: Settings) -> str:
    """Return the model of a command for one model.

    Raises:
        InputError: neither the command line nor the table names one, or the table names several.
    """
    if settings.models == DEFAULTS.models:
        raise InputError("name a model: --model, or models in pyproject.toml, [tool.qbert]")
    if len(settings.models) > 1:
        raise InputError(
            f"[tool.qbert] names {len(settings.models)} models, {', '.join(settings.models)}: give --model"
        )
    return settings.models[0]
