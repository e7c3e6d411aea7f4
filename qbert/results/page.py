"""The report: the figures of saved runs on one HTML page that needs no network."""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import pandas as pd

from qbert import __version__
from qbert.results import columns, figures, machines
from qbert.results.machines import Machine
from qbert.results.tables import (
    PACE,
    TOO_NOISY,
    capacity_notes,
    left_out_limits,
    markdown_table,
    markdown_text,
    pace_changes,
    served_texts,
    spreadsheet,
)
from qbert.system.errors import InputError, pip_install
from qbert.system.terminal import shown

FLIPS_SHOWN = 200


def render(found: Sequence[Machine]) -> str:
    """Return the page of the machines `found`, from machines.of.

    Raises:
        InputError: the extra `report` is not installed.
    """
    try:
        import jinja2
        import matplotlib as mpl
    except ImportError as error:
        raise InputError(f"a report needs matplotlib and Jinja: {pip_install('report')}") from error
    variants = list(dict.fromkeys(name for machine in found for name in machine.table["variant"]))
    looks = {
        name: (figures.COLOURS[number % len(figures.COLOURS)], figures.MARKERS[number % len(figures.MARKERS)])
        for number, name in enumerate(variants)
    }
    template = resources.files("qbert.results").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    with mpl.rc_context(figures.style()):
        own = [
            {
                "label": machine.label,
                "models": _models(machine, looks),
                "provenance": _provenance(machine.runs, machine.table),
            }
            for machine in found
        ]
        beside = _side_by_side(found) if len(found) > 1 else []
    script = resources.files("qbert.results").joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(template).render(
        answers=machines.told(found),
        names=machines.models(found),
        machines=own,
        beside=beside,
        known=machines.provenance(found),
        notes=machines.notes(found),
        colours=figures.COLOURS,
        looks=looks,
        script=script,
        script_hash=digest,
        flips_shown=FLIPS_SHOWN,
        version=__version__,
        pace=PACE,
        limit=next(filter(None, (columns.limit_of(machine.table) for machine in found)), ""),
        too_noisy=TOO_NOISY,
    )


def _models(machine: Machine, looks: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """Return what the page shows of each model on one machine."""
    return [
        {
            "name": model,
            "trained": bool(cells["trained"].all()),
            "figures": figures.of_model(str(model), cells, looks),
            "tables": columns.of_model(cells),
            "notes": [*pace_changes(cells), *left_out_limits(cells), *capacity_sentences(cells)],
            "flips": list(_flips(cells)),
        }
        for model, cells in machine.table.groupby("model", sort=False)
    ]


def _side_by_side(found: Sequence[Machine]) -> list[dict[str, Any]]:
    """Return what the page shows of each model on all machines."""
    return [
        {
            "name": model,
            "figures": machines.figures(found, model),
            "tables": machines.side_by_side(found, model),
            "answers": machines.answers_compared(found, model),
        }
        for model in machines.models(found)
    ]


def markdown(found: Sequence[Machine]) -> str:
    """Return the answers and tables of the machines `found`, from machines.of, as Markdown for a README."""
    parts = [f"- {markdown_text(answer)}" for answer in machines.told(found)]
    if len(found) > 1:
        parts += ["", "## Side by side", ""]
        parts += [f"- {markdown_text(f'{label}: {name}')}" for label, name in machines.provenance(found)]
        for model in machines.models(found):
            parts += ["", f"### {markdown_text(model)} on each machine"]
            for table in (*machines.side_by_side(found, model), *machines.answers_compared(found, model)):
                parts += ["", markdown_text(table.title), "", _markdown_table(table.headings, table.rows)]
        parts += [line for sentence in machines.notes(found) for line in ("", markdown_text(sentence))]
    for machine in found:
        parts += ["", f"## {markdown_text(machine.label)}"] if len(found) > 1 else []
        for name, cells in machine.table.groupby("model", sort=False):
            parts += ["", f"### {markdown_text(str(name))}"]
            for headings, rows in columns.of_model(cells):
                parts += ["", _markdown_table(headings, rows)]
            notes = [*pace_changes(cells), *left_out_limits(cells), *capacity_sentences(cells)]
            parts += [line for sentence in notes for line in ("", markdown_text(sentence))]
    limit = next(filter(None, (columns.limit_of(machine.table) for machine in found)), "")
    parts += ["", PACE, *(["", f"Of limit: {limit}"] if limit else [])]
    return "\n".join(parts) + "\n"


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[columns.Entry]]) -> str:
    return markdown_table([markdown_text(heading) for heading in headings], [[text for text, _ in row] for row in rows])


def csv(found: Sequence[Machine]) -> str:
    """Return the figures of the machines `found` as CSV with a row per cell of each, in seconds and bytes."""
    table = pd.concat([machine.table.assign(label=machine.label) for machine in found], ignore_index=True)
    table["worker_shares"] = [
        " ".join(f"{share:.3f}" for share in shares) if isinstance(shares, list) else ""
        for shares in table["worker_shares"]
    ]
    table["tokens_p50"] = [tokens["p50"] if isinstance(tokens, dict) else None for tokens in table["traffic_tokens"]]
    left_out = [
        "identity",
        "flipped",
        "process_speedups",
        "rates",
        "rates_p99_s",
        "scaling",
        "traffic_tokens",
        "answers",
    ]
    return spreadsheet(table.drop(columns=[*left_out, "capacity_notes"]))


def capacity_sentences(cells: pd.DataFrame) -> list[str]:
    """Return what one model's figures of capacity are of, as one paragraph; none without such figures."""
    served = cells[cells["texts_per_s"].notna()]
    if served.empty:
        return []
    return [" ".join([f"Every core busy: {served_texts(served.iloc[0].to_dict())}.", *capacity_notes(served)])]


def _flips(cells: pd.DataFrame) -> "Sequence[Mapping[str, Any]]":
    """Return each document that a variant labels differently from fp32, with the length and the variant."""
    return [
        {"max_length": row["max_length"], "by": row["variant"]} | flip
        for row in cells.to_dict("records")
        for flip in (row["flipped"] if isinstance(row["flipped"], list) else [])
    ]


def _provenance(runs: pd.DataFrame, table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return what was measured, and on which machine, as pairs of name and text."""
    newest = runs.sort_values(["when", "file"], kind="stable").iloc[-1]
    identity = newest["identity"]
    files = list(dict.fromkeys(runs["file"]))
    days = sorted({f"{when:%Y-%m-%d %H:%M}" for when in runs["when"].dropna()})
    checkpoints = {
        f"{row['model']}, {row['max_length']} tokens": str(row["identity"].get("checkpoint_sha256"))[:12]
        for row in table.to_dict("records")
    }
    versions: dict[str, str] = {}
    for measured in runs["identity"]:
        versions |= measured.get("versions", {})
    documents = table["documents"].max()
    visible = table["visible_drop"].max()
    judged = f", {documents:.0f} test documents, one at a time"
    judged += "" if math.isnan(visible) else f"; a true drop of {visible:.3f} shows with a chance of 80 %"
    return [
        ("runs", f"{len(files)}, {days[0] if days else 'no date'}" + (f" to {days[-1]}" if len(days) > 1 else "")),
        ("commit", ", ".join(dict.fromkeys(runs["commit"]))[:200]),
        ("processor", str(identity.get("processor"))),
        ("instruction sets", " ".join(identity.get("instruction_sets", []))),
        ("threads, batch size", f"{identity.get('threads')}, 1"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in versions.items())),
        (
            "dataset",
            f"{identity.get('dataset')} ({str(identity.get('dataset_sha256'))[:12]})"
            + ("" if pd.isna(documents) else judged),
        ),
        ("checkpoints", "; ".join(f"{name}: {digest}" for name, digest in checkpoints.items())),
    ]
