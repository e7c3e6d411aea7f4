"""The command `qbert`: its commands, and how it reports errors."""

import os
import warnings
from typing import Any

import click

from qbert import __version__
from qbert.cli import bench, choose, fleet, gate, init, machine, models, reproduce, rescue, results
from qbert.inputs.settings import import_plugin
from qbert.system.errors import TRACEBACK, lacking, sentence
from qbert.system.terminal import echo, shown

EXTRAS = {
    "train": "train",
    "predict": "train",  # for a checkpoint; an artefact needs only its runtime
    "quantize": "quantize",
    **dict.fromkeys(("compare", "history", "report"), "report"),
    **dict.fromkeys(("evaluate", "bench", "choose", "gate", "machine", "reproduce", "fleet", "rescue"), "bench"),
}
"""The extra of this project that installs everything a command needs."""


class Command(click.Group):
    """A group that reports every error in one sentence, with exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run the command."""
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            try:
                return self._invoke(ctx)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except Exception as error:  # of any class: every error is reported in one sentence
                if os.environ.get(TRACEBACK):
                    raise
                raise click.UsageError(shown(sentence(error))) from error

    def _invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            name = ctx.invoked_subcommand or ""
            raise lacking(error, f"qbert {name}", EXTRAS.get(name, "all")) from error


def _warn(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if category.__module__.partition(".")[0] == __package__.partition(".")[0]:  # those of libraries are not for users
        echo(f"warning: {message}", err=True)


@click.group(cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="qbert")
@click.option("-p", "plugins", multiple=True, metavar="MODULE", help="Import a module that adds variants; repeatable.")
def main(plugins: tuple[str, ...]) -> None:
    """Train, quantize and judge BERT text classifiers on CPUs.

    `qbert bench` measures; its defaults are in pyproject.toml, [tool.qbert].
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for name in plugins:
        import_plugin(name, "-p")


for command in (
    models.train,
    models.evaluate,
    models.quantize,
    models.predict,
    bench.bench,
    choose.choose,
    gate.gate,
    results.compare,
    results.history,
    results.report,
    reproduce.reproduce,
    fleet.fleet,
    rescue.rescue,
    machine.variants,
    machine.machine,
    init.init,
):
    main.add_command(command)
