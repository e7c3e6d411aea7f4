"""What saved runs of one machine say: their newest figures by cell, and the answer in sentences."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from qbert.inputs.metrics import named
from qbert.results import intervals
from qbert.results.columns import in_limit, is_too_noisy, kept, metric_of
from qbert.results.compare import CELL, SUBJECT, cell_name, differences
from qbert.results.pace import at_one_pace, one_limit
from qbert.results.tables import bracketed, in_order, three_digits
from qbert.system.errors import InputError
from qbert.system.terminal import counted
from qbert.variants import BASELINE


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell of one machine's `runs`, from history.load: each benchmark's figures of its newest run.

    `low_s` and `high_s` are the least and greatest median of several runs, or the quartiles of a single run's rounds.
    `latency_s`, `over_best`, the shares of the limit, `pace_change` and the intervals come from tables.at_one_pace.
    `undominated`: no other variant of this model and length is at least as fast with at least its score.

    Raises:
        InputError: the runs are of different subjects.
    """
    refuse_mixed(runs)
    runs = runs.sort_values(["when", "file"], kind="stable")
    medians = runs.groupby(CELL, sort=False)["median_s"]
    table = _newest(runs)
    table["runs"] = medians.count()
    for name, quartile, extreme in (("low_s", "q1_s", medians.min()), ("high_s", "q3_s", medians.max())):
        table[name] = extreme.where(table["runs"] > 1, table[quartile].astype(float))
    table = table.reset_index()
    table = one_limit(at_one_pace(table, table))
    table["undominated"] = [_undominated(row, table) for row in table.to_dict("records")]
    return in_order(table, runs["model"]).reset_index(drop=True)


def _newest(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each cell of `runs`, sorted from oldest to newest: each benchmark from the newest that has it.

    All figures of one benchmark come from one run.
    """
    rows = runs.groupby(CELL, sort=False).tail(1).set_index(CELL)
    always = {"latency": "median_s", "accuracy": "score", "footprint": "disk_bytes", "capacity": "texts_per_s"}
    for measured, figure in always.items():
        newest = runs[runs[figure].notna()].groupby(CELL, sort=False).tail(1).set_index(CELL)
        for name in [*kept(measured), *(["file"] if measured == "latency" else [])]:
            rows[name] = newest[name].reindex(rows.index)
    return rows


def refuse_mixed(runs: pd.DataFrame, *, subject: bool = True) -> None:
    """Check that the figures of `runs` fit in one table: one dataset and its documents, one subject for each cell.

    Without `subject`, as between machines, cells have only to be judged alike: by one limit, traffic and guard.

    Raises:
        InputError: they do not.
    """
    seen: dict[tuple[str, str], tuple[Any, str]] = {}
    for row in runs.to_dict("records"):
        cell, identity = cell_name(row), row["identity"]
        of_all = {"dataset_sha256": identity["dataset_sha256"], "documents": row["documents"]}
        of_cell = {name: identity.get(name) for name in SUBJECT} if subject else {}
        of_cell |= {"latency limit": row["latency_limit_s"], "traffic": row["traffic_sha256"]}
        short = named(row["metric"]).short
        of_cell |= {f"{short} limit": row["max_drop"], f"{short} guard": row["guard"]}
        for scope, facts in (("", of_all), (cell, of_cell)):
            for fact, value in facts.items():
                if isinstance(value, float) and math.isnan(value):  # not judged in this run
                    continue
                known, file = seen.setdefault((scope, fact), (value, row["file"]))
                differs = differences({fact: known}, {fact: value})
                if fact not in SUBJECT and known != value:
                    differs = [
                        f"{fact}: {known:g}, {value:g}" if isinstance(value, float) else f"{fact}: {known}, {value}"
                    ]
                if differs:
                    raise InputError(
                        f"what a report shows has to be measured alike, and {cell} is not in "
                        f"{' and '.join(dict.fromkeys([file, row['file']]))} ({'; '.join(differs)}): "
                        "make a report of each"
                    )


def _undominated(row: Mapping[Any, Any], table: pd.DataFrame) -> bool:
    if math.isnan(row["latency_s"]) or pd.isna(row["score"]):
        return False
    others = table[(table["model"] == row["model"]) & (table["max_length"] == row["max_length"])]
    as_good = (others["latency_s"] <= row["latency_s"]) & (others["score"] >= row["score"])
    better = (others["latency_s"] < row["latency_s"]) | (others["score"] > row["score"])
    return not (as_good & better).any()


def answers(table: pd.DataFrame) -> list[str]:
    """Return sentences for each model: which variant within its limit serves most, and which is the fastest."""
    served = table[table["texts_per_s"].notna() & table["batch"].isna()]  # a batch's requests are of several texts
    most = [serves_most(cells) for _, cells in served.groupby("model", sort=False)]
    return [*filter(None, most), *_fastest(table[table["median_s"].notna()])]


def _fastest(table: pd.DataFrame) -> list[str]:
    """Return a sentence for each model: the fastest variant within its limit, at the model's greatest length."""
    sentences = []
    metric = metric_of(table)
    for model, cells in table.groupby("model", sort=False):
        max_length = cells["max_length"].max()
        timed = cells[(cells["max_length"] == max_length) & (cells["variant"] != BASELINE) & cells["speedup"].notna()]
        within = timed[~timed["over_limit"].isin([True])]  # an untrained model is not judged
        subject = f"{model}, {max_length} tokens"
        if timed.empty:
            sentences.append(f"{subject}: nothing was measured beside {BASELINE}.")
            continue
        if within.empty or within["speedup"].max() <= 1:
            sentences.append(f"{subject}: no variant is faster than {BASELINE} and within its {metric.short} limit.")
            continue
        best = within.loc[within["speedup"].idxmax()]
        low, high = (within[name].fillna(within["speedup"]) for name in ("speedup_low", "speedup_high"))
        rivals = within[high >= low[best.name]].sort_values("speedup", ascending=False)
        noisy = [row["variant"] for row in rivals.to_dict("records") if is_too_noisy(row)]
        if noisy and len(rivals) > 1:
            sentences.append(
                f"{subject}: which of {' and '.join(rivals['variant'])} is the fastest cannot be told, "
                f"too noisy: {' and '.join(noisy)}."
            )
            continue
        ends = " (too noisy)" if noisy else bracketed(best["speedup_low"], best["speedup_high"], three_digits)
        sentence = f"{subject}: {best['variant']} is {three_digits(best['speedup'])} times faster than {BASELINE}{ends}"
        if pd.notna(best["over_best"]):
            sentence += f", {three_digits(best['over_best'])} times faster than the best fp32"
            sentence += bracketed(best["over_best_low"], best["over_best_high"], three_digits)
        if pd.notna(best["score"]):
            sentence += (
                f"; {metric.title} {best['score']:.4f}, {_drop(best['drop'])}"
                f" (95 %: {_drop(best['drop_low'])} to {_drop(best['drop_high'])})"
            )
            if pd.notna(best["flips"]):
                count = best["documents"] if pd.isna(best["queries"]) else best["queries"]
                sentence += f", {best['flips']:.0f} of {count:.0f} {metric.changed} changed"
            sentence += "."
        else:
            short = metric.short
            why = (
                f"its {short} was not measured"
                if best["trained"]
                else f"the model is untrained, so {short} means nothing"
            )
            sentence += f"; {why}."
        second = within.drop(index=best.name).nlargest(1, "speedup")
        if len(second) and intervals.are_distinguishable(table, best.to_dict(), second.iloc[0].to_dict()) is False:
            sentence += f" It and {second['variant'].iloc[0]} cannot be told apart in speed."
        sentences.append(sentence)
    return sentences


def serves_most(cells: pd.DataFrame) -> str:
    """Return a sentence on which of one model's `cells` within its limit serves most, and at what cost; or none."""
    rows = cells.to_dict("records")
    within = [row for row in rows if row["over_limit"] is not True]
    if not within:
        return ""
    best = max(within, key=lambda row: (row["rate_within_limit"], row["texts_per_s"]))
    workers = counted(int(best["workers"]), "worker")
    limit = f"within {best['latency_limit_s'] * 1e3:g} ms at p99"
    guarded = "" if pd.isna(best["drop"]) else f", within its {metric_of(cells).short} limit"
    if not best["rate_within_limit"]:
        return (
            f"{best['model']}: no variant answers {limit} here under any load; {best['variant']}{guarded}, serves "
            f"most: {three_digits(best['texts_per_s'])} texts a second with {workers}."
        )
    sentence = f"{best['model']}: {limit} this machine takes {in_limit(best)} requests a second with {best['variant']}"
    fp32 = next((row for row in rows if row["variant"] == BASELINE and row is not best), None)
    sentence += guarded + (f", {in_limit(fp32)} with {BASELINE}" if fp32 else "") + f" ({workers})"
    if pd.notna(best["cost_per_million"]):
        sentence += f"; a million texts cost {three_digits(best['cost_per_million'])}"
        if fp32 and pd.notna(fp32["cost_per_million"]):
            sentence += f" instead of {three_digits(fp32['cost_per_million'])}"
    return sentence + "."


def _drop(drop: float) -> str:
    return "unchanged" if drop == 0 else f"{abs(drop):.4f} {'lower' if drop > 0 else 'higher'}"
