"""The command `qbert reproduce`."""

import json
from pathlib import Path

import click

from qbert.cli import options
from qbert.errors import InputError


@click.command()
@click.option("--dataset", default="news_mini", show_default=True, metavar="DIR", help="Folder of the dataset.")
@click.option(
    "--base",
    default="bert-tiny",
    show_default=True,
    metavar="BASE",
    help="What is trained: hub id, folder or built-in.",
)
@click.option("--variant", default="int8-dynamic", show_default=True, metavar="NAME", help="What comes after.")
@click.option("--max-lengths", default="384,256,128", show_default=True, metavar="LIST", help="Tokens.")
@click.option("--trainings", type=click.IntRange(min=1), default=3, show_default=True, help="Of each length.")
@options.json_option
@options.markdown_option
def reproduce(
    dataset: str,
    base: str,
    variant: str,
    max_lengths: str,
    trainings: int,
    json_file: Path | None,
    markdown: Path | None,
) -> None:
    """Do the published experiment anew: trainings at each length, time per document and F1 before and after.

    What is done is kept: an interrupted run goes on where it stopped.
    """
    import dataclasses
    import hashlib

    from qbert import dataset as datasets
    from qbert import reproduce
    from qbert import variants as table
    from qbert.cache import cache_dir
    from qbert.results import tables
    from qbert.suite import UNTRAINED, Suite
    from qbert.terminal import progress

    table.get(variant)
    if variant == table.BASELINE:
        raise InputError(f"--variant {variant} is what comes before: name what comes after")
    if base == UNTRAINED:
        raise InputError(
            f"--base {base} is random weights here: name a hub id (bert-base-chinese), a folder or bert-tiny"
        )
    loaded = datasets.load(dataset)
    suite = Suite(loaded, [base], max_lengths=options.lengths(max_lengths), experiments=trainings, fine_tune=True)
    documents = loaded.documents(None)
    done = []
    for max_length in suite.max_lengths:
        for model in suite.models.values():
            before, after = (suite.cell(model.name, max_length, name) for name in (table.BASELINE, variant))
            identity = [cell.describe(cell.classifier.evidence)["identity"] for cell in (before, after)]
            key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
            path = cache_dir() / "reproductions" / f"{key}.json"
            training = reproduce.kept(path, identity)
            if training is None:
                what = f"{max_length} tokens, training {model.seed + 1} of {trainings}"
                with progress(what, len(documents)) as advance:
                    training = reproduce.measure(before, after, documents, advance)
                reproduce.keep(path, identity, training)
            done.append(training)
    title = f"{base} on {loaded.name}, {len(documents)} documents one by one: fp32 before, {variant} after"
    tables.show(reproduce.table(done, title=title))
    options.write(json_file, json.dumps([dataclasses.asdict(one) for one in done], indent=1) + "\n")
    options.write(markdown, reproduce.markdown(done, title=title))
