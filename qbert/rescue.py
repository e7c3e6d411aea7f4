"""Find the few products whose int8 costs the answers, and keep those in float until the guard holds: `qbert rescue`.

The order is measured: a product's error is that of the logits with it alone in int8, on calibration texts; errors
nearly add, which is measured too. Its price is the time that a call takes longer with it in float. The first products
of that order are kept, as few as the guard needs: held-out documents decide, by bisection.
"""

import json
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import optimize

from qbert import accuracy, machine, variants
from qbert import dataset as datasets
from qbert.accuracy import Comparison
from qbert.cache import build_folder, is_filled, seal
from qbert.dataset import Dataset
from qbert.errors import InputError
from qbert.kept_answers import KeptAnswers
from qbert.labels import MULTI_LABEL, predicted
from qbert.suite import Cell, baseline_of
from qbert.terminal import progress
from qbert.tokenizer import Encoding
from qbert.variants import VARIANTS, Variant, native
from qbert.variants.native.encoder import WEIGHTS, Encoder

if TYPE_CHECKING:
    import pandas as pd

CALIBRATION_DOCUMENTS = 64  # 256 gave the same first six products (MiniLM, SST-2)
SURE = 0.9  # of the interval whose upper end has to be within the limit: 95 % on that side
MIXES = 16  # drawn to see whether errors add
ROUNDS = 15  # of timed calls
FAR = 2.0  # times the greatest error in int8: documents with a wider margin are not asked again until the end
REPORT = "rescue.json"

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Product:
    """What int8 costs one product, and what float would."""

    name: str
    error: float
    """The mean squared error of the logits where it alone is int8."""
    left_out: float
    """By how much the mean squared error of the logits shrinks where it alone is not int8."""
    cost_s: float
    """By how much a call is longer where it is kept."""


@dataclass(frozen=True)
class Rescued:
    """The result: which products are kept, and what that brings and costs."""

    model: str
    dataset: str
    variant: str
    limit: float
    """Of the F1 drop."""
    judged_by: str
    """Which documents decide, and whether the model has seen them, in words."""
    kept: tuple[str, ...]
    """In the order in which they were chosen; all where nothing holds the guard."""
    holds: bool
    precision: str
    """Of the kept products."""
    products: tuple[Product, ...]
    """All of the model's, those worth most first; empty where int8 held the guard."""
    plain: Comparison
    """Every product in int8, on the held-out documents."""
    chosen: Comparison
    """With `kept`, on the held-out documents."""
    chosen_at_most: float
    """The F1 drop that `chosen` surely does not exceed."""
    plain_at_most: float
    test: Comparison | None
    """With `kept`, on the test split, which nothing was chosen by; None where nothing holds the guard."""
    plain_test: Comparison | None
    latency_ratio: float
    """Latency with `kept` over that of plain int8."""
    additivity: float | None
    """Correlation of the products' summed errors with the error of drawn mixes; None without a search."""
    searched: tuple[dict[str, Any], ...]
    """The numbers of kept products that the guard judged, and what it said."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What each step took."""


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
        if holds(middle):
            held = middle
        else:
            fails = middle
    return held


def squared_error(logits: Logits, reference: Logits) -> float:
    """Return the mean, over texts, of the squared distance of `logits` from `reference`, `(texts, num_labels)`.

    What is the same for all labels of a text changes no answer, and is no error.
    """
    difference = logits.astype(np.float64) - reference
    return float(((difference - difference.mean(axis=1, keepdims=True)) ** 2).sum(axis=1).mean())


def margins(logits: Logits, problem_type: str) -> npt.NDArray[np.float64]:
    """Return by how much each document's logits may change before its answer can."""
    if problem_type == MULTI_LABEL:
        return np.asarray(np.abs(logits.astype(np.float64)).min(axis=1))
    second, first = np.partition(logits.astype(np.float64), -2, axis=1)[:, -2:].T
    return np.asarray(first - second)


def changes(logits: Logits, reference: Logits, problem_type: str) -> npt.NDArray[np.float64]:
    """Return by how much each document's logits differ from `reference`, to be held against `margins`."""
    difference = logits.astype(np.float64) - reference
    return np.asarray(np.abs(difference).max(axis=1) if problem_type == MULTI_LABEL else np.ptp(difference, axis=1))


def median(texts: Sequence[Encoding]) -> Encoding:
    """Return the text of median length."""
    return sorted(texts, key=lambda encoding: encoding["input_ids"].shape[1])[len(texts) // 2]


def prices(seconds: Mapping[str, float], work: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return the seconds that keeping each product costs: not below 0, and smooth.

    `seconds` was measured, and is noisy; `work` has a product's multiplications and weights. Time is their sum, each
    times a rate, which least squares find. What would cost nothing costs a thousandth of the dearest.
    """
    names = list(seconds)
    columns = np.array([work[name] for name in names], dtype=float)
    scale = columns.max(axis=0)
    rates, _ = optimize.nnls(columns / scale, np.array([seconds[name] for name in names]))
    fitted = columns / scale @ rates if rates.any() else columns[:, 0] / scale[0]
    return dict(zip(names, map(float, np.maximum(fitted, fitted.max() / 1000)), strict=True))


@dataclass(frozen=True)
class Documents:
    """Labelled documents, encoded, with the baseline's logits, `(documents, num_labels)`."""

    rows: "pd.DataFrame"
    encodings: list[Encoding]
    baseline: Logits

    def __len__(self) -> int:
        """Return how many they are."""
        return len(self.encodings)


class Search:
    """The search over one checkpoint's mixes."""

    def __init__(self, encoder: Encoder, dataset: Dataset, problem_type: str, limit: float) -> None:
        """Judge mixes of `encoder`, which has every product in both precisions, by `limit`."""
        self.encoder, self.dataset, self.problem_type, self.limit = encoder, dataset, problem_type, limit
        self.names = list(encoder.geometry.products())

    def logits(self, kept: Collection[str], encodings: Sequence[Encoding]) -> Logits:
        """Return the logits of each encoding, `(texts, num_labels)`, with the products `kept` in float."""
        self.encoder.keep(kept)
        return np.concatenate([self.encoder(encoding) for encoding in encodings])

    def compare(self, documents: Documents, logits: Logits) -> tuple[Comparison, float]:
        """Return the comparison with the baseline, and what the F1 drop surely does not exceed."""
        labels = self.dataset.indicators(documents.rows)
        before, after = (predicted(array, self.problem_type) for array in (documents.baseline, logits))
        comparison = accuracy.compare(labels, before, after, multi_label=self.problem_type == MULTI_LABEL)
        _, high = accuracy.f1_drop_interval(labels, before, after, confidence=SURE)
        return comparison, max(high, comparison.f1_drop)

    def measure(self, calibration: Documents, advance: Callable[[int], None]) -> tuple[list[Product], float]:
        """Return the products in order, and how well summed errors tell those of mixes (a correlation)."""
        texts, names = calibration.encodings, self.names

        def error(kept: Collection[str]) -> float:
            return squared_error(self.logits(kept, texts), calibration.baseline)

        everything, nothing = error(names), error([])
        seconds = prices(self._seconds(texts, partial(advance, 1)), self._work(texts))
        products = []
        for number, name in enumerate(names):
            alone = error([other for other in names if other != name]) - everything
            left_out = nothing - error([name])
            products.append(Product(name, max(alone, 0.0), left_out, seconds[name]))
            advance(2 + number)
        generator = np.random.default_rng(0)
        summed, measured = [], []
        for share in generator.uniform(0.05, 0.95, MIXES):
            drawn = generator.random(len(names)) < share
            mix = [name for name, keeps in zip(names, drawn, strict=True) if keeps]
            summed.append(everything + sum(product.error for product in products if product.name not in mix))
            measured.append(error(mix))
        return in_order(products), float(np.corrcoef(summed, measured)[0, 1])

    def _groups(self) -> list[list[str]]:
        """Return the products of one kind in all layers, and by themselves those of the last, which has one row."""
        last = f"layers.{self.encoder.geometry.layers - 1}."
        groups: dict[tuple[str, bool], list[str]] = {}
        for name in self.names:
            groups.setdefault((name.rpartition(".")[2], name.startswith(last)), []).append(name)
        return list(groups.values())

    def _work(self, texts: Sequence[Encoding]) -> dict[str, tuple[float, float]]:
        """Return each product's multiplications for the median text, and its weights."""
        tokens, last = median(texts)["input_ids"].shape[1], f"layers.{self.encoder.geometry.layers - 1}."
        work = {}
        for name, (outputs, inputs) in self.encoder.geometry.products().items():
            of_first_token = name.startswith(last) and not name.endswith((".key", ".value"))
            work[name] = float(outputs * inputs * (1 if of_first_token else tokens)), float(outputs * inputs)
        return work

    def _seconds(self, texts: Sequence[Encoding], advance: Callable[[], None]) -> dict[str, float]:
        """Return by how many seconds a call is longer where a product is kept: calls in turn, medians, by groups."""
        encoding = median(texts)
        seconds: dict[str, float] = {}
        for group in self._groups():
            kept, plain = self.timed(encoding, [group, ()]).T
            seconds |= dict.fromkeys(group, float(np.median(kept - plain)) / len(group))
        advance()
        return seconds

    def timed(self, encoding: Encoding, mixes: Sequence[Collection[str]]) -> npt.NDArray[np.float64]:
        """Return the seconds of calls, `(rounds, mixes)`: the mixes in turn, after one call of each to warm up."""
        seconds = np.empty((ROUNDS, len(mixes)))
        with machine.one_core():
            for turn in range(ROUNDS):
                for number, kept in enumerate(mixes):
                    self.encoder.keep(kept)
                    self.encoder(encoding)
                    start = time.perf_counter()
                    self.encoder(encoding)
                    seconds[turn, number] = time.perf_counter() - start
        return seconds

    def judge_near(self, documents: Documents, plain: Logits) -> Callable[[Collection[str]], tuple[Comparison, float]]:
        """Return what judges a mix, asking only the documents whose answer it could change.

        `plain` are the logits in int8. No mix has greater errors, by far; a document whose margin is `FAR` times the
        greatest keeps its answer. Whoever relies on that judges all documents in the end.
        """
        greatest = changes(plain, documents.baseline, self.problem_type).max()
        near = np.flatnonzero(margins(documents.baseline, self.problem_type) <= FAR * greatest)
        encodings = [documents.encodings[number] for number in near]

        def judge(kept: Collection[str]) -> tuple[Comparison, float]:
            logits = documents.baseline.copy()
            if encodings:
                logits[near] = self.logits(kept, encodings)
            return self.compare(documents, logits)

        return judge


def rescue(
    model: str,
    dataset: str,
    limit: float,
    output: Path,
    *,
    variant: str = "int8-native",
    validation: Path | None = None,
    documents: int = 2_000,
    max_length: int | None = None,
) -> Rescued:
    """Write `model` to the folder `output` as `variant` with as few products in float as hold the F1 drop at `limit`.

    Held-out rows of the training split decide, or those of the file `validation`; the test split is read once, at the
    end. Where nothing holds, nothing is written.

    Raises:
        InputError: something cannot be used, or there are too few documents to tell a drop of `limit`.
    """
    row = variants.get(variant)
    if row.load is not native.load:
        known = ", ".join(name for name, other in VARIANTS.items() if other.load is native.load)
        raise InputError(f"variant {variant} has no products to keep: name one of {known}")
    if is_filled(output):
        raise InputError(f"{output} exists already: remove it or name another folder")
    loaded = datasets.load(dataset)
    baseline = baseline_of(model, loaded, max_length)
    checkpoint = baseline.checkpoint
    trained_on = checkpoint.record.get("dataset_sha256")
    calibrating = variants.CALIBRATION_DOCUMENTS if row.calibrated else CALIBRATION_DOCUMENTS
    rows, judged_by = loaded.to_choose_by(validation, calibrating, trained_on)
    clock = _Clock()
    answered = partial(ask, baseline)
    calibration = answered(loaded.calibration(CALIBRATION_DOCUMENTS), "fp32, calibration")
    held = answered(rows[:documents], "fp32, held out")
    clock.lap("baseline")
    rounded = variants.prepare(row, checkpoint, loaded, baseline.max_length) / WEIGHTS
    with tempfile.TemporaryDirectory() as place:
        native.export(checkpoint, Path(place), None, rounded)
        encoder = Encoder(Path(place) / WEIGHTS, **row.options)
    clock.lap("export")
    search = Search(encoder, loaded, checkpoint.problem_type, limit)
    _check_enough(search, held)
    plain_logits = search.logits([], held.encodings)
    plain, plain_at_most = search.compare(held, plain_logits)
    clock.lap("plain")
    products: list[Product] = []
    additivity, searched = None, [{"kept": 0, "f1_drop": plain.f1_drop, "at_most": plain_at_most}]
    kept: tuple[str, ...] | None = ()
    chosen, chosen_at_most = plain, plain_at_most
    if plain_at_most > limit:
        with progress("sensitivity", len(search.names) + 2) as advance:
            products, additivity = search.measure(calibration, advance)
        clock.lap("sensitivity")
        kept, chosen, chosen_at_most = _choose(search, products, held, plain_logits, searched)
        clock.lap("search")
    holds = kept is not None
    kept = tuple(search.names) if kept is None else kept
    kept_s, plain_s = search.timed(median(held.encodings), [kept, ()]).T
    test = plain_test = None
    if holds:
        tested = answered(loaded.test, "fp32, test")
        test, _ = search.compare(tested, search.logits(kept, tested.encodings))
        plain_test, _ = search.compare(tested, search.logits([], tested.encodings))
        clock.lap("test")
    rescued = Rescued(
        model=baseline.model.name,
        dataset=loaded.name,
        variant=row.name,
        limit=limit,
        judged_by=judged_by,
        kept=kept,
        holds=holds,
        precision={"bfloat16": "bf16", "float32": "fp32"}[encoder.floats],
        products=tuple(products),
        plain=plain,
        plain_at_most=plain_at_most,
        chosen=chosen,
        chosen_at_most=chosen_at_most,
        test=test,
        plain_test=plain_test,
        latency_ratio=float(np.median(kept_s / plain_s)),
        additivity=additivity,
        searched=tuple(searched),
        seconds=clock.laps,
    )
    if holds:
        build_folder(output, partial(_fill, rescued, row, baseline, rounded))
    return rescued


def _choose(
    search: Search, products: Sequence[Product], held: Documents, plain: Logits, searched: list[dict[str, Any]]
) -> tuple[tuple[str, ...] | None, Comparison, float]:
    """Return the fewest of the first `products` with which the guard holds, and how those were judged.

    None where not even all hold it. Each judgement is added to `searched`.
    """
    judge = search.judge_near(held, plain)
    names = [product.name for product in products]

    def note(count: int, judged: tuple[Comparison, float]) -> bool:
        comparison, at_most = judged
        searched.append({"kept": count, "f1_drop": comparison.f1_drop, "at_most": at_most})
        return at_most <= search.limit

    count = fewest(len(names), lambda count: note(count, judge(names[:count])))
    # All documents confirm it: those that were not asked might have changed after all.
    number = len(names) if count is None else count
    while True:
        comparison, at_most = search.compare(held, search.logits(names[:number], held.encodings))
        if at_most <= search.limit:
            return tuple(names[:number]), comparison, at_most
        if number == len(names):
            return None, comparison, at_most
        number += 1


def _check_enough(search: Search, held: Documents) -> None:
    """Raise InputError where the documents are too few to tell a drop of the limit even if no answer changes."""
    _, at_most = search.compare(held, held.baseline)
    if at_most > search.limit:
        enough = int(np.ceil(len(held) * at_most / search.limit / 100) * 100)
        raise InputError(
            f"{len(held)} held-out documents cannot show that F1 drops by {search.limit:g} at most, even if no answer "
            f"changes: it would take about {enough:,} (--documents, more rows or --validation), or a higher limit"
        )


def ask(baseline: Cell, rows: "pd.DataFrame", what: str) -> Documents:
    """Return `rows` with the logits of the cell `baseline`, those from the cache that an earlier run asked for."""
    texts = datasets.text_rows(rows)
    with progress(what, len(texts)) as advance:
        logits = KeptAnswers(baseline).logits(texts, advance)
    encodings = [baseline.encoder(*text, max_length=baseline.max_length) for text in texts]
    return Documents(rows, encodings, logits)


def _fill(rescued: Rescued, variant: Variant, baseline: Cell, rounded: Path, stage: Path) -> None:
    """Write the artefact, with the int8 weights of the file `rounded`, and the record of why to `stage`."""
    checkpoint = baseline.checkpoint
    variants.write_artefact(variant, checkpoint, stage, baseline.suite.dataset, baseline.max_length)
    native.export(checkpoint, stage, rescued.kept, rounded)
    record = asdict(rescued) | {"machine": machine.identity(*variant.packages)}
    (stage / REPORT).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    seal(stage)


class _Clock:
    """The seconds of steps that follow one another."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._start = time.monotonic()

    def lap(self, what: str) -> None:
        now = time.monotonic()
        self.laps[what], self._start = now - self._start, now
