"""The search of runtimes that run any mix of layers in int8 and in float.

The order is measured: a layer's error is that of the logits with it alone in int8, on calibration texts; errors
nearly add, which is measured too. Its price is the time that a call takes longer with it in float. The first layers of
that order are kept in float, as few as the guard needs: held-out documents decide, by bisection.

Layers are the linear ones; runs and artefacts record them as `products`, and those in float as `kept`.
"""

import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import optimize

from qbert.inputs import metrics
from qbert.inputs.tokenizer import Encoding
from qbert.measure.accuracy import Comparison
from qbert.selection.rescue.judging import Documents, Judge, Logits
from qbert.system import machine
from qbert.system.cache import build_kept
from qbert.system.terminal import progress

MIXES = 16  # drawn to see whether errors add
ROUNDS = 15  # of timed calls
SECONDS = "seconds.json"

Run = Callable[[Encoding], Logits]
Lap = Callable[[str], None]
"""Notes the seconds since its last call for the step of that name."""
Work = Mapping[str, tuple[float, float]]
"""Each layer's multiplications for a text, and its weights."""


@dataclass(frozen=True)
class Product:
    """What int8 costs one layer, and what float would."""

    name: str
    error: float
    """The mean squared error of the logits where it alone is int8."""
    left_out: float
    """By how much the mean squared error of the logits shrinks where it alone is not int8."""
    cost_s: float
    """By how much a call is longer where it is in float."""


@dataclass
class Choice:
    """The layers to keep in float, and how that was found."""

    kept: tuple[str, ...]
    """In the order in which they were chosen; all where nothing holds the guard."""
    every: int
    """The number of layers."""
    judged: Comparison
    """With `kept` in float, on all held-out documents."""
    searched: list[dict[str, Any]]
    """The numbers of float layers that the guard judged, and what it said."""
    products: tuple[Product, ...] = ()
    """All, those worth most first; empty where they were not measured."""
    additivity: float | None = None
    """Correlation of the layers' summed errors with the error of drawn mixes."""
    priced: str | None = None
    """When the prices of `products` were measured."""


def looked(kept: int, judged: Comparison) -> dict[str, Any]:
    """Return what a record says of a mix with `kept` layers in float."""
    drop = metrics.own_names({"metric": judged.metric, "drop": judged.drop})
    return {"kept": kept, **drop, "at_most": judged.drop_at_most}


class Mixes(Protocol):
    """One checkpoint in any mix of layers in int8 and in float."""

    names: list[str]
    """The layers, in the order in which they run."""

    def groups(self) -> list[list[str]]:
        """Return the layers whose calls take equally long, together."""

    def work(self, tokens: int) -> Work:
        """Return what each layer computes for a text of `tokens` tokens."""

    def classifier(self, kept: Collection[str]) -> Run:
        """Return what computes logits with the layers `kept` in float, until it is asked for another."""

    def write(self, kept: Sequence[str], folder: Path) -> None:
        """Write the weights or the graph with the layers `kept` in float to `folder`, over those of plain int8."""


def in_order(products: Sequence[Product]) -> list[Product]:
    """Return `products`, those first that save most error for each second that they cost."""
    return sorted(products, key=lambda product: (-product.error / product.cost_s, product.name))


def fewest(count: int, holds: Callable[[int], bool]) -> int | None:
    """Return the least number up to `count` that `holds`, where greater ones hold too; None where `count` does not.

    That 0 does not hold is known.
    """
    if not holds(count):
        return None
    fails, held = 0, count
    while held - fails > 1:
        middle = (fails + held) // 2
        fails, held = (fails, middle) if holds(middle) else (middle, held)
    return held


def prices(seconds: Mapping[str, float], work: Work) -> dict[str, float]:
    """Return the seconds that keeping each layer in float costs: not below 0, and smooth.

    `seconds` was measured, and is noisy; `work` has a layer's multiplications and weights. Time is their sum, each
    times a rate, which least squares find. What would cost nothing costs a thousandth of the dearest.
    """
    names = list(seconds)
    columns = np.array([work[name] for name in names], dtype=float)
    scale = columns.max(axis=0)
    rates, _ = optimize.nnls(columns / scale, np.array([seconds[name] for name in names]))
    fitted = columns / scale @ rates if rates.any() else columns[:, 0] / scale[0]
    return dict(zip(names, map(float, np.maximum(fitted, fitted.max() / 1000)), strict=True))


def timed(
    classifier: Callable[[Collection[str]], Run], encoding: Encoding, mixes: Sequence[Collection[str]]
) -> npt.NDArray[np.float64]:
    """Return the seconds of calls, `(rounds, mixes)`: the mixes in turn, after one call of each to warm up."""
    seconds = np.empty((ROUNDS, len(mixes)))
    with machine.one_core():
        for turn in range(ROUNDS):
            for number, kept in enumerate(mixes):
                run = classifier(kept)
                run(encoding)
                start = time.perf_counter()
                run(encoding)
                seconds[turn, number] = time.perf_counter() - start
    return seconds


class Search:
    """The search over one checkpoint's mixes."""

    def __init__(self, mixes: Mixes, prices: Path) -> None:
        """Search among `mixes`; the folder `prices` keeps what layers cost, so that every run orders them alike."""
        self.mixes, self.names = mixes, list(mixes.names)
        self._prices, self._priced = prices, ""
        self.classifier, self.write = mixes.classifier, mixes.write

    def logits(self, kept: Collection[str], encodings: Sequence[Encoding]) -> Logits:
        """Return the logits of each encoding, `(texts, num_labels)`, with the layers `kept` in float."""
        run = self.mixes.classifier(kept)
        return np.concatenate([run(encoding) for encoding in encodings])

    def choose(self, guard: Judge, calibration: Documents, held: Documents, plain: Logits, lap: Lap) -> Choice:
        """Return the fewest of the first layers with which `guard` holds on the documents `held`.

        `plain` are the logits in int8, which do not hold it.
        """
        with progress("sensitivity", len(self.names) + 2) as advance:
            products, additivity = self.measure(guard, calibration, advance)
        names = [product.name for product in products]
        lap("sensitivity")
        count, judged, searched = self._fewest(guard, names, held, plain)
        lap("search")
        return Choice(tuple(names[:count]), len(names), judged, searched, tuple(products), additivity, self._priced)

    def _fewest(
        self, guard: Judge, names: Sequence[str], held: Documents, plain: Logits
    ) -> tuple[int, Comparison, list[dict[str, Any]]]:
        """Return how many of the first of `names` to keep in float, how that was judged, and what was on the way."""
        near = guard.near(held, plain)
        encodings = [held.encodings[number] for number in near]
        searched: list[dict[str, Any]] = []
        held_with = {len(names)}

        def holds(count: int) -> bool:
            judged = guard.judge(held, self.logits(names[:count], encodings), near)
            searched.append(looked(count, judged))
            advance(len(searched))
            held_with.update([count] if guard.holds(judged) else [])
            return guard.holds(judged)

        with progress("search, mix", 2 + math.ceil(math.log2(len(names)))) as advance:
            fewest(len(names), holds)
            # All documents confirm it: those that were not asked might have changed after all.
            for number in sorted(held_with):
                judged = guard.judge(held, self.logits(names[:number], held.encodings))
                if guard.holds(judged):
                    break
        return number, judged, searched

    def measure(
        self, guard: Judge, calibration: Documents, advance: Callable[[int], None]
    ) -> tuple[list[Product], float]:
        """Return the layers in order, and how well summed errors tell those of mixes (a correlation)."""
        names = self.names

        def error(kept: Collection[str]) -> float:
            return float(guard.squared_errors(self.logits(kept, calibration.encodings), calibration.baseline).mean())

        everything, nothing = error(names), error([])
        encoding = calibration.median
        seconds = prices(self._seconds(encoding), self.mixes.work(encoding["input_ids"].shape[1]))
        advance(1)
        products = []
        for number, name in enumerate(names):
            alone = error([other for other in names if other != name]) - everything
            products.append(Product(name, max(alone, 0.0), nothing - error([name]), seconds[name]))
            advance(2 + number)
        generator = np.random.default_rng(0)
        summed, measured = [], []
        for share in generator.uniform(0.05, 0.95, MIXES):
            drawn = generator.random(len(names)) < share
            mix = [name for name, keeps in zip(names, drawn, strict=True) if keeps]
            summed.append(everything + sum(product.error for product in products if product.name not in mix))
            measured.append(error(mix))
        return in_order(products), float(np.corrcoef(summed, measured)[0, 1])

    def _seconds(self, encoding: Encoding) -> dict[str, float]:
        """Return by how many seconds a call is longer with a layer in float: calls in turn, medians, by groups."""

        def measure(stage: Path) -> None:
            seconds: dict[str, float] = {}
            for group in self.mixes.groups():
                kept, plain = timed(self.classifier, encoding, [group, ()]).T
                seconds |= dict.fromkeys(group, float(np.median(kept - plain)) / len(group))
            measured = datetime.now(UTC).isoformat(timespec="seconds")
            (stage / SECONDS).write_text(json.dumps({"measured": measured, "seconds": seconds}), encoding="utf-8")

        kept = json.loads((build_kept(self._prices, measure) / SECONDS).read_text(encoding="utf-8"))
        self._priced = kept["measured"]
        return {name: kept["seconds"][name] for name in self.names}
