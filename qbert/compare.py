"""Verdicts: whether a cell became slower, how sure that is, and whether two results can be held against each other."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert import CONFIDENCE

if TYPE_CHECKING:
    import pandas as pd

CELL = ["model", "max_length", "variant"]
MIN_EFFECT = 0.025  # smaller is nobody's regression, and one new process of the same code can differ by as much
DECIDED = ("slower", "faster", "same")
"""The verdicts on latency that are sure."""
MIN_F1_EFFECT = 0.01  # as the guard's own limit
SUBJECT = (
    *("processor", "instruction_sets", "hardware", "threads"),
    *("dataset_sha256", "checkpoint_sha256", "definition", "versions"),
)
"""What has to agree in two results' `identity` before their latencies can be compared; of `hardware`, what both know.

Older runs know nothing of it, or what pytest-benchmark says of the processor.
"""


def signed_rank_interval(
    values: Sequence[float] | npt.NDArray[np.float64], confidence: float
) -> tuple[float, float, float]:
    """Return the estimate of the median of `values` and its interval, by the signed-rank test.

    The interval is infinite where there are too few values for this confidence. Nothing but symmetry is supposed of
    them, which log ratios of two sides of the same code have: swapping the sides changes their sign.

    Source: Hollander, Wolfe and Chicken 2014, "Nonparametric Statistical Methods", sections 3.2 and 3.3: the estimate
    of Hodges and Lehmann is the median of the Walsh averages, the interval's ends are order statistics of them, counted
    off by the exact distribution of the signed-rank sum.
    """
    sample = np.asarray(values)
    first, second = np.triu_indices(len(sample))
    averages = np.sort((sample[first] + sample[second]) / 2)
    middle = float(np.median(averages))
    beyond = _beyond(len(sample), confidence)
    if not beyond:
        return middle, -math.inf, math.inf
    return middle, float(averages[beyond - 1]), float(averages[-beyond])


@cache
def _beyond(count: int, confidence: float) -> int:
    """Return how many signed-rank sums of `count` values lie in each tail that `confidence` leaves."""
    return int((_tails(count) <= (1 - confidence) / 2).sum())


@cache
def _tails(count: int) -> npt.NDArray[np.float64]:
    """Return the chance that the signed-rank sum of `count` values around 0 is at most 0, 1, 2, ..."""
    sums = np.ones(1)  # of how many subsets of the ranks 1..count is each number the sum, as shares
    for rank in range(1, count + 1):
        sums = np.convolve(sums, np.r_[0.5, np.zeros(rank - 1), 0.5])
    return np.asarray(np.cumsum(sums))


def least_values(confidence: float) -> int:
    """Return how many values the interval of `signed_rank_interval` needs to have ends."""
    return 1 - math.floor(math.log2(1 - confidence))


def corrected(confidence: float, cells: int) -> float:
    """Return the confidence of each of `cells` intervals so that all hold together with `confidence` (Bonferroni)."""
    return 1 - (1 - confidence) / max(1, cells)


def p_values(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the signed-rank test's p after the first, the first two, ... of `values`, `(..., count)`, of median 0.

    Two-sided, and negative where the values are below 0: `signed_rank_interval` of the first n with a confidence of
    1 - p or less excludes 0.

    Source: Hollander, Wolfe and Chicken 2014, section 3.1: the signed-rank sum counts the Walsh averages above 0, and
    one value more brings those of itself with all before.
    """
    sums = np.zeros(values.shape[:-1], dtype=np.int32)
    found = np.empty(values.shape)
    for count in range(1, values.shape[-1] + 1):
        last = values[..., count - 1 : count]
        sums += np.count_nonzero(values[..., :count] > -last, axis=-1)
        most = count * (count + 1) // 2
        p = np.minimum(1, 2 * _tails(count)[np.minimum(sums, most - sums)])
        found[..., count - 1] = np.where(2 * sums < most, -p, p)
    return found


@cache
def over_looks(confidence: float, looks: int) -> float:
    """Return the confidence of one `signed_rank_interval` so that those after 1, 2, ... `looks` values hold together.

    Whoever looks after every value, and stops when the interval suits, is wrong more often than one interval is.

    Source: Pocock 1977, "Group sequential methods in the design and analysis of clinical trials": one level for all
    looks. Of the signed-rank test it is the same for all symmetric distributions, and found by simulation of PATHS.
    """
    least = _least_p(looks)
    allowed = 1 - confidence
    beyond = least[math.floor(allowed * len(least))]  # p is discrete, and of all with this one there are too many
    below = least[least < beyond]
    return 1 - max(allowed / looks, float(below[-1]) if len(below) else 0.0)


PATHS = 200_000
"""A level's relative error is 1 / sqrt(PATHS * level): 8 % for the first of 60 cells."""


@cache
def _least_p(looks: int) -> npt.NDArray[np.float64]:
    """Return the least p over `looks` of each of PATHS simulated samples around 0, ascending."""
    rng = np.random.default_rng(0)
    at_once = PATHS // 100
    least = [np.abs(p_values(rng.standard_normal((at_once, looks)))).min(axis=1) for _ in range(100)]
    return np.sort(np.concatenate(least))


def verdict(low: float, high: float, min_effect: float) -> str:
    """Return what the interval of a log ratio, head over base, says of head.

    `slower` or `faster` where all of it lies beyond `min_effect` (0.025: 2.5 %), `same` where all of it lies within,
    else `inconclusive`.
    """
    return _told(low, high, math.log1p(min_effect), "slower", "faster")


def f1_verdict(low: float, high: float, min_effect: float) -> str:
    """Return what the interval of an F1 drop, base to head, says of head: as `verdict`, with `worse` and `better`."""
    return _told(low, high, min_effect, "worse", "better")


def verdicts(values: npt.NDArray[np.float64], confidence: float, min_effect: float) -> npt.NDArray[np.str_]:
    """Return the `verdict` after the first, the first two, ... of the log ratios `values`, `(..., count)`."""
    bound = math.log1p(min_effect)
    from_above, from_below = (p_values(values - edge) for edge in (bound, -bound))
    sure_above, sure_below = (np.abs(p) <= 1 - confidence for p in (from_above, from_below))
    return np.select(
        [sure_above & (from_above > 0), sure_below & (from_below < 0), sure_above & sure_below],
        ["slower", "faster", "same"],
        "inconclusive",
    )


def _told(low: float, high: float, bound: float, above: str, below: str) -> str:
    if low > bound:
        return above
    if high < -bound:
        return below
    return "same" if -bound < low and high < bound else "inconclusive"


def differences(base: Mapping[str, Any], head: Mapping[str, Any], *, asked: Collection[str] = ()) -> list[str]:
    """Return in what two results' `identity` differ, each as "name: base, head"; `asked` names what may.

    Of a mapping (versions, definition) the entries that differ are named.
    """
    found = []
    for name in SUBJECT:
        before, after = base.get(name), head.get(name)
        if name == "hardware":
            before, after = before or {}, after or {}
            both = [key for key in before if key in after]
            before, after = ({key: one[key] for key in both} for one in (before, after))
        if name not in asked and before != after:
            found += list(_differing(name, before, after))
    return found


def _differing(name: str, base: Any, head: Any) -> Iterable[str]:  # noqa: ANN401
    if isinstance(base, Mapping) and isinstance(head, Mapping):
        label = "" if name == "versions" else f"{name} "
        for key in dict.fromkeys([*base, *head]):
            if base.get(key) != head.get(key):
                yield f"{label}{key}: {_shown(base.get(key))}, {_shown(head.get(key))}"
        return
    if isinstance(base, list) and isinstance(head, list):
        base, head = (
            " ".join(sorted(set(one) - set(other))) or "no more" for one, other in ((base, head), (head, base))
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
    min_f1_effect: float = MIN_F1_EFFECT,
    across: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Hold the runs `head` against the runs `base`, each as history.load gives them: a row for each cell.

    The runs of a sitting are one value. `spreads`, as history.spreads gives them, tell how far one sitting is from the
    next; `across` names what of the cells' identity may differ.
    """
    base, head = (table.assign(order=range(len(table))) for table in (base, head))
    groups = [dict(iter(table.groupby(CELL, sort=False))) for table in (base, head)]
    keys = list(dict.fromkeys([*groups[0], *groups[1]]))
    confidence = corrected(CONFIDENCE, len(keys))
    rows = []
    for key in keys:
        before, after = (group.get(key) for group in groups)
        row: dict[str, Any] = dict(zip(CELL, key, strict=True)) | {"verdict": "not comparable", "differs": [], "f1": {}}
        rows.append(row)
        if before is None or after is None:
            row["differs"] = [f"only {'head' if before is None else 'base'} has it"]
            continue
        first, *others = [*before["identity"], *after["identity"]]
        differs = [one for other in others for one in differences(first, other, asked=across)]
        if differs:
            row["differs"] = list(dict.fromkeys(differs))
            continue
        timed = [group.dropna(subset=["median_s"]) for group in (before, after)]
        if all(map(len, timed)):
            logs_base, logs_head = map(samples, timed)
            low, high = _two_samples(logs_base, logs_head, confidence, spreads.get(key))
            row["verdict"] = verdict(low, high, min_effect)
            change = float(np.mean(logs_head) - np.mean(logs_base))
            for name, value in (("change", change), ("change_low", low), ("change_high", high)):
                row[name] = math.expm1(value) if math.isfinite(value) else None
            row |= {"base_s": float(np.exp(np.mean(logs_base))), "head_s": float(np.exp(np.mean(logs_head)))}
            row |= {"base_runs": len(timed[0]), "head_runs": len(timed[1])}
            row |= {"base_sittings": len(logs_base), "head_sittings": len(logs_head)}
        else:
            row["verdict"] = ""
        last = [group.iloc[-1] for group in (before, after)]
        row["f1"] = _f1(last[0], last[1], confidence, min_f1_effect)
        for name in ("disk_bytes", "peak_rss_bytes"):
            for side, one in zip(("base", "head"), last, strict=True):
                row[f"{side}_{name}"] = None if _absent(one.get(name)) else float(one[name])
    return rows


def samples(group: "pd.DataFrame") -> npt.NDArray[np.float64]:
    """Return the mean logarithm of latency in each sitting of one cell's runs, in the sittings' order."""
    sittings, places = np.unique(group["sitting"], return_inverse=True)
    logs = np.log(group["median_s"].to_numpy(dtype=float))
    return np.bincount(places, weights=logs, minlength=len(sittings)) / np.bincount(places, minlength=len(sittings))


def _two_samples(
    base: npt.NDArray[np.float64],
    head: npt.NDArray[np.float64],
    confidence: float,
    spread: tuple[float, int] | None,
) -> tuple[float, float]:
    """Return the interval of the difference of means, head less base; infinite where nothing tells the noise.

    Source: Student's two-sample interval with pooled variance, into which `spread` (a standard deviation of single
    values and its degrees of freedom) is pooled as one more sample.
    """
    from scipy import special  # scipy.stats takes a second to import

    known, freedom = spread or (0.0, 0)
    squares = sum(((sample - sample.mean()) ** 2).sum() for sample in (base, head)) + freedom * known**2
    freedom += len(base) + len(head) - 2
    if not freedom:
        return -math.inf, math.inf
    error = math.sqrt(squares / freedom * (1 / len(base) + 1 / len(head)))
    reach = float(special.stdtrit(freedom, (1 + confidence) / 2)) * error
    change = float(head.mean() - base.mean())
    return change - reach, change + reach


def _f1(base: "pd.Series[Any]", head: "pd.Series[Any]", confidence: float, min_effect: float) -> dict[str, Any]:
    """Compare the F1 of two runs; `inconclusive` where an older run does not hold its answers."""
    from qbert import evaluate

    if _absent(base.get("f1")) or _absent(head.get("f1")):
        return {}
    before, after = (one.get("answers") for one in (base, head))
    if not isinstance(before, dict) or not isinstance(after, dict) or before["labels"] != after["labels"]:
        figures = {"f1_baseline": base["f1"], "f1": head["f1"], "f1_drop": base["f1"] - head["f1"]}
        return figures | {"verdict": "inconclusive"}
    return evaluate.compare_answers(before, after, confidence, min_effect)


def _absent(value: Any) -> bool:  # noqa: ANN401
    return value is None or (isinstance(value, float) and math.isnan(value))
