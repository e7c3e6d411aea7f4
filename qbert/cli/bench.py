"""The command `qbert bench`: pytest on the cases of this package."""

import os
import re
import sys

import click

DEFAULTS = ("--benchmark-save-data", "--benchmark-columns=min,median,iqr,rounds", "--benchmark-sort=name")
"""What the cases look best with; as in this project's own pyproject.toml."""


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="ARGS...")
@click.pass_context
def bench(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Run the cases: pytest with ARGS, all of pytest's and pytest-benchmark's options among them.

    `qbert bench --help` is pytest's, with this suite's options near the end. The exit code is pytest's.
    """
    from qbert import pytest_plugin

    named = [part for name in (ctx.parent or ctx).params.get("plugins", ()) for part in ("-p", name)]
    defaults = [] if "no:benchmark" in arguments else DEFAULTS  # without it these would be unknown options
    cases = ["--pyargs", pytest_plugin.CASES]
    options = ["-p", pytest_plugin.__name__, *defaults, *named, *in_full(arguments)]
    # In this process's place: pytest rewrites the asserts only of what was not imported before.
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *options, *cases])  # noqa: S606  our own command


def in_full(arguments: tuple[str, ...]) -> list[str]:
    """Return `arguments` with this suite's options by their full names, as the plugin registers them."""
    from qbert import pytest_plugin

    short = re.compile(rf"--({'|'.join(map(re.escape, pytest_plugin.OPTIONS))})(?==|$)")
    return [short.sub(r"--qbert-\1", argument) for argument in arguments]
