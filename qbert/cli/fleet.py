"""The command `qbert fleet`."""

import sys
from pathlib import Path

import click

from qbert.cli import options
from qbert.system.cache import is_filled
from qbert.system.errors import InputError
from qbert.system.terminal import echo


@click.command()
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="-- ARGS...")
@options.cluster_option(required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("fleet"),
    show_default=True,
    metavar="DIR",
    help="Where saved runs, logs and the report go.",
)
def fleet(arguments: tuple[str, ...], cluster: str, output: Path) -> None:
    """Run `qbert bench ARGS` once on every machine of a Dask cluster, bring the runs home, and report on all.

    Each machine runs by itself, in a process beside Dask's worker, with nothing else to do. Folders of models and
    datasets in ARGS are sent. The exit code is 1 if a machine failed; the others go on.
    """
    from qbert.cluster import bench as machines_of
    from qbert.cluster import workers as clusters
    from qbert.inputs import settings
    from qbert.results import history, machines, page
    from qbert.system.terminal import counted, progress

    if is_filled(output):
        raise InputError(f"{output} exists already: name another folder (-o)")
    here = settings.here(Path.cwd())
    with clusters.connect(cluster) as client:
        clusters.warn_of_unlike(client)
        count = len(machines_of.hosts(client))
        echo(f"measuring on {counted(count, 'machine')}", err=True)
        with progress("machines", count) as advance:
            results = machines_of.run(client, machines_of.with_settings(arguments, here), output, advance)
    for result in results:
        kept = result.run or result.log or "nothing came home"
        echo(f"{result.host.name}: {f'failed, {result.failed}' if result.failed else kept}")
    saved = [result.run for result in results if result.run]
    if saved:
        found = machines.split(history.load(saved), here.prices)
        options.write(output / "report.html", page.render(found))
        for answer in machines.findings(found):
            echo(answer)
        echo(f"{output / 'report.html'}: the report of {counted(len(found), 'machine')}")
    sys.exit(1 if any(result.failed for result in results) else 0)
