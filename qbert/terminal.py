"""What a person sees while waiting: rich's consoles, and progress that is silent where no one looks."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def say(what: str) -> None:
    """Tell on standard error, on a line of its own, what will take a while."""
    sys.stderr.write(f"\n{what}\n")
    sys.stderr.flush()


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
def progress(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Show on standard error how far `what` is and how long it has left.

    Yield the function that says where it is: `(completed, what)`, the second where it reads otherwise by now.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda completed, now=what: bar.update(task, completed=completed, description=now)
