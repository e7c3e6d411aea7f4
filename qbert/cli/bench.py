"""The command `qbert bench`: pytest on the cases of this package."""

import os
import re
import sys

import click

from qbert.inputs.options import OPTIONS

DEFAULTS = ("--benchmark-save-data", "--benchmark-columns=min,median,iqr,rounds", "--benchmark-sort=name")
"""The options of pytest-benchmark that suit the cases; this project's own pyproject.toml has the same."""


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="ARGS...")
@click.pass_context
def bench(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Run the cases: pytest with ARGS, all of pytest's and pytest-benchmark's options among them.

    `qbert bench --help` is pytest's, with this suite's options near the end. The exit code is pytest's.
    """
    from qbert import pytest_plugin

    plugins = [part for name in (ctx.parent or ctx).params.get("plugins", ()) for part in ("-p", name)]
    defaults = [] if "no:benchmark" in arguments else DEFAULTS  # without it these would be unknown options
    cases = ["--pyargs", pytest_plugin.CASES]
    options = ["-p", pytest_plugin.__name__, *defaults, *plugins, *with_full_names(arguments)]
    # exec, since pytest rewrites the asserts only of modules that are not yet imported.
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *options, *cases])  # noqa: S606  our own command


def with_full_names(arguments: tuple[str, ...]) -> list[str]:
    """Return `arguments` with the full names of this suite's options, as the plugin registers them."""
    names = [re.escape(name) for option in OPTIONS.values() for name in option.names]
    short = re.compile(rf"--({'|'.join(names)})(?==|$)")
    return [short.sub(r"--qbert-\1", argument) for argument in arguments]
