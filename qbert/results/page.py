"""The report: the figures of saved runs on one HTML page that needs no network."""

import base64
import hashlib
import math
from collections.abc import Sequence
from importlib import resources
from itertools import cycle
from typing import Any

import pandas as pd

from qbert import __version__
from qbert.results import columns, figures, history, machines
from qbert.results.machines import Machine
from qbert.results.pace import PACE, left_out_limits, pace_changes
from qbert.results.run_tables import capacity_notes, served_texts
from qbert.results.tables import Shown, Table, markdown_text, spreadsheet, times, written
from qbert.results.tables import markdown as markdown_table
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
    looks = dict(zip(variants, zip(cycle(figures.COLOURS), cycle(figures.MARKERS), strict=False), strict=False))
    folder = resources.files("qbert.results")
    template = folder.joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    with mpl.rc_context(figures.style()):
        own = [
            {
                "label": machine.label,
                "models": [
                    _model(str(name), cells, looks) for name, cells in machine.table.groupby("model", sort=False)
                ],
                "provenance": _provenance(machine.runs, machine.table),
            }
            for machine in found
        ]
        beside = [
            {
                "name": model,
                "figures": machines.figures(found, model),
                "tables": machines.side_by_side(found, model),
                "answers": machines.answers_compared(found, model),
            }
            for model in (machines.models(found) if len(found) > 1 else [])
        ]
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(template).render(
        answers=machines.findings(found),
        names=machines.models(found),
        machines=own,
        beside=beside,
        known=machines.provenance(found),
        notes=machines.notes(found),
        colours=figures.COLOURS,
        looks=looks,
        script=script,
        script_hash=digest,
        version=__version__,
        pace=PACE,
        limit=_limit(found),
        metric=columns.metric_of(found[0].table),
        too_noisy=columns.TOO_NOISY,
    )


def _limit(found: Sequence[Machine]) -> str:
    return next(filter(None, (columns.limit_of(machine.table) for machine in found)), "")


def tables(cells: pd.DataFrame) -> list[Table]:
    """Return the tables of one model that are not empty: latency and F1; footprint; capacity."""
    main = cells[["latency_s", "score"]].notna().any(axis=1)
    found = [
        _table(f"Latency and {columns.metric_of(cells).short}", cells[main], "latency", "accuracy"),
        _table("Footprint, each in a process of its own", cells[cells["disk_bytes"].notna()], "footprint"),
        _table("Every core busy", cells[cells["texts_per_s"].notna()], "capacity"),
    ]
    return [table for table in found if table.rows]


def _table(title: str, cells: pd.DataFrame, *measured: str) -> Table:
    shown_columns = columns.CELL_COLUMNS | columns.shown("report", cells, *measured)
    return Table(title, shown_columns, cells.to_dict("records"))


FLIPS = {
    "row": Shown("document", written),
    "text": Shown("text", written, left=True, wrap=True),
    "label": Shown("label", written, left=True),
    "baseline": Shown("fp32 says", written, left=True),
    "baseline_margin": Shown("margin", times(1, ".2f")),
    "by": Shown("variant", written, left=True),
    "max_length": Shown("tokens", written),
    "variant": Shown("variant says", written, left=True),
    "variant_margin": Shown("its margin", times(1, ".2f")),
}


def _flips(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Return each document that a variant answers differently from fp32, with the length and the variant."""
    return [
        {"max_length": row["max_length"], "by": row["variant"]} | flip
        for row in cells.to_dict("records")
        for flip in (row["flipped"] if isinstance(row["flipped"], list) else [])
    ]


def _notes(cells: pd.DataFrame) -> list[str]:
    """Return what one model's figures are of, and what is unusual about them, each a paragraph."""
    notes = [*pace_changes(cells), *left_out_limits(cells)]
    served = cells[cells["texts_per_s"].notna()]
    if len(served):
        texts = f"Every core busy: {served_texts(served.iloc[0].to_dict())}."
        notes.append(" ".join([texts, *capacity_notes(served)]))
    return notes


def _model(name: str, cells: pd.DataFrame, looks: figures.Looks) -> dict[str, Any]:
    """Return what the page shows of a model on one machine."""
    flips = _flips(cells)
    return {
        "name": name,
        "trained": bool(cells["trained"].all()),
        "figures": figures.of_one_machine(name, cells, looks),
        "tables": tables(cells),
        "notes": _notes(cells),
        "flips": Table(columns.metric_of(cells).flipped_title, FLIPS, flips[:FLIPS_SHOWN]),
        "margin": columns.metric_of(cells).margin,
        "more_flips": len(flips) - FLIPS_SHOWN,
    }


def markdown(found: Sequence[Machine]) -> str:
    """Return the answers and tables of the machines `found`, from machines.of, as Markdown for a README."""
    parts = [f"- {markdown_text(answer)}" for answer in machines.findings(found)]
    if len(found) > 1:
        parts += ["", "## Side by side", ""]
        parts += [f"- {markdown_text(f'{label}: {name}')}" for label, name in machines.provenance(found)]
        for model in machines.models(found):
            parts += ["", f"### {markdown_text(model)} on each machine"]
            for table in (*machines.side_by_side(found, model), *machines.answers_compared(found, model)):
                parts += ["", markdown_text(table.title), "", markdown_table(table)]
        parts += [line for sentence in machines.notes(found) for line in ("", markdown_text(sentence))]
    for machine in found:
        parts += ["", f"## {markdown_text(machine.label)}"] if len(found) > 1 else []
        for name, cells in machine.table.groupby("model", sort=False):
            parts += ["", f"### {markdown_text(str(name))}"]
            parts += [line for table in tables(cells) for line in ("", markdown_table(table))]
            parts += [line for sentence in _notes(cells) for line in ("", markdown_text(sentence))]
    limit = _limit(found)
    parts += ["", PACE, *(["", f"Of limit: {limit}"] if limit else [])]
    return "\n".join(parts) + "\n"


def csv(found: Sequence[Machine]) -> str:
    """Return the figures of the machines `found` as CSV with a row per cell of each, in seconds and bytes."""
    table = pd.concat([machine.table.assign(label=machine.label) for machine in found], ignore_index=True)
    table["worker_shares"] = [
        " ".join(f"{share:.3f}" for share in shares) if isinstance(shares, list) else ""
        for shares in table["worker_shares"]
    ]
    table["tokens_p50"] = [tokens["p50"] if isinstance(tokens, dict) else None for tokens in table["traffic_tokens"]]
    return spreadsheet(history.own_names(table.drop(columns=NOT_IN_CSV)))


NOT_IN_CSV = ["identity", "flipped", "process_speedups", "rates", "rates_p99_s", "scaling", "traffic_tokens"]
NOT_IN_CSV += ["answers", "capacity_notes"]


def _provenance(runs: pd.DataFrame, table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return what was measured, and on which machine, as pairs of name and text."""
    newest = runs.sort_values(["when", "file"], kind="stable").iloc[-1]
    identity = newest["identity"]
    days = sorted({f"{when:%Y-%m-%d %H:%M}" for when in runs["when"].dropna()})
    made = " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "no date"
    checkpoints = {
        f"{row['model']}, {row['max_length']} tokens": str(row["identity"].get("checkpoint_sha256"))[:12]
        for row in table.to_dict("records")
    }
    versions: dict[str, str] = {}
    for measured in runs["identity"]:
        versions |= measured.get("versions", {})
    documents, visible = table["documents"].max(), table["visible_drop"].max()
    dataset = f"{identity.get('dataset')} ({str(identity.get('dataset_sha256'))[:12]})"
    if pd.notna(documents):
        dataset += f", {documents:.0f} test documents, one at a time"
        dataset += "" if math.isnan(visible) else f"; a true drop of {visible:.3f} shows with a chance of 80 %"
    return [
        ("runs", f"{runs['file'].nunique()}, {made}"),
        ("commit", ", ".join(dict.fromkeys(runs["commit"]))[:200]),
        ("processor", str(identity.get("processor"))),
        ("instruction sets", " ".join(identity.get("instruction_sets", []))),
        ("threads, batch size", f"{identity.get('threads')}, 1"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("dataset", dataset),
        ("checkpoints", "; ".join(f"{name}: {digest}" for name, digest in checkpoints.items())),
    ]
