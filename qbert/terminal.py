"""What a person sees: text from data as text, and how far something is, as a bar or off a terminal in lines."""

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

import click

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

CONTROLS = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
    | {0x7F: "␡"}
    | dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "�")
)
"""What a terminal would obey, and what reorders a line, by what is shown instead: Unicode's pictures of the codes."""


def shown(text: str) -> str:
    """Return `text`, which may come from data, so that a terminal shows all of it and obeys nothing in it."""
    return text.translate(CONTROLS)


def echo(text: str, *, err: bool = False) -> None:
    """Print a line of `text`, which may come from data, to standard output or standard error."""
    click.echo(shown(text), err=err)


def console(*, stderr: bool = False) -> "Console":
    """Return rich's console; colours only on a terminal and without NO_COLOR."""
    return _class()(stderr=stderr, highlight=False)


@cache
def _class() -> "type[Console]":
    """Return a console's class; a service draws nothing, so rich is imported here."""
    from rich.console import Console
    from rich.segment import Segment

    class Safe(Console):
        """A console on which text from data cannot pass for control codes."""

        def render(self, renderable: "RenderableType", options: "ConsoleOptions | None" = None) -> "Iterator[Segment]":
            """Yield the segments of `renderable`."""
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else shown(text), style, control)

    return Safe


def say(what: str) -> None:
    """Tell on standard error, on a line of its own, what will take a while."""
    echo(f"\n{what}", err=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings and log lines of libraries from the terminal; errors are still raised."""
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
    """Keep all that is written to standard output and error from the terminal, by native libraries too."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    try:
        with open(os.devnull, "wb") as nowhere, quiet():  # noqa: PTH123  no path
            for number in kept:
                os.dup2(nowhere.fileno(), number)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep from the terminal what transformers, and what it imports, report while loading."""
    from transformers.utils import logging as reports

    bars = reports.is_progress_bar_enabled()
    reports.disable_progress_bar()
    try:
        with quiet():
            logging.disable(logging.ERROR)  # what goes wrong is raised as well
            yield
    finally:
        if bars:
            reports.enable_progress_bar()


AT_ONCE_S = 2.0
"""What takes less tells no progress where no bar is drawn."""


@contextlib.contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Show on standard error how far `what` is: a bar on a terminal or in a notebook, elsewhere a line at every 10 %.

    Yield the function that says where it is: `(completed, what)`, the second where it reads otherwise by now.
    """
    on = console(stderr=True)
    # In a notebook rich draws a bar with ipywidgets alone.
    if not (importlib.util.find_spec("ipywidgets") if on.is_jupyter else on.is_terminal):
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
        console=on,
        transient=True,
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda completed, now=what: bar.update(task, completed=completed, description=now)


def _lines(what: str, total: int | None) -> Callable[..., None]:
    """Return progress's function for where nobody sees a bar, as in a log."""
    start = time.monotonic()
    told = 0

    def advance(completed: int, now: str = what) -> None:
        nonlocal told
        tenths = 10 * completed // total if total else 0
        seconds = time.monotonic() - start
        if tenths > told and seconds >= AT_ONCE_S:
            told = tenths
            echo(f"{now}: {10 * tenths} % after {seconds:.0f} s", err=True)

    return advance


def counted(number: int, what: str) -> str:
    """Return `number` and `what` it counts, in the plural unless it is one."""
    return f"{number} {what}{'' if number == 1 else 's'}"
