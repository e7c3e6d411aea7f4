"""Runs of several machines side by side: the same cells, each machine's figures in a column, and answers compared."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qbert.results import answers, summary
from qbert.results.columns import Entry, entry, shares
from qbert.results.compare import CELL, MACHINE, differences
from qbert.results.figures import COLOURS, Figure, draw, label_axes
from qbert.results.tables import has_threads, in_limit, three_digits
from qbert.system.errors import InputError
from qbert.system.terminal import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS_SHOWN = 100
"""Of the documents that machines label differently."""


@dataclass(frozen=True)
class Machine:
    """The runs of one machine."""

    label: str
    """A short name, which no other machine of the report has."""
    name: str
    """The name that it was given, its instance type, processor, cores and instruction sets: history.machine_name."""
    runs: pd.DataFrame
    table: pd.DataFrame
    """Its figures, from summary.summarize."""


@dataclass(frozen=True)
class Table:
    """One table of the report."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Entry]]


def of(runs: pd.DataFrame, prices: Mapping[str, float] = {}) -> list[Machine]:
    """Return the machines of `runs`, from history.load, in order of appearance, each with its own figures.

    `prices` are what an hour of a machine costs, by label or name.

    Raises:
        InputError: the runs are not of the same dataset, documents, traffic or latency limit, or of one machine that
            were not measured alike.
    """
    names = list(dict.fromkeys(runs["machine"]))
    if len(names) > 1:
        summary.refuse_mixed(runs, subject=False)
    found = []
    for name, label in zip(names, _labels(runs), strict=True):
        own = runs[runs["machine"] == name]
        price = prices.get(label, prices.get(name))
        found.append(Machine(label, name, own, summary.summarize(own if price is None else _priced(own, price))))
    return found


def check_prices(machines: Sequence[Machine], prices: Mapping[str, float]) -> None:
    """Raise InputError where a price is of no machine of the report."""
    known = {text for machine in machines for text in (machine.label, machine.name)}
    if unknown := [name for name in prices if name not in known]:
        labels = ", ".join(repr(machine.label) for machine in machines)
        raise InputError(
            f"--price names {', '.join(map(repr, unknown))}, and the machines are {labels}: name one of these"
        )


def _priced(runs: pd.DataFrame, price_per_hour: float) -> pd.DataFrame:
    """Return `runs` with what a million texts cost at this price, at the rate within the latency limit."""
    rate = runs["rate_within_limit"].astype(float)
    cost = (price_per_hour / 3600 * 1e6 / rate).where(rate > 0)
    return runs.assign(price_per_hour=price_per_hour, cost_per_million=cost)


def _labels(runs: pd.DataFrame) -> list[str]:
    """Return a short name for each machine: the one that it was given, its instance type, or its processor."""
    labels: list[str] = []
    for identity in runs.drop_duplicates("machine")["identity"]:
        hardware = identity.get("hardware", {})
        cores = f", {counted(hardware['logical cores'], 'core')}" if "logical cores" in hardware else ""
        processor = re.sub(r"\((R|TM)\)|\bProcessor\b|\bCPU\b", "", identity.get("processor", "unknown processor"))
        label = identity.get("machine_name") or hardware.get("instance type") or " ".join(processor.split()) + cores
        labels.append(label)
    return [
        f"{label} ({labels[: number + 1].count(label)})" if labels.count(label) > 1 else label
        for number, label in enumerate(labels)
    ]


def told(machines: Sequence[Machine]) -> list[str]:
    """Return the answers of each machine, which begin with its label if there are several; then theirs compared."""
    if len(machines) == 1:
        return summary.answers(machines[0].table)
    own = [f"{machine.label}: {answer}" for machine in machines for answer in summary.answers(machine.table)]
    return own + [sentence for model in models(machines) for sentence in _agreement(machines, model)]


def models(machines: Sequence[Machine]) -> list[str]:
    """Return the names of all models, in order of appearance."""
    return list(dict.fromkeys(name for machine in machines for name in machine.table["model"]))


def notes(machines: Sequence[Machine]) -> list[str]:
    """Return what the machines' runs differ in beside the machine, and how to read them side by side."""
    sentences = [
        "Each machine's figures are its own: none is pooled with another's, and no interval lies between them."
    ]
    first = machines[0]
    for other in machines[1:]:
        differing: dict[str, None] = {}
        for row, own in _same_cells(first, other):
            differing |= dict.fromkeys(differences(row["identity"], own["identity"], may_differ=MACHINE))
        if differing:
            most = 8
            more = f" and {len(differing) - most} more" if len(differing) > most else ""
            sentences.append(f"{first.label} and {other.label} differ in more: {'; '.join([*differing][:most])}{more}.")
    return sentences


def _same_cells(one: Machine, other: Machine) -> list[tuple[Mapping[Any, Any], Mapping[Any, Any]]]:
    of_other = {tuple(row[name] for name in CELL): row for row in other.table.to_dict("records")}
    pairs = ((row, of_other.get(tuple(row[name] for name in CELL))) for row in one.table.to_dict("records"))
    return [(row, match) for row, match in pairs if match is not None]


FIGURES = (
    ("Latency of one text, ms", "latency_s", lambda row: three_digits(row["latency_s"] * 1e3), True),
    ("Share of the machine's own limit, %", "share_of_limit", shares, True),
    ("Texts a second, every core busy", "texts_per_s", lambda row: three_digits(row["texts_per_s"]), True),
    ("Requests a second within the latency limit", "rate_within_limit", in_limit, True),
    ("A million texts cost", "cost_per_million", lambda row: three_digits(row["cost_per_million"]), True),
    ("Peak memory of a process, MB", "peak_rss_bytes", lambda row: f"{row['peak_rss_bytes'] / 1e6:.0f}", True),
    ("Loading, s", "load_s", lambda row: f"{row['load_s']:.2f}", True),
    ("On disk, MB", "disk_bytes", lambda row: f"{row['disk_bytes'] / 1e6:.4g}", False),
)
"""Title, column of the table, text; whether it is shown where it is the same everywhere."""


def side_by_side(machines: Sequence[Machine], model: str) -> list[Table]:
    """Return a table for each figure of `model`: a row for each length and variant, a column for each machine."""
    cells: dict[tuple[int, str], list[Mapping[Any, Any] | None]] = {}
    for number, machine in enumerate(machines):
        for row in machine.table[machine.table["model"] == model].to_dict("records"):
            cells.setdefault((row["max_length"], row["variant"]), [None] * len(machines))[number] = row
    ordered = sorted(cells.items(), key=lambda cell: cell[0][0])
    found = []
    for title, column, text, always in FIGURES:
        rows: list[list[Entry]] = []
        for (max_length, variant), of_machines in ordered:
            known = [row if row is not None and pd.notna(row[column]) else None for row in of_machines]
            if any(known) and (always or len({row[column] for row in known if row}) > 1):
                cell: list[Entry] = [(str(max_length), float(max_length)), (variant, variant)]
                rows.append([*cell, *(entry(row[column], text(row)) if row else ("", "") for row in known)])
        if rows:
            found.append(Table(title, ("tokens", "variant", *(machine.label for machine in machines)), rows))
    return found


def figures(machines: Sequence[Machine], model: str) -> list[Figure]:
    """Return drawings of `model`: latency, texts a second and cost by variant, a bar for each machine.

    They are at the greatest length that several machines have measured.
    """
    drawn = []
    for title, column, factor in (
        ("latency, ms", "latency_s", 1e3),
        ("texts a second", "texts_per_s", 1.0),
        ("a million texts cost", "cost_per_million", 1.0),
    ):
        tables = [
            machine.table[(machine.table["model"] == model) & machine.table[column].notna()] for machine in machines
        ]
        lengths = [length for table in tables for length in set(table["max_length"])]
        longest = max((length for length in lengths if lengths.count(length) > 1), default=0)
        by_machine = [
            {row["variant"]: factor * row[column] for row in table[table["max_length"] == longest].to_dict("records")}
            for table in tables
        ]
        variants = [
            name for name in dict.fromkeys(name for own in by_machine for name in own) if not has_threads(str(name))
        ]
        if not longest:
            continue
        at = f"at {longest} tokens"
        words = "; ".join(
            f"{machine.label}: " + ", ".join(f"{name} {three_digits(own[name])}" for name in variants if name in own)
            for machine, own in zip(machines, by_machine, strict=True)
        )
        drawn.append(
            Figure(
                draw(partial(_bars, by_machine, variants, title), 0.9 + 0.2 * len(variants) * len(machines)),
                f"{model}, {title} {at}: {words}",
                f"{title.capitalize()} {at}, by variant and machine.",
            )
        )
    return drawn


def _bars(by_machine: Sequence[Mapping[str, float]], variants: Sequence[str], label: str, axes: "Axes") -> None:
    rows = np.arange(len(variants))[::-1].astype(float)
    height = 0.8 / len(by_machine)
    for number, own in enumerate(by_machine):
        values = np.array([own.get(name, np.nan) for name in variants])
        places = rows + 0.4 - height * (number + 0.5)
        axes.barh(places, values, height=height, color=COLOURS[number % len(COLOURS)])
        for y, x in zip(places, values, strict=True):
            if not np.isnan(x):
                axes.annotate(
                    three_digits(x), (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
                )
    label_axes(axes, pd.DataFrame({"variant": variants}), rows, label)
    axes.set_xlim(0, 1.15 * max(value for own in by_machine for value in own.values()))


def _compared(machines: Sequence[Machine], model: str) -> list[tuple[Mapping[Any, Any], list[int], answers.Difference]]:
    """Return a cell of `model` each, which machines' answers can be compared there, and how they differ."""
    found = []
    cells: dict[tuple[int, str], list[tuple[int, Mapping[Any, Any]]]] = {}
    for number, machine in enumerate(machines):
        for row in machine.table[machine.table["model"] == model].to_dict("records"):
            if isinstance(row["answers"], dict):
                cells.setdefault((row["max_length"], row["variant"]), []).append((number, row))
    for _, rows in sorted(cells.items(), key=lambda cell: cell[0][0]):
        alike = [
            [(number, row) for number, row in rows if _same_subject(first, row)] for _, first in rows
        ]  # the machines that have judged the same as each of them
        largest = max(alike, key=len)
        difference = answers.between({str(number): row["answers"] for number, row in largest})
        if len(largest) > 1 and difference:
            found.append((largest[0][1], [number for number, _ in largest], difference))
    return found


def _same_subject(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    """Whether two rows are of the same checkpoint, dataset, definition and documents."""
    if differences(one["identity"], other["identity"], may_differ=[*MACHINE, "versions", "threads"]):
        return False
    return answers.between({"one": one["answers"], "other": other["answers"]}) is not None


def answers_compared(machines: Sequence[Machine], model: str) -> list[Table]:
    """Return how the answers of `model` differ between machines, by cell, and the documents; empty without any."""
    compared = _compared(machines, model)
    if not compared:
        return []
    rows: list[list[Entry]] = []
    documents: list[list[Entry]] = []
    for row, numbers, difference in compared:
        cell: list[Entry] = [(str(row["max_length"]), float(row["max_length"])), (row["variant"], row["variant"])]
        apart = difference.logit_difference
        rows.append(
            [
                *cell,
                (str(difference.documents), float(difference.documents)),
                (str(difference.flips), float(difference.flips)),
                ("not kept", "") if apart is None else (f"{apart:.3g}", apart),
                ("", "") if difference.logit_row is None else (str(difference.logit_row), float(difference.logit_row)),
                (", ".join(machines[number].label for number in numbers), ""),
            ]
        )
        for document, labels in difference.rows.items():
            by_machine = dict(zip(numbers, labels, strict=True))
            said: list[Entry] = [
                (by_machine.get(number, ""), by_machine.get(number, "")) for number in range(len(machines))
            ]
            documents.append([*cell, (str(document), float(document)), *said])
    heads = (
        "tokens",
        "variant",
        "documents",
        "labels that differ",
        "greatest logit difference",
        "in document",
        "machines",
    )
    found = [Table("Answers compared", heads, rows)]
    if documents:
        title = "Documents that machines label differently"
        if len(documents) > ROWS_SHOWN:
            title += f", the first {ROWS_SHOWN} of {len(documents)}"
        labels_of = ("tokens", "variant", "document", *(machine.label for machine in machines))
        found.append(Table(title, labels_of, documents[:ROWS_SHOWN]))
    return found


def _agreement(machines: Sequence[Machine], model: str) -> list[str]:
    """Return a sentence on how far the machines answer alike, and one on those whose answers cannot be compared."""
    judged = {
        number
        for number, machine in enumerate(machines)
        if machine.table.loc[machine.table["model"] == model, "f1"].notna().any()
    }
    if len(judged) < 2:  # noqa: PLR2004  one has nothing beside it
        return []
    compared = _compared(machines, model)
    sentences = []
    if compared:
        row, _, most = max(compared, key=lambda found: (found[2].flips, found[2].logit_difference or 0))
        name = f"{row['variant']}, {row['max_length']} tokens"
        if most.flips:
            sentences.append(f"{model}: machines answer differently, most in {name}: {answers.sentence(most)}.")
        else:
            sentences.append(f"{model}: the machines whose answers can be compared agree in every label.")
    if silent := judged - {number for _, numbers, _ in compared for number in numbers}:
        names = " and ".join(machines[number].label for number in sorted(silent))
        sentences.append(
            f"{model}: the answers of {names} cannot be compared: of another checkpoint, dataset or variant, "
            "or saved by an older version."
        )
    return sentences


def provenance(machines: Sequence[Machine]) -> list[tuple[str, str]]:
    """Return the label of each machine, and what it is."""
    return [(machine.label, machine.name.removeprefix(f"{machine.label}, ")) for machine in machines]
