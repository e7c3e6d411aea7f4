"""The command `qbert reproduce`."""

import json
from pathlib import Path

import click

from qbert.cli import options
from qbert.inputs.settings import DEFAULTS
from qbert.system.errors import InputError


@click.command()
@options.shared("dataset", default=DEFAULTS.dataset, help="Folder of the dataset.")
@click.option(
    "--base",
    default="bert-tiny",
    show_default=True,
    metavar="BASE",
    help="What is trained: hub id, folder or built-in.",
)
@click.option("--variant", default="int8-dynamic", show_default=True, metavar="NAME", help="What comes after.")
@options.shared("max-lengths", default="384,256,128", help="Tokens.")
@click.option("--trainings", type=click.IntRange(min=1), default=3, show_default=True, help="Of each length.")
@options.cluster_option()
@options.json_option
@options.markdown_option
def reproduce(
    dataset: str,
    base: str,
    variant: str,
    max_lengths: str,
    trainings: int,
    cluster: str | None,
    json_file: Path | None,
    markdown: Path | None,
) -> None:
    """Reproduce the published experiment: trainings at each length, time per document and F1 before and after.

    Results are saved: an interrupted run continues where it stopped.
    """
    import dataclasses

    from qbert import variants as table
    from qbert.cluster import trainings as trainings_there
    from qbert.cluster import workers as clusters
    from qbert.inputs import dataset as datasets
    from qbert.inputs.models import UNTRAINED
    from qbert.measure.cells import Suite
    from qbert.results import tables
    from qbert.selection import reproduce

    table.get(variant)
    if variant == table.BASELINE:
        raise InputError(f"--variant {variant} is what comes before: name what comes after")
    if base == UNTRAINED:
        raise InputError(
            f"--base {base} is random weights here: name a hub id (bert-base-chinese), a folder or bert-tiny"
        )
    loaded = datasets.load(dataset)
    if not loaded.label_names:
        raise InputError(f"--dataset {dataset} has numbers, and the experiment is of labels: name one with label.json")
    suite = Suite(loaded, [base], max_lengths=options.lengths(max_lengths), experiments=trainings, fine_tune=True)
    if cluster is None:
        results = reproduce.run(suite, variant)
    else:
        with clusters.connect(cluster) as client:
            clusters.warn_of_unlike(client)
            results = trainings_there.run(suite, variant, base, client)
    title = f"{base} on {loaded.name}, {len(loaded.test)} documents one by one: fp32 before, {variant} after"
    tables.show(reproduce.table(results, title=title))
    options.write(json_file, json.dumps([dataclasses.asdict(training) for training in results], indent=1) + "\n")
    options.write(markdown, reproduce.markdown(results, title=title))
