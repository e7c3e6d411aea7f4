"""The commands `qbert variants` and `qbert machine`: what can run on this machine."""

import math
import os

import click
from rich.markup import escape

TOKENS = 128  # the rates hardly change with more


@click.command()
def variants() -> None:
    """List the variants: which can run here, and what the others lack."""
    from rich.table import Table

    from qbert import variants as table
    from qbert.system.terminal import console

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("variant", "runtime", "here", "needs"):
        drawn.add_column(heading, no_wrap=heading != "needs")
    table.import_installed()
    for row in table.VARIANTS.values():
        reason = row.missing()
        here = "no" if reason else "yes" if row.default else "by name"
        drawn.add_row(escape(row.name), escape(row.runtime), here, escape(reason or row.needs))
    console().print(drawn)


@click.command()
def machine() -> None:
    """Show this processor, the best rates of one core, and what disturbs timing here."""
    from rich.console import Group
    from rich.table import Table

    from qbert import variants as table
    from qbert.measure import roofline
    from qbert.results import tables
    from qbert.system import machine as this_machine
    from qbert.system.terminal import say

    packages = sorted({name for variant in table.VARIANTS.values() for name in variant.packages})
    say("measuring matrix products on one core, some seconds")
    core = roofline.core(*roofline.BERT_BASE, TOKENS)
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    drawn.add_row("processor", escape(this_machine.processor()))
    drawn.add_row("cores", f"{os.cpu_count()}")
    drawn.add_row("instruction sets", ", ".join(this_machine.instruction_sets()))
    drawn.add_row("caches", ", ".join(f"{name} {size}" for name, size in this_machine.caches().items()) or "not known")
    drawn.add_row(
        "libraries", ", ".join(f"{name} {version}" for name, version in this_machine.versions(*packages).items())
    )
    for number, sentence in enumerate(this_machine.disturbances() or ["nothing found"]):
        drawn.add_row("" if number else "disturbs timing", escape(sentence))
    rates = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    rates.add_column(f"BERT-base's products, {TOKENS} tokens")
    for precision in core.rates:
        rates.add_column(precision, justify="right")
    for kernel in dict.fromkeys(kernel for known in core.rates.values() for kernel in known):
        speeds = [tables.number(known.get(kernel, math.nan) / 1e9, ".0f") for known in core.rates.values()]
        rates.add_row(f"{kernel}, billion operations/s", *speeds)
    rates.add_row("reading the weights, GB/s", *(f"{core.bandwidths[name] / 1e9:.1f}" for name in core.rates))
    rates.add_row("tokens below which reading takes longer", *(f"{core.crossing(name):.0f}" for name in core.rates))
    tables.show(Group(drawn, "", rates))
