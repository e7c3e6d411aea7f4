"""Runs of several machines side by side: the same cells, each machine's figures in a column, and answers compared."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from operator import itemgetter

import pandas as pd

from qbert.measure import queueing
from qbert.results import answers, columns, summary
from qbert.results.compare import MACHINE, differences
from qbert.results.figures import Figure, draw, machine_bars
from qbert.results.run_tables import has_threads
from qbert.results.tables import Columns, Row, Shown, Table, number, three_digits, written
from qbert.system.errors import InputError
from qbert.system.terminal import counted

ROWS_SHOWN = 100
"""Of the documents that machines answer differently."""


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


def split(runs: pd.DataFrame, prices: Mapping[str, float] = {}) -> list[Machine]:
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
    cost = queueing.cost_per_million(price_per_hour, rate).where(rate > 0)
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


def findings(machines: Sequence[Machine]) -> list[str]:
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
        for model in first.table["model"].unique():
            for pair in _by_cell([first, other], model).values():
                identities = [row["identity"] for row in pair.values()]
                if len(identities) > 1:
                    differing |= dict.fromkeys(differences(*identities, may_differ=MACHINE))
        if differing:
            most = 8
            more = f" and {len(differing) - most} more" if len(differing) > most else ""
            sentences.append(f"{first.label} and {other.label} differ in more: {'; '.join([*differing][:most])}{more}.")
    return sentences


def _by_cell(machines: Sequence[Machine], model: str) -> dict[tuple[int, str], dict[int, Row]]:
    """Return the rows of `model` by length and variant, the lengths ascending; each by the number of its machine."""
    cells: dict[tuple[int, str], dict[int, Row]] = {}
    for place, machine in enumerate(machines):
        for row in machine.table[machine.table["model"] == model].to_dict("records"):
            cells.setdefault((row["max_length"], row["variant"]), {})[place] = row
    return dict(sorted(cells.items(), key=lambda cell: cell[0][0]))


def side_by_side(machines: Sequence[Machine], model: str) -> list[Table]:
    """Return a table for each figure of `model`: a row for each length and variant, a column for each machine."""
    cells = _by_cell(machines, model)
    found = []
    for name, figure in columns.shown("machines", pd.concat([machine.table for machine in machines])).items():
        rows: list[Row] = []
        for (max_length, variant), of_machines in cells.items():
            known = {number: row for number, row in of_machines.items() if pd.notna(row[name])}
            if known and not (figure.only_where_different and len({row[name] for row in known.values()}) == 1):
                rows.append({"max_length": max_length, "variant": variant} | known)
        if rows:
            own = Shown("", partial(_of_machine, figure, name), key=itemgetter(name))
            found.append(Table(figure.heading, _columns(machines, own), rows))
    return found


def _of_machine(figure: Shown, name: str, row: Row, machine: int) -> str:
    return figure.write(row[machine], name) if machine in row else ""


def _columns(machines: Sequence[Machine], own: Shown, **more: Shown) -> Columns:
    """Return the columns of a cell, `more`, and one as `own` for each machine, by its number."""
    of_machines = {number: replace(own, heading=machine.label) for number, machine in enumerate(machines)}
    return {**columns.CELL_COLUMNS, **more, **of_machines}


def figures(machines: Sequence[Machine], model: str) -> list[Figure]:
    """Return drawings of `model`: latency, texts a second and cost by variant, a bar for each machine.

    They are at the greatest length that several machines have measured.
    """
    drawn = []
    cells = _by_cell(machines, model)
    for title, name, factor in (
        ("latency, ms", "latency_s", 1e3),
        ("texts a second", "texts_per_s", 1.0),
        ("a million texts cost", "cost_per_million", 1.0),
    ):
        lengths: dict[int, set[int]] = {}
        for (length, _), of_machines in cells.items():
            lengths.setdefault(length, set()).update(n for n, row in of_machines.items() if pd.notna(row[name]))
        longest = max((length for length, measured in lengths.items() if len(measured) > 1), default=0)
        if not longest:
            continue
        by_machine: list[dict[str, float]] = [{} for _ in machines]
        for (length, variant), of_machines in cells.items():
            for place, row in of_machines.items():
                if length == longest and pd.notna(row[name]) and not has_threads(variant):
                    by_machine[place][variant] = factor * row[name]
        variants = list(dict.fromkeys(chain(*by_machine)))
        at = f"at {longest} tokens"
        words = "; ".join(
            f"{machine.label}: " + ", ".join(f"{one} {three_digits(own[one])}" for one in variants if one in own)
            for machine, own in zip(machines, by_machine, strict=True)
        )
        height_in = 0.9 + 0.2 * len(variants) * len(machines)
        svg = draw(partial(machine_bars, by_machine, variants, title), height_in)
        caption = f"{title.capitalize()} {at}, by variant and machine."
        drawn.append(Figure(svg, f"{model}, {title} {at}: {words}", caption))
    return drawn


def _compared(machines: Sequence[Machine], model: str) -> list[tuple[Row, list[int], answers.Difference]]:
    """Return a cell of `model` each, which machines' answers can be compared there, and how they differ."""
    found = []
    for of_machines in _by_cell(machines, model).values():
        judged = {number: row for number, row in of_machines.items() if isinstance(row["answers"], dict)}
        alike = [[n for n, row in judged.items() if _same_subject(first, row)] for first in judged.values()]
        largest = max(alike, key=len, default=[])
        if len(largest) > 1 and (found_there := answers.compare({str(n): judged[n]["answers"] for n in largest})):
            found.append((judged[largest[0]], largest, found_there))
    return found


def _same_subject(one: Row, other: Row) -> bool:
    """Whether two rows are of the same checkpoint, dataset, definition and documents."""
    if differences(one["identity"], other["identity"], may_differ=[*MACHINE, "versions", "threads"]):
        return False
    return answers.compare({"one": one["answers"], "other": other["answers"]}) is not None


DIFFERENCES = columns.CELL_COLUMNS | {
    "documents": Shown("documents", written),
    "flips": Shown("answers that differ", written),
    "logit_difference": Shown("greatest logit difference", lambda row, name: number(row[name], ".3g") or "not kept"),
    "logit_row": Shown("in document", written),
    "machines": Shown("machines", written, left=True),
}


def answers_compared(machines: Sequence[Machine], model: str) -> list[Table]:
    """Return how the answers of `model` differ between machines, by cell, and the documents; empty without any."""
    rows: list[Row] = []
    documents: list[Row] = []
    for row, numbers, difference in _compared(machines, model):
        cell = {name: row[name] for name in columns.CELL_COLUMNS}
        labels = ", ".join(machines[number].label for number in numbers)
        rows.append(cell | vars(difference) | {"flips": difference.flips, "machines": labels})
        for document, names in difference.rows.items():
            documents.append(cell | {"document": document} | dict(zip(numbers, names, strict=True)))
    found = [Table("Answers compared", DIFFERENCES, rows)] if rows else []
    if documents:
        title = "Documents that machines answer differently"
        if len(documents) > ROWS_SHOWN:
            title += f", the first {ROWS_SHOWN} of {len(documents)}"
        shown = _columns(machines, Shown("", written), document=Shown("document", written))
        shown = {name: replace(column, left=True) for name, column in shown.items()}
        found.append(Table(title, shown, documents[:ROWS_SHOWN]))
    return found


def _agreement(machines: Sequence[Machine], model: str) -> list[str]:
    """Return a sentence on how far the machines answer alike, and one on those whose answers cannot be compared."""
    judged = {
        number
        for number, machine in enumerate(machines)
        if machine.table.loc[machine.table["model"] == model, "score"].notna().any()
    }
    if len(judged) < 2:  # noqa: PLR2004  one has nothing beside it
        return []
    compared = _compared(machines, model)
    sentences = []
    if compared:
        row, _, most = max(compared, key=lambda found: (found[2].flips, found[2].logit_difference or 0))
        name = f"{row['variant']}, {row['max_length']} tokens"
        if most.flips or (not most.changed and most.logit_difference):
            sentences.append(f"{model}: machines answer differently, most in {name}: {answers.sentence(most)}.")
        else:
            sentences.append(f"{model}: the machines whose answers can be compared agree in every answer.")
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
