"""Verdicts: whether a cell became slower, how sure that is, and whether two results can be compared."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert.measure.stats import CONFIDENCE, MIN_DROP, MIN_EFFECT, bonferroni, verdict
from qbert.results import answers
from qbert.system.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

CELL = ["model", "max_length", "variant"]
MEASURED = ("latency", "accuracy", "footprint", "capacity")
"""What a benchmark of this suite measures."""


def cell_name(row: Mapping[Any, Any]) -> str:
    """Return the name of a row's cell."""
    return "-".join(str(row[name]) for name in CELL)


MACHINE = ("processor", "instruction_sets", "hardware", "machine_name")
"""The keys of a result's `identity` that say on which machine it was measured; `machine_name` is --machine-name's."""
SUBJECT = (
    *MACHINE,
    "threads",
    *("dataset_sha256", "checkpoint_sha256", "definition", "versions"),
)
"""The keys of two results' `identity` that must agree for their latencies to be comparable.

In `hardware`, only keys that both have: older runs have none, or those that pytest-benchmark records.
"""


def differences(base: Mapping[str, Any], head: Mapping[str, Any], *, may_differ: Collection[str] = ()) -> list[str]:
    """Return the differences of two results' `identity`, each as "name: base, head", without those in `may_differ`.

    In a mapping (versions, definition) each differing entry is named.
    """
    differing = []
    for name in SUBJECT:
        before, after = base.get(name), head.get(name)
        if name == "hardware":
            before, after = before or {}, after or {}
            shared = [key for key in before if key in after]
            before, after = ({key: known[key] for key in shared} for known in (before, after))
        if name not in may_differ and before != after:
            differing += list(_differing_entries(name, before, after))
    return differing


def _differing_entries(name: str, base: Any, head: Any) -> Iterable[str]:  # noqa: ANN401
    if isinstance(base, Mapping) and isinstance(head, Mapping):
        label = "" if name == "versions" else f"{name} "
        for key in dict.fromkeys([*base, *head]):
            if base.get(key) != head.get(key):
                yield f"{label}{key}: {_shown(base.get(key))}, {_shown(head.get(key))}"
        return
    if isinstance(base, list) and isinstance(head, list):
        base, head = (
            " ".join(sorted(set(own) - set(others))) or "no more" for own, others in ((base, head), (head, base))
        )
    yield f"{name.removesuffix('_sha256').replace('_', ' ')}: {_shown(base)}, {_shown(head)}"


def _shown(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return "none"
    text = str(value)
    return text[:12] if len(text) == 64 else text  # noqa: PLR2004  a SHA-256


def runs(
    base: "pd.DataFrame",
    head: "pd.DataFrame",
    *,
    spreads: Mapping[tuple[Any, ...], tuple[float, int]],
    min_effect: float = MIN_EFFECT,
    min_drop: float = MIN_DROP,
    across: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Compare the runs `head` with the runs `base`, both from history.load; return a row for each cell.

    The runs of a session count as one value. `spreads`, from changes.spreads, is the noise between sessions; `across`
    names the keys of the cells' identity that may differ. Between machines there is no interval of latency, but
    `machine_flips` (answers.Difference): what the newest run of each side answers to the same documents. Where all keys
    of MACHINE may differ, `has_answers` says whether a side has measured accuracy.

    Raises:
        InputError: a side has runs of several machines.
    """
    asked = set(MACHINE) <= set(across)
    for side in (base, head):  # their times must not be pooled
        if not set(MACHINE).isdisjoint(across) and len(names := list(dict.fromkeys(side["machine"]))) > 1:
            raise InputError(f"a side has runs of {' and '.join(names)}: name runs of one machine on each side")
    groups = [dict(iter(table.groupby(CELL, sort=False))) for table in (base, head)]
    keys = list(dict.fromkeys([*groups[0], *groups[1]]))
    confidence = bonferroni(CONFIDENCE, len(keys))
    rows = []
    for key in keys:
        before, after = (group.get(key) for group in groups)
        row: dict[str, Any] = dict(zip(CELL, key, strict=True)) | {"verdict": "not comparable", "differs": []}
        row["judged"] = {}
        rows.append(row)
        if asked:
            row["has_answers"] = any(group is not None and group["score"].notna().any() for group in (before, after))
        if before is None or after is None:
            row["differs"] = [f"only {'head' if before is None else 'base'} has it"]
            continue
        first, *others = [*before["identity"], *after["identity"]]
        differs = [text for identity in others for text in differences(first, identity, may_differ=across)]
        if differs:
            row["differs"] = list(dict.fromkeys(differs))
            continue
        between_machines = any(is_of_another_machine(first, identity) for identity in others)
        row |= _latency(before, after, confidence, spreads.get(key), min_effect, judge=not between_machines)
        last = [_newest(group) for group in (before, after)]
        row["judged"] = _judged(last[0], last[1], confidence, min_drop)
        if between_machines or asked:
            kept: dict[str, Any] = {"base": last[0].get("answers"), "head": last[1].get("answers")}
            have_answers = all(isinstance(one, dict) for one in kept.values())
            row["machine_flips"] = answers.compare(kept) if have_answers else None
        for name in ("disk_bytes", "peak_rss_bytes"):
            for label, newest in zip(("base", "head"), last, strict=True):
                row[f"{label}_{name}"] = None if is_missing(newest.get(name)) else float(newest[name])
    return rows


def _newest(group: "pd.DataFrame") -> dict[str, Any]:
    """Return score, answers and sizes of one cell's runs: each benchmark's from the newest run that has it."""
    ordered = group.sort_values("when", kind="stable", na_position="first") if "when" in group else group
    found: dict[str, Any] = {}
    for figures in (("score", "metric", "answers"), ("disk_bytes", "peak_rss_bytes")):
        have = ordered[ordered[figures[0]].notna()] if figures[0] in ordered else ordered[:0]
        found |= {name: have.iloc[-1].get(name) for name in figures if len(have)}
    return found


def _latency(
    before: "pd.DataFrame",
    after: "pd.DataFrame",
    confidence: float,
    spread: tuple[float, int] | None,
    min_effect: float,
    *,
    judge: bool,
) -> dict[str, Any]:
    """Compare the latency of a cell's runs; unless `judge`, return the figures of both sides alone."""
    timed = [group.dropna(subset=["median_s"]) for group in (before, after)]
    if not all(map(len, timed)):
        return {"verdict": ""}
    logs_base, logs_head = map(samples, timed)
    row: dict[str, Any] = {"verdict": ""}
    if judge:
        low, high = _two_samples(logs_base, logs_head, confidence, spread)
        row["verdict"] = verdict(low, high, min_effect)
        change = float(np.mean(logs_head) - np.mean(logs_base))
        for name, value in (("change", change), ("change_low", low), ("change_high", high)):
            row[name] = math.expm1(value) if math.isfinite(value) else None
    row |= {"base_s": float(np.exp(np.mean(logs_base))), "head_s": float(np.exp(np.mean(logs_head)))}
    row |= {"base_runs": len(timed[0]), "head_runs": len(timed[1])}
    return row | {"base_sessions": len(logs_base), "head_sessions": len(logs_head)}


def is_of_another_machine(identity: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results are of different machines."""
    return bool(differences(identity, other, may_differ=[name for name in SUBJECT if name not in MACHINE]))


def samples(group: "pd.DataFrame") -> npt.NDArray[np.float64]:
    """Return the mean log latency of each session of one cell's runs, in the order of the sessions."""
    sessions, indices = np.unique(group["session"], return_inverse=True)
    logs = np.log(group["median_s"].to_numpy(dtype=float))
    return np.bincount(indices, weights=logs, minlength=len(sessions)) / np.bincount(indices, minlength=len(sessions))


def _two_samples(
    base: npt.NDArray[np.float64],
    head: npt.NDArray[np.float64],
    confidence: float,
    spread: tuple[float, int] | None,
) -> tuple[float, float]:
    """Return the interval of the difference of means, head less base; infinite if the noise is not known.

    Source: Student's two-sample interval with pooled variance; `spread` (a standard deviation of single values and its
    degrees of freedom) is pooled as one more sample.
    """
    from scipy import special  # scipy.stats takes a second to import

    deviation, freedom = spread or (0.0, 0)
    squares = sum(((sample - sample.mean()) ** 2).sum() for sample in (base, head)) + freedom * deviation**2
    freedom += len(base) + len(head) - 2
    if not freedom:
        return -math.inf, math.inf
    error = math.sqrt(squares / freedom * (1 / len(base) + 1 / len(head)))
    margin = float(special.stdtrit(freedom, (1 + confidence) / 2)) * error
    change = float(head.mean() - base.mean())
    return change - margin, change + margin


def _judged(base: Mapping[str, Any], head: Mapping[str, Any], confidence: float, min_drop: float) -> dict[str, Any]:
    """Compare the scores of two runs; `inconclusive` if one is an older run that does not hold its answers."""
    from qbert.measure import accuracy

    if is_missing(base.get("score")) or is_missing(head.get("score")):
        return {}
    before, after = (run.get("answers") for run in (base, head))
    if not isinstance(before, dict) or not isinstance(after, dict) or before["labels"] != after["labels"]:
        figures = {"score_baseline": base["score"], "score": head["score"], "drop": base["score"] - head["score"]}
        return {"metric": head["metric"]} | figures | {"drop_verdict": "inconclusive"}
    return accuracy.compare_answers(before, after, confidence, min_drop)


def is_missing(value: Any) -> bool:  # noqa: ANN401
    """Whether a table has no such value: None, or not a number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def over_machine_flips(rows: Iterable[Mapping[str, Any]], limit: int) -> list[str]:
    """Return a sentence for each of `rows`, from runs, whose answers differ more than `limit` between machines.

    A cell whose answers cannot be compared counts as one: nothing shows that they agree.
    """
    sentences = []
    compared = 0
    for row in rows:
        name = cell_name(row)
        difference = row.get("machine_flips")
        compared += difference is not None
        if difference is not None and not difference.changed:
            sentences.append(
                f"{name}: {answers.sentence(difference)}; numbers are no labels, of which --max-machine-flips counts "
                "those that differ: leave it out"
            )
        elif difference is not None and difference.flips > limit:
            sentences.append(f"{name}: {answers.sentence(difference)}, which --max-machine-flips {limit} forbids")
        elif difference is None and row["has_answers"]:
            why = "; ".join(row["differs"]) or "a run holds no answers, or answers to other documents"
            sentences.append(f"{name}: the answers cannot be compared ({why})")
    if not compared and not sentences:
        sentences.append("no answers were compared: name runs that measured accuracy, of two machines")
    return sentences
