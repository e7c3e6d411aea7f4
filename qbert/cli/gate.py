"""The command `qbert gate`."""

import json
import os
import signal
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qbert.cli import options
from qbert.inputs.settings import here
from qbert.system.errors import InputError
from qbert.system.terminal import echo

if TYPE_CHECKING:
    from types import FrameType

CALIBRATED = (0.02, 0.03, 0.05, 0.10)
CALIBRATION_PAIRS = 16
CALIBRATION_SECONDS = 6 * 3600  # long enough for all pairs


@click.command()
@click.option("--base-ref", metavar="REF", help="Base's code: this commit, branch or tag of the repository here.")
@click.option(
    "--base-python",
    type=click.Path(exists=True, dir_okay=False),
    metavar="PATH",
    help="Base's interpreter and libraries.",
)
@click.option("--base-model", multiple=True, metavar="MODEL", help="Base's models, one for each --model.")
@click.option("--base-dataset", metavar="DIR", help="Base's dataset.")
@options.shared("model", multiple=True)
@options.shared("dataset", help="Dataset for encodings and answers.")
@options.shared("variants", help="Names with commas between.")
@options.shared("max-lengths")
@options.shared("documents", help="Judge by a sample of N test documents.")
@options.min_effect_option
@options.min_drop_option
@click.option(
    "--max-pairs", type=click.IntRange(1, 200), metavar="N", help="Pairs of processes at most.  [default: 40]"
)
@click.option(
    "--max-seconds",
    type=options.Number(min=1),
    metavar="S",
    help="Time for pairs at most.  [default: by the number of cells]",
)
@click.option(
    "--timeout",
    type=options.Number(min=0.1),
    default=60,
    show_default=True,
    metavar="S",
    help="A side that does not answer for S seconds while timing is hanging.",
)
@click.option("--strict", is_flag=True, help="End with 3 where any verdict is inconclusive.")
@click.option("--calibrate", is_flag=True, help="Compare this machine with itself: what it can find.")
@options.json_option
@options.markdown_option
@click.pass_context
def gate(
    ctx: click.Context,
    base_ref: str | None,
    base_python: str | None,
    base_model: tuple[str, ...],
    base_dataset: str | None,
    models: tuple[str, ...],
    *,
    dataset: str | None,
    variants: str | None,
    max_lengths: str | None,
    documents: int | None,
    min_effect: float,
    min_drop: float,
    max_pairs: int | None,
    max_seconds: float | None,
    timeout: float,
    strict: bool,
    calibrate: bool,
    json_file: Path | None,
    markdown: Path | None,
) -> None:
    """Compare head, the current tree, with base: latency in pairs of processes, answers to the same documents.

    With --base-ref, base has that commit's version of all that lies in the repository: modules, a --model, a --dataset.

    Exits with 0 if nothing was shown to be worse, 1 on a regression, 2 on a usage error, 3 if nothing could be decided
    (--strict: not everything), 4 if the sides are not comparable or one of them cannot run. Options that are not given
    come from pyproject.toml, [tool.qbert]; limits of cells from [[tool.qbert.gate.limits]].
    """
    import contextlib

    from qbert.gate import run as gates
    from qbert.gate import sides
    from qbert.inputs import dataset as datasets
    from qbert.inputs import metrics
    from qbert.inputs.training import GEOMETRIES
    from qbert.results import tables, verdicts

    named = base_ref or base_python or base_model or base_dataset
    if not (named or calibrate):
        raise InputError(
            "name what to hold against: --base-ref, --base-python, --base-model, --base-dataset, or --calibrate"
        )
    if named and calibrate:
        raise InputError(
            "--calibrate holds this machine against itself: leave out "
            "--base-ref, --base-python, --base-model, --base-dataset"
        )
    settings = here(
        Path.cwd(),
        models=models,
        dataset=dataset,
        variants=variants,
        max_lengths=max_lengths and options.lengths(max_lengths),
    )
    models = tuple(_absolute(model, GEOMETRIES) for model in settings.models)
    models = models if base_model else tuple(dict.fromkeys(models))
    if base_model and len(base_model) != len(models):
        raise InputError(f"--base-model is given {len(base_model)} times for {len(models)} models: give one for each")
    dataset = _absolute(settings.dataset, [datasets.BUILT_IN])
    may_differ = {"versions"} if base_python else set()
    if base_ref or base_model:
        may_differ.add("checkpoint_sha256")  # base has its own models; its commit contains or trains them
    subject = sides.Subject(
        settings.max_lengths,
        settings.variant_list,
        documents,
        (*(ctx.parent or ctx).params.get("plugins", ()), *settings.plugins),
    )
    budget = gates.Budget(
        min_effect,
        min_drop,
        max_pairs or (CALIBRATION_PAIRS if calibrate else gates.Budget.max_pairs),
        max_seconds or (CALIBRATION_SECONDS if calibrate else None),
        timeout,
    )
    if calibrate and markdown:
        raise InputError(
            "--markdown writes verdicts, and --calibrate gives none: leave one out (--json has the figures)"
        )
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _end))
        base, head = stack.enter_context(
            sides.base_and_head(
                models,
                dataset,
                ref=base_ref,
                python=base_python,
                base_models=tuple(_absolute(model, GEOMETRIES) for model in base_model),
                base_dataset=base_dataset and _absolute(base_dataset, [datasets.BUILT_IN]),
            )
        )
        try:
            result = gates.run(
                *(base, head, subject, budget),
                limits=settings.gate.limits,
                may_differ=may_differ,
                every_pair=calibrate,
                against_itself=calibrate,
                strict=strict,
            )
        except sides.SideError as error:
            echo(f"Error: {error}", err=True)
            ctx.exit(gates.NOT_COMPARABLE)
        except KeyboardInterrupt:
            ctx.exit(128 + signal.SIGINT)
    settings_of_run = metrics.own_names({"metric": verdicts.metric_of(result["cells"]).key} | result["settings"])
    saved = result | {"cells": verdicts.for_json(result["cells"]), "settings": settings_of_run}
    options.write(json_file, json.dumps(saved, indent=1, ensure_ascii=False) + "\n")
    if calibrate:
        tables.show(verdicts.calibration(gates.calibrated(result, CALIBRATED), result))
        return
    cells = result["cells"]
    title, caption = verdicts.answer(cells), verdicts.gate_caption(result)
    tables.show(verdicts.verdicts(cells, title=title, caption=caption))
    options.write(markdown, verdicts.verdicts_markdown(cells, title=title, caption=caption.replace("\n", " ")))
    ctx.exit(result["exit_code"])


def _end(number: int, _: "FrameType | None") -> None:
    """Exit as after an error, so that no process and no worktree is left."""
    raise SystemExit(128 + number)


def _absolute(source: str, built_in: Collection[str]) -> str:
    """Return `source` as an absolute path if it is a folder; links in it are not followed."""
    return os.path.abspath(source) if source not in built_in and Path(source).is_dir() else source  # noqa: PTH100
