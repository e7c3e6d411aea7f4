"""How a table is drawn on a terminal, in Markdown and as CSV, and how its numbers are written."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import pandas as pd
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table as Grid
from rich.text import Text

from qbert.inputs.metrics import Metric
from qbert.results.compare import is_missing
from qbert.system.terminal import console, shown

Row = Mapping[Any, Any]
Write = Callable[[Row, Any], str]
"""Writes the value of a row in the column of this name."""
Entry = tuple[str, float | str]
"""The text of a table's cell, and its sort key."""


@dataclass(frozen=True)
class Shown:
    """A column as a table shows it."""

    heading: str
    """A terminal has it in two lines where it holds a line break."""
    write: Write
    width: int = 0
    """On a terminal, at least, in characters."""
    left: bool = False
    wrap: bool = False
    """Whether a long text takes several lines."""
    key: Callable[[Any], float | str] | None = None
    """Gives what the column is sorted by, where that is not its value or its text."""
    rank: int = 0
    """Columns of a higher rank come later; those of one rank come in the order of the table of columns."""
    only_where_different: bool = False
    """Whether it is left out where all machines have the same."""


Columns = Mapping[Any, Shown]


def headed(columns: Columns, metric: Metric) -> dict[Any, Shown]:
    """Return `columns` with the names of `metric` in their headings: {short} and {title}."""
    names = {"short": metric.short, "title": metric.title}
    return {name: replace(column, heading=column.heading.format(**names)) for name, column in columns.items()}


@dataclass(frozen=True)
class Table:
    """A table of a report."""

    title: str
    columns: Columns
    rows: Sequence[Row]

    def entries(self) -> list[list[Entry]]:
        """Return the rows as texts with their sort keys."""
        return [[_entry(row, name, column) for name, column in self.columns.items()] for row in self.rows]


def _entry(row: Row, name: Any, column: Shown) -> Entry:  # noqa: ANN401
    text, value = column.write(row, name), row.get(name)
    if not text or is_missing(value):
        return text, ""
    value = column.key(value) if column.key else value
    return text, float(value) if isinstance(value, Real) else text


def in_order(table: pd.DataFrame, models: Iterable[str] | None = None) -> pd.DataFrame:
    """Return `table` with the models in order of appearance, or as in `models`, and the lengths of each ascending."""
    order = {model: place for place, model in enumerate(dict.fromkeys(table["model"] if models is None else models))}
    return table.sort_values(
        ["model", "max_length"],
        key=lambda column: column.map(order) if column.name == "model" else column,
        kind="stable",
    )


def grid(rows: Iterable[Row], columns: Columns, *, header: bool = True, bold: str = "", padding: int = 1) -> Grid:
    """Return a terminal's table with a line for each of `rows`; the row whose first text is `bold` begins in bold."""
    drawn = Grid(box=None, pad_edge=False, padding=(0, padding, 0, 0), show_header=header)
    for column in columns.values():
        drawn.add_column(
            column.heading,
            justify="left" if column.left else "right",
            min_width=column.width or None,
            no_wrap=not column.wrap,
        )
    for row in rows:
        first, *others = (column.write(row, name) for name, column in columns.items())
        if row.get("stated") is True:
            first += "*"
            drawn.caption, drawn.caption_justify = "* int8 as its own code states it, not shown", "left"
        drawn.add_row(Text(first, style="bold" if first == bold else ""), *map(escape, others))
    return drawn


def variants(width: int) -> dict[str, Shown]:
    """Return the first column of a terminal's table."""
    return {"variant": Shown("variant", written, width, left=True)}


def by_length(
    table: pd.DataFrame, columns: Columns, heading: Callable[[Any, Any, pd.DataFrame], RenderableType]
) -> list[RenderableType]:
    """Return a terminal's table of `table`: a `heading` for each model and length, then a line for each row."""
    parts: list[RenderableType] = []
    for number, ((model, max_length), group) in enumerate(table.groupby(["model", "max_length"], sort=False)):
        parts += [heading(model, max_length, group), grid(group.to_dict("records"), columns, header=number == 0)]
    return parts


def markdown(table: Table) -> str:
    """Return `table` in Markdown, without its title."""
    headings = [markdown_text(column.heading) for column in table.columns.values()]
    return markdown_table(headings, [[text for text, _ in row] for row in table.entries()])


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table in which every text is shown literally."""
    lines = [list(headings), ["---"] * len(headings), *([markdown_text(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(text: str) -> str:
    """Return `text` escaped so that Markdown shows it literally."""
    text = shown(text)
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, entity)
    return " ".join(re.sub(r"([\\|*_`\[\]~#])", r"\\\1", text).split())


def spreadsheet(table: pd.DataFrame) -> str:
    """Return `table` as CSV whose texts no spreadsheet takes for formulas and no terminal for control codes.

    Source: OWASP, "CSV Injection": an apostrophe before the characters with which a formula can begin.
    """

    def cell(value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, str):
            return value
        return "'" * value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) + shown(value)

    return table.map(cell).to_csv(index=False)


def show(drawn: RenderableType) -> None:
    """Print to standard output, in colours only on a terminal and without NO_COLOR."""
    console().print(drawn)


def number(value: float | None, form: str) -> str:
    """Return `value` in the format `form`; empty if not known."""
    return "" if is_missing(value) else format(value, form)


def three_digits(value: float) -> str:
    """Return `value` with at least three significant digits."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds with at least three significant digits."""
    return "" if math.isnan(seconds) else three_digits(seconds * 1e3)


def each(write: Callable[[Any], str]) -> Write:
    """Return what writes a row's value with `write`; nothing where it is not known."""
    return lambda row, name: "" if is_missing(row.get(name)) else write(row[name])


def times(factor: float, form: str) -> Write:
    """Return what writes `factor` times a row's value in the format `form`; nothing where it is not known."""
    return each(lambda value: format(factor * value, form))


written = each(str)


def bracketed(low: float, high: float, write: Callable[[float], str]) -> str:
    """Return an interval in brackets, after a space; empty if not known."""
    return "" if is_missing(low) else f" ({write(low)} to {write(high)})"
