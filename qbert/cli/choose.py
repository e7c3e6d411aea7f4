"""The command that picks a variant and writes it: choose."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qbert.cli import options
from qbert.cli.options import Number
from qbert.inputs.settings import here
from qbert.system.errors import InputError
from qbert.system.terminal import echo

if TYPE_CHECKING:
    from qbert.selection.choosing import Prefer

_MEGABYTES = Number(0, 1e9, min_open=True)


@click.command()
@options.shared("model", "dataset")
@options.max_drop_option(Number(0, 1), "The guard; 0: no label, or order, may change.  [0.01]")
@options.output_option()
@options.shared("variants")
@click.option(
    "--validation",
    type=options.FILE,
    metavar="FILE",
    help="Choose by its documents, which the model has not seen; columns as in train.csv. Default: half of train.csv.",
)
@click.option("--max-length", type=click.IntRange(min=1), metavar="L", help="Tokens at which texts are cut off.")
@click.option("--latency-limit", type=Number(0, 1e9, min_open=True), metavar="MS", help="For 95 of 100 texts.")
@click.option("--max-disk-mb", type=_MEGABYTES, metavar="MB")
@click.option("--max-memory-mb", type=_MEGABYTES, metavar="MB", help="Of a process that serves it.")
@click.option(
    "--prefer",
    type=click.Choice(["latency", "capacity", "size"]),
    default="latency",
    show_default=True,
    help="What the best is best at; capacity: texts a second with every core busy.",
)
@options.cluster_option()
@options.json_option
def choose(
    model: str | None,
    dataset: str | None,
    max_drop: float | None,
    output: Path,
    variants: str | None,
    validation: Path | None,
    max_length: int | None,
    latency_limit: float | None,
    max_disk_mb: float | None,
    max_memory_mb: float | None,
    prefer: "Prefer",
    cluster: str | None,
    json_file: Path | None,
) -> None:
    """Write the fastest variant of MODEL that holds the guard on this machine, ready to serve.

    The exit code is 1 if none holds. An interrupted call is taken up by the next: no document is judged twice. Defaults
    are in pyproject.toml, [tool.qbert].
    """
    from qbert.cluster.judging import workers_at
    from qbert.results import run_tables, tables
    from qbert.selection import choosing
    from qbert.variants.base import MAX_DROP

    settings = here(Path.cwd(), models=model and (model,), dataset=dataset, variants=variants, max_drop=max_drop)
    limit = MAX_DROP if settings.max_drop is None else settings.max_drop
    if limit < 0:
        raise InputError(f"[tool.qbert] max_drop is {limit:g}, and no variant has to gain: give --max-drop")
    wanted = choosing.Wanted(
        limit,
        settings.drop_guard,
        latency_limit_s=latency_limit and latency_limit / 1e3,
        max_disk_bytes=max_disk_mb and max_disk_mb * 1e6,
        max_memory_bytes=max_memory_mb and max_memory_mb * 1e6,
        prefer=prefer,
    )
    with workers_at(cluster) as workers:
        if workers is not None:
            choosing.check_workers(workers)
        found = choosing.choose(
            options.one_model(settings),
            settings.dataset,
            settings.variant_list,
            output,
            wanted,
            validation=validation,
            max_length=max_length,
            workers=workers,
        )
    options.write(json_file, json.dumps(found.to_record(), indent=1, ensure_ascii=False) + "\n")
    tables.show(run_tables.choice(found.to_record()))
    echo(f"\n{found.sentence}")
    if found.chosen is None:
        sys.exit(1)
    echo(f"{output}: {found.chosen.variant}, {found.chosen.disk_bytes / 1e6:.1f} MB; why: {choosing.RECORD}")
