"""Output to the terminal: text from data without control codes, and progress as a bar or, elsewhere, as lines."""

import contextlib
import importlib.util
import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING

from qbert.system.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

CONTROLS = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
    | {0x7F: "␡"}
    | dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)], "�")
    | {code: f"\\x{code - 0xDC00:x}" for code in range(0xDC80, 0xDD00)}
)
"""What replaces control codes, and the characters that reorder a line: Unicode's pictures of the codes.

Surrogates are bytes of a name that is no UTF-8, and no terminal takes them: the bytes' numbers replace them.
"""


def shown(text: str) -> str:
    """Return `text`, which may come from data, with its control codes replaced by visible characters."""
    return text.translate(CONTROLS)


def echo(text: str, *, err: bool = False) -> None:
    """Print a line of `text`, which may come from data, to standard output or standard error."""
    import click

    click.echo(shown(text), err=err)


def console(*, stderr: bool = False) -> "Console":
    """Return rich's console, with colours only on a terminal and without NO_COLOR."""
    return _class()(stderr=stderr, highlight=False)


@cache
def _class() -> "type[Console]":
    """Return the class of consoles; rich is imported only here, since services draw nothing."""
    from rich.console import Console
    from rich.segment import Segment

    class Safe(Console):
        """A console that shows control codes in text from data as visible characters."""

        def render(self, renderable: "RenderableType", options: "ConsoleOptions | None" = None) -> "Iterator[Segment]":
            """Yield the segments of `renderable`."""
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else shown(text), style, control)

    return Safe


def say(what: str) -> None:
    """Print `what`, which will take a while, on a line of its own to standard error."""
    echo(f"\n{what}", err=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings and log lines of libraries; errors are still raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Hide all output to standard output and standard error, also that of native libraries."""
    sys.stdout.flush()
    sys.stderr.flush()
    copies = {number: os.dup(number) for number in (1, 2)}
    try:
        with open(os.devnull, "wb") as nowhere, quiet():  # noqa: PTH123  no path
            for number in copies:
                os.dup2(nowhere.fileno(), number)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        for number, copy in copies.items():
            os.dup2(copy, number)
            os.close(copy)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide what transformers and its imports report while loading.

    Raises:
        InputError: Python runs without docstrings, which transformers reads while it is imported.
    """
    if sys.flags.optimize > 1:
        raise InputError(
            "transformers needs docstrings, which Python leaves out here (PYTHONOPTIMIZE=2 or -OO): take 1 or -O"
        )
    from transformers.utils import logging as reports

    bars = reports.is_progress_bar_enabled()
    reports.disable_progress_bar()
    try:
        with quiet():
            logging.disable(logging.ERROR)  # errors are raised as well
            yield
    finally:
        if bars:
            reports.enable_progress_bar()


AT_ONCE_S = 2.0
"""Where no bar is drawn, progress is printed only of what takes longer."""


@contextlib.contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Show the progress of `what` on standard error: a bar on a terminal or in a notebook, else a line at every 10 %.

    Yield the function that updates it: `(completed, what)`, the second only where the description has changed.
    """
    screen = console(stderr=True)
    # In a notebook rich needs ipywidgets to draw a bar.
    if not (importlib.util.find_spec("ipywidgets") if screen.is_jupyter else screen.is_terminal):
        yield _lines(what, total)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda completed, now=what: bar.update(task, completed=completed, description=now)


def _lines(what: str, total: int | None) -> Callable[..., None]:
    """Return the function that `progress` yields where no bar can be drawn, as in a log."""
    start = time.monotonic()
    printed = 0

    def advance(completed: int, now: str = what) -> None:
        nonlocal printed
        tenths = 10 * completed // total if total else 0
        seconds = time.monotonic() - start
        if tenths > printed and seconds >= AT_ONCE_S:
            printed = tenths
            echo(f"{now}: {10 * tenths} % after {seconds:.0f} s", err=True)

    return advance


def an(what: str) -> str:
    """Return the noun `what` after its article."""
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"


def counted(number: int, what: str) -> str:
    """Return `number` and the noun `what`, in the plural unless the number is one."""
    return f"{number} {what}{'' if number == 1 else 's'}"
