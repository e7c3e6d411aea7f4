"""What a model is judged by: a row for each kind of head and dataset. Nothing else asks which of them it is.

All code calls a metric's figures by the names in NAMES. Where they leave it, in saved runs, records and JSON, they have
the metric's own, which begin with its key: `f1`, `f1_baseline`, `f1_drop` and so on.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from qbert.inputs import labels
from qbert.inputs.bounds import ByKind, ByUnit, Floats, OfCorrelation, Paired
from qbert.inputs.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Indicators, predicted

if TYPE_CHECKING:
    import pandas as pd

    from qbert.inputs.dataset import Dataset

Logits = npt.NDArray[np.floating[Any]]
Record = Mapping[str, Any]
"""What a saved run or a side of the gate holds of its answers."""

TEXT_SHOWN = 200
"""Characters of a text that a flip keeps."""
FIRST = 10
"""Passages of a query that a ranking is judged by."""


class Metric(ABC):
    """A score of answers to documents, 1 at best, and what can be said of two answers to the same documents.

    `truth` is what the dataset says of documents, and `answers` what the metric sees of logits; both are of one metric
    alone, and their rows are documents.
    """

    key: ClassVar[str]
    """Its figures' names begin with it."""
    title: ClassVar[str]
    short: ClassVar[str]
    """Its name where there is little room."""
    least: ClassVar[float] = 0.0
    """The least score that there is."""
    flip: ClassVar[str] = ""
    """What of an answer can change, in a word; empty where any answer changes a little."""
    changed: ClassVar[str] = ""
    """The same of several."""
    flipped_title: ClassVar[str] = ""
    margin: ClassVar[str] = ""
    """What the margins of a flip are."""
    interval: ClassVar[str]
    """What the interval of the drop is of."""
    flipped_line: ClassVar[str] = ""
    """How a flip is told in a line."""
    always: ClassVar[tuple[str, ...]] = ()
    """Figures that a record has although they are not known: as null."""
    more: ClassVar[Mapping[str, str]] = {}
    """What the figures are called that are shown beside it, by their names."""
    narrow: ClassVar[Mapping[str, str]] = {}
    """The same, as headings in a terminal."""

    @property
    def of_test(self) -> str:
        """What the record of a training calls the score of the test split, such as `test_weighted_f1`."""
        return f"test_{self.title.lower().replace(' ', '_').replace('@', '_at_')}"

    @abstractmethod
    def truth(self, dataset: "Dataset", documents: "pd.DataFrame") -> Any:  # noqa: ANN401
        """Return what is true of `documents`, rows of a split of `dataset`."""

    @abstractmethod
    def answers(self, logits: Logits) -> npt.NDArray[Any]:
        """Return the answers that `logits`, `(documents, num_labels)`, give."""

    @abstractmethod
    def score(self, truth: Any, answers: npt.NDArray[Any]) -> float:  # noqa: ANN401
        """Return the score."""

    @abstractmethod
    def paired(self, truth: Any, before: npt.NDArray[Any], after: npt.NDArray[Any]) -> Paired:  # noqa: ANN401
        """Return the drop of the score from the answers `before` to those `after`, with its bounds."""

    @abstractmethod
    def figures(self, truth: Any, before: npt.NDArray[Any], after: npt.NDArray[Any]) -> dict[str, Any]:  # noqa: ANN401
        """Return further figures by their names: `flips` where there are any, and those in `more`."""

    @abstractmethod
    def margins(self, logits: Logits) -> Floats:
        """Return by how much each document's logits, `(documents, num_labels)`, may change before its answer can."""

    @abstractmethod
    def errors(self, logits: Logits, reference: Logits) -> Floats:
        """Return by how much logits differ from `reference`, without what changes no answer: the same shape."""

    @abstractmethod
    def changes(self, logits: Logits, reference: Logits) -> Floats:
        """Return by how much each document's logits differ from `reference`, to be held against `margins`."""

    @abstractmethod
    def record(self, truth: Any, logits: npt.NDArray[np.float32]) -> dict[str, str]:  # noqa: ANN401
        """Return what `read` reads."""

    @abstractmethod
    def read(self, base: Record, head: Record) -> tuple[Any, npt.NDArray[Any], npt.NDArray[Any]]:
        """Return the truth of the documents, and the answers of two records of them."""

    @abstractmethod
    def flipped(
        self, dataset: "Dataset", documents: "pd.DataFrame", before: Logits, after: Logits
    ) -> list[dict[str, Any]]:
        """Return what changed, document by document or query by query, from the logits `before` to those `after`.

        Each has `row`, `text`, `label`, `baseline`, `variant`, `baseline_margin` and `variant_margin`.
        """

    def reads(self, record: Record) -> bool:
        """Whether `record` is one of answers that this metric can judge.

        Raises:
            KeyError, ValueError: it is not.
        """
        return bool(self.read(record, record))

    def in_words(self, record: Record) -> list[tuple[int, str]]:
        """Return the answers that can change, each with its document's place in the record."""
        return []

    def whole(self, truth: Any, count: int) -> int:  # noqa: ANN401
        """Return the least number of documents from `count` on that ends with a whole unit of what is judged."""
        return count


@dataclass(frozen=True)
class F1(Metric):
    """Weighted F1 of documents with one label each, or with any number of them (`several`)."""

    several: bool = False

    key = "f1"
    title = "weighted F1"
    short = "F1"
    flip = "label"
    changed = "labels"
    flipped_title = "Documents whose label changed"
    flipped_line = "document {row}: {baseline} -> {variant}, is {label}: {text}"
    always = ("label_flips", "logit_error")
    margin = "by how much the highest logit is above the next"
    interval = "a score test over the documents, and where a run has no f1_drop_at_most, of a paired bootstrap"

    @property
    def _problem_type(self) -> str:
        return MULTI_LABEL if self.several else SINGLE_LABEL

    def truth(self, dataset: "Dataset", documents: "pd.DataFrame") -> Indicators:
        return dataset.indicators(documents)

    def answers(self, logits: Logits) -> Indicators:
        return predicted(logits, self._problem_type)

    def score(self, truth: Indicators, answers: Indicators) -> float:
        """Return the mean of the labels' F1, weighted by how often each is true; 0 without any."""
        support, hits = truth.sum(axis=0), (truth & answers).sum(axis=0)
        f1 = 2 * hits / np.maximum(support + answers.sum(axis=0), 1)
        return float((f1 * support).sum() / max(support.sum(), 1))

    def paired(self, truth: Indicators, before: Indicators, after: Indicators) -> ByKind:
        return ByKind(*f1_drop_parts(truth, before, after))

    def figures(self, truth: Indicators, before: Indicators, after: Indicators) -> dict[str, Any]:
        """Return `flips`; `lost` and `gained`, for which all labels of a document have to be right; `label_flips`."""
        right_before, right_after = ((truth == side).all(axis=1) for side in (before, after))
        return {
            "flips": int((before != after).any(axis=1).sum()),
            "lost": int((right_before & ~right_after).sum()),
            "gained": int((~right_before & right_after).sum()),
            "label_flips": int((before != after).sum()) if self.several else None,
        }

    def margins(self, logits: Logits) -> Floats:
        """Return the difference of the two highest; with several labels, the least distance to the threshold."""
        if self.several:
            return np.asarray(np.abs(logits.astype(np.float64)).min(axis=1))
        second, first = np.partition(logits.astype(np.float64), -2, axis=1)[:, -2:].T
        return np.asarray(first - second)

    def errors(self, logits: Logits, reference: Logits) -> Floats:
        difference = logits.astype(np.float64) - reference
        return np.asarray(difference if self.several else difference - difference.mean(axis=1, keepdims=True))

    def changes(self, logits: Logits, reference: Logits) -> Floats:
        errors = self.errors(logits, reference)
        return np.asarray(np.abs(errors).max(axis=1) if self.several else np.ptp(errors, axis=1))

    def record(self, truth: Indicators, logits: npt.NDArray[np.float32]) -> dict[str, str]:
        return labels.answers(truth, self.answers(logits), logits)

    def read(self, base: Record, head: Record) -> tuple[Indicators, Indicators, Indicators]:
        texts = head["labels"], base["predicted"], head["predicted"]
        ids = [int(one) for one in " ".join(texts).replace(",", " ").split() if one != "-"]
        count = 1 + max(ids, default=0)
        truth, before, after = (labels.unpacked(text, count) for text in texts)
        return truth, before, after

    def flipped(
        self, dataset: "Dataset", documents: "pd.DataFrame", before: Logits, after: Logits
    ) -> list[dict[str, Any]]:
        """Return the documents whose labels differ, with the labels' names, separated by |, and the logits' margins."""
        truth, sides = self.truth(dataset, documents), [self.answers(logits) for logits in (before, after)]
        margins = [self.margins(logits) for logits in (before, after)]

        def names(indicators: Indicators) -> str:
            return "|".join(dataset.names[label] for label in np.flatnonzero(indicators))

        return [
            {
                "row": int(documents.index[int(row)]),
                "label": names(truth[row]),
                "baseline": names(sides[0][row]),
                "baseline_margin": float(margins[0][row]),
                "variant": names(sides[1][row]),
                "variant_margin": float(margins[1][row]),
                "text": str(documents["text"].iloc[row])[:TEXT_SHOWN],
            }
            for row in np.flatnonzero((sides[0] != sides[1]).any(axis=1))
        ]

    def in_words(self, record: Record) -> list[tuple[int, str]]:
        """Return each document's labels, by name where the names are known."""
        names: Sequence[str] = record.get("label_names", ())

        def named(ids: str) -> str:
            known = [names[int(one)] if one != "-" and int(one) < len(names) else one for one in ids.split(",")]
            return "|".join(known) if known != ["-"] else "none"

        return list(enumerate(map(named, record["predicted"].split(" "))))


def f1_drop_parts(truth: Indicators, before: Indicators, after: Indicators) -> tuple[Floats, Floats]:
    """Return what each distinct kind of document adds to the weighted F1 drop, and how many there are of it.

    The mean over the documents is the drop itself. Kinds with a count of 0 were not observed: a lost and a gained
    document of each label, by which the greatest and the least possible part are known.

    Source: the influence function (Hampel 1974, "The influence curve and its role in robust estimation"). Weighted F1
    is sum(s * 2 t / (s + p)) / sum(s) over the labels, of the true ones s, the predicted ones p, and those that are
    both, t. It is homogeneous, so the parts, its derivatives for one document, add up to it (Euler).
    """
    right = np.unique(truth, axis=0)
    wrong = np.array([_exchange_label(row) for row in right])
    observed, seen = np.unique(np.stack([truth, before, after], axis=1), axis=0, return_counts=True)
    lost, gained = np.stack([right, right, wrong], axis=1), np.stack([right, wrong, right], axis=1)
    true, *predictions = np.concatenate([observed, lost, gained]).swapaxes(0, 1)
    counts = np.concatenate([seen, np.zeros(2 * len(right))])
    parts_before, parts_after = (_f1_parts(counts, true, one) for one in predictions)
    return parts_before - parts_after, counts


def _f1_parts(counts: Floats, true: Indicators, predicted: Indicators) -> Floats:
    """Return what a document of each kind adds to weighted F1, `counts` times the number of them."""
    support = counts @ true
    total = max(support.sum(), 1)
    hits, positives = counts @ (true & predicted), support + counts @ predicted
    f1, share = (
        np.divide(part, positives, out=np.zeros_like(positives), where=positives > 0) for part in (2 * hits, support)
    )
    mean = (f1 * support).sum() / total
    parts = (true & predicted) @ (2 * share) - predicted @ (share * f1) + true @ (f1 - share * f1 - mean)
    return np.asarray(parts * (counts.sum() / total) + mean)


def _exchange_label(labels: Indicators) -> Indicators:
    """Return `labels` of one document, `(num_labels,)`, all exchanged for the next that it lacks, as far as there are.

    If it has no label, one is added.
    """
    later = (np.arange(len(labels)) + labels.argmax()) % len(labels)
    wrong = np.zeros_like(labels)
    wrong[later[~labels[later]][: max(1, labels.sum())]] = True
    return wrong


@dataclass(frozen=True)
class OfOneOutput(Metric):
    """What is judged of heads with one output, after their `activation` (labels.ACTIVATIONS)."""

    activation: str = labels.IDENTITY

    def answers(self, logits: Logits) -> Floats:
        return np.asarray(labels.activated(logits[:, 0], self.activation), dtype=np.float64)

    def margins(self, logits: Logits) -> Floats:
        """Return zeros: any change of an output changes its answer, or its order among those of others."""
        return np.zeros(len(logits))

    def errors(self, logits: Logits, reference: Logits) -> Floats:
        return np.asarray(logits.astype(np.float64) - reference)

    def changes(self, logits: Logits, reference: Logits) -> Floats:
        return np.asarray(np.abs(self.errors(logits, reference))[:, 0])

    def _record(self, numbers: Floats, logits: npt.NDArray[np.float32]) -> dict[str, str]:
        return {
            "metric": self.key,
            **({} if self.activation == labels.IDENTITY else {"activation": self.activation}),
            "labels": " ".join(map(repr, map(float, numbers))),
            "logits_sha256": hashlib.sha256(logits.tobytes()).hexdigest(),
            **labels.packed_logits(logits),
        }

    def _read(self, record: Record) -> tuple[Floats, Floats]:
        """Return the true numbers of `record`, and its answers."""
        numbers = np.array(record["labels"].split(" "), dtype=np.float64)
        logits = labels.unpacked_logits(record, len(numbers))
        return numbers, replace(self, activation=record.get("activation", labels.IDENTITY)).answers(logits)

    def reads(self, record: Record) -> bool:
        """Whether `record` has a finite true number and one finite logit of each document."""
        numbers, answers = self._read(record)
        one_each = labels.unpacked_logits(record, len(numbers)).shape == (len(numbers), 1)
        return bool(one_each and np.isfinite(numbers).all() and np.isfinite(answers).all())


@dataclass(frozen=True)
class Correlation(OfOneOutput):
    """Pearson's correlation of outputs with labels that are numbers."""

    key = "pearson"
    title = "Pearson correlation"
    short = "Pearson"
    interval = "a paired bootstrap over the documents"
    least = -1.0
    more: ClassVar[Mapping[str, str]] = {
        "spearman": "Spearman",
        "pearson_with_fp32": "Pearson with fp32",
        "spearman_with_fp32": "Spearman with fp32",
    }
    narrow: ClassVar[Mapping[str, str]] = {"spearman": "Spear-\nman", "pearson_with_fp32": "with\nfp32"}

    def truth(self, dataset: "Dataset", documents: "pd.DataFrame") -> Floats:
        return documents["label"].to_numpy(dtype=np.float64)

    def score(self, truth: Floats, answers: Floats) -> float:
        """Return Pearson's correlation; 0 where either is constant, which tells nothing."""
        if not (np.ptp(truth) and np.ptp(answers)):
            return 0.0
        return float(np.corrcoef(truth, answers)[0, 1])

    def paired(self, truth: Floats, before: Floats, after: Floats) -> OfCorrelation:
        return OfCorrelation(truth, before, after)

    def figures(self, truth: Floats, before: Floats, after: Floats) -> dict[str, Any]:
        """Return Spearman's correlation with the labels, of both sides, and both with the outputs `before`."""
        from scipy.stats import rankdata

        ranks, ranks_before, ranks_after = (rankdata(column) for column in (truth, before, after))
        return {
            "spearman": self.score(ranks, ranks_after),
            "spearman_baseline": self.score(ranks, ranks_before),
            "pearson_with_fp32": self.score(before, after),
            "spearman_with_fp32": self.score(ranks_before, ranks_after),
        }

    def record(self, truth: Floats, logits: npt.NDArray[np.float32]) -> dict[str, str]:
        return self._record(truth, logits)

    def read(self, base: Record, head: Record) -> tuple[Floats, Floats, Floats]:
        (numbers, before), (_, after) = self._read(base), self._read(head)
        return numbers, before, after

    def flipped(
        self,
        dataset: "Dataset",
        documents: "pd.DataFrame",
        before: Logits,
        after: Logits,
    ) -> list[dict[str, Any]]:
        """Return nothing: every output changes a little."""
        return []


@dataclass(frozen=True)
class Ranked:
    """Documents that are ranked within their queries."""

    relevance: Floats
    """Of each document, 0 and more."""
    query: npt.NDArray[np.intp]
    """The number of each document's query, from 0."""

    def judged(self) -> list[npt.NDArray[np.intp]]:
        """Return the documents of each query that can be ranked: of two relevances at least."""
        by_query = np.argsort(self.query, kind="stable")
        each = np.split(by_query, np.flatnonzero(np.diff(self.query[by_query])) + 1) if len(by_query) else []
        return [documents for documents in each if np.ptp(self.relevance[documents])]


@dataclass(frozen=True)
class Ranking(OfOneOutput):
    """nDCG@10: how well outputs rank the passages of each query, in the mean over the queries.

    Gains are the relevances themselves, and passages with one output share the gains of their places.

    Source: Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques"; ties as in McSherry and
    Najork 2008, "Computing information retrieval performance measures efficiently in the presence of tied scores".
    """

    key = "ndcg"
    title = f"nDCG@{FIRST}"
    short = "nDCG"
    interval = "a paired bootstrap over the queries, with one more that nobody has seen"
    flip = "order"
    changed = "orders"
    flipped_title = "Queries whose first ten changed"
    flipped_line = "query of document {row}: documents {baseline} -> {variant}, best is {label}: {text}"
    margin = "the least difference between the outputs of two passages that follow one another"
    more: ClassVar[Mapping[str, str]] = {"mrr": f"MRR@{FIRST}"}
    narrow: ClassVar[Mapping[str, str]] = {"mrr": "MRR\n@10"}

    def truth(self, dataset: "Dataset", documents: "pd.DataFrame") -> Ranked:
        import pandas as pd

        return Ranked(documents["label"].to_numpy(dtype=np.float64), pd.factorize(documents["query"])[0])

    def score(self, truth: Ranked, answers: Floats) -> float:
        """Return the mean over the queries that can be ranked; 0 where none can."""
        return _mean(self._ndcg(truth, answers))

    def reads(self, record: Record) -> bool:
        """Whether each document has also a query, and a relevance of 0 or more."""
        return super().reads(record) and bool((self.read(record, record)[0].relevance >= 0).all())

    @staticmethod
    def _ndcg(truth: Ranked, answers: Floats) -> Floats:
        """Return nDCG@10 of each query that can be ranked."""
        from sklearn.metrics import ndcg_score

        queries = truth.judged()
        found = np.zeros(len(queries))
        sizes = np.array([len(documents) for documents in queries])
        for size in np.unique(sizes):
            places = np.flatnonzero(sizes == size)
            rows = np.array([queries[place] for place in places])
            found[places] = [ndcg_score(truth.relevance[[row]], answers[[row]], k=FIRST) for row in rows]
        return np.minimum(found, 1.0)  # sums in another order may be above by rounding

    def paired(self, truth: Ranked, before: Floats, after: Floats) -> ByUnit:
        # No query can lose or gain more than from its best order to its worst.
        greatest = 1 - float(self._ndcg(truth, -truth.relevance).min(initial=1.0)) if truth.judged() else 1.0
        return ByUnit(self._ndcg(truth, before) - self._ndcg(truth, after), greatest)

    def figures(self, truth: Ranked, before: Floats, after: Floats) -> dict[str, Any]:
        """Return the `queries`, the `flips` of the first ten's order among them, and MRR@10 of both sides."""
        queries = truth.judged()
        return {
            "queries": len(queries),
            "flips": sum(_first(before[rows]) != _first(after[rows]) for rows in queries),
            "mrr": _mean([reciprocal_rank(truth.relevance[rows] > 0, after[rows]) for rows in queries]),
            "mrr_baseline": _mean([reciprocal_rank(truth.relevance[rows] > 0, before[rows]) for rows in queries]),
        }

    def record(self, truth: Ranked, logits: npt.NDArray[np.float32]) -> dict[str, str]:
        return self._record(truth.relevance, logits) | {"queries": " ".join(map(str, truth.query))}

    def read(self, base: Record, head: Record) -> tuple[Ranked, Floats, Floats]:
        (relevance, before), (_, after) = self._read(base), self._read(head)
        return Ranked(relevance, np.array(head["queries"].split(" "), dtype=np.intp)), before, after

    def flipped(
        self, dataset: "Dataset", documents: "pd.DataFrame", before: Logits, after: Logits
    ) -> list[dict[str, Any]]:
        """Return the queries whose first ten differ: rows of the split, in the order of the outputs, best first."""
        truth, sides = self.truth(dataset, documents), [self.answers(logits) for logits in (before, after)]
        found = []
        for rows in truth.judged():
            orders = [_first(side[rows]) for side in sides]
            if orders[0] == orders[1]:
                continue
            own = documents.iloc[rows]
            baseline, variant = (" ".join(str(own.index[place]) for place in order) for order in orders)
            relevant = own.index[own["label"] == own["label"].max()]
            gaps = [float(np.diff(np.sort(side[rows])).min()) for side in sides]
            found.append(
                {
                    "row": int(own.index[0]),
                    "label": " ".join(map(str, relevant[:FIRST])),
                    "baseline": baseline,
                    "baseline_margin": gaps[0],
                    "variant": variant,
                    "variant_margin": gaps[1],
                    "text": f"{own['query'].iloc[0]}: {own['text'].iloc[0]}"[:TEXT_SHOWN],
                }
            )
        return found

    def in_words(self, record: Record) -> list[tuple[int, str]]:
        """Return each query's first ten, as places of its passages from 1, best first."""
        truth, answers, _ = self.read(record, record)
        return [(int(rows[0]), " ".join(str(place + 1) for place in _first(answers[rows]))) for rows in truth.judged()]

    def whole(self, truth: Ranked, count: int) -> int:
        """Return where the query ends that has document `count`; those of a query follow one another."""
        ends = np.flatnonzero(np.diff(truth.query, append=-1)) + 1
        return int(ends[ends >= min(count, len(truth.query))][0])


def _mean(values: Sequence[float] | Floats) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _first(outputs: Floats) -> list[int]:
    """Return the places of the first ten of `outputs`, best first; equal ones in their order."""
    return [int(place) for place in np.argsort(-outputs, kind="stable")[:FIRST]]


def reciprocal_rank(relevant: npt.NDArray[np.bool_], outputs: Floats) -> float:
    """Return the reciprocal of the first relevant passage's rank by `outputs`, both `(passages,)`; 0 beyond FIRST.

    Where others have the same output, the mean over all their orders.

    Source: McSherry and Najork 2008, section 3, for a group of ties of which several are relevant.
    """
    if not relevant.any():
        return 0.0
    best = outputs[relevant].max()
    above, tied = int((outputs > best).sum()), int((outputs == best).sum())
    hits = int((relevant & (outputs == best)).sum())
    # The first of `hits` relevant ones among `tied` is at place p in C(tied - p, hits - 1) of C(tied, hits) orders.
    chances = ((place, math.comb(tied - place, hits - 1)) for place in range(1, tied - hits + 2))
    found = sum(chance / (above + place) for place, chance in chances if above + place <= FIRST)
    return found / math.comb(tied, hits)


F1_OF_ONE, F1_OF_SEVERAL, CORRELATION, RANKING = F1(), F1(several=True), Correlation(), Ranking()
BY_KEY: Mapping[str, Metric] = {metric.key: metric for metric in (F1_OF_ONE, CORRELATION, RANKING)}
NAMES = {
    "score": "{}",
    "score_baseline": "{}_baseline",
    "drop": "{}_drop",
    "drop_low": "{}_drop_low",
    "drop_high": "{}_drop_high",
    "drop_at_most": "{}_drop_at_most",
    "drop_verdict": "{}_verdict",
    "max_drop": "max_{}_drop",
    "guard": "{}_guard",
    "min_drop": "min_{}_effect",
}
"""What a figure of any metric is called here, and outside by the metric's key."""


def of(problem_type: str, dataset: "Dataset", activation: str) -> Metric:
    """Return what a checkpoint with this head is judged by on `dataset`."""
    if problem_type != REGRESSION:
        return F1_OF_SEVERAL if problem_type == MULTI_LABEL else F1_OF_ONE
    return Ranking(activation) if dataset.ranked else Correlation(activation)


def named(key: Any) -> Metric:  # noqa: ANN401
    """Return the metric whose figures' names begin with `key`; F1 where none is known, as in older runs."""
    return BY_KEY.get(key, F1_OF_ONE) if isinstance(key, str) else F1_OF_ONE


def of_records(*records: Record) -> Metric:
    """Return what the answers in `records`, all of the same documents, are judged by."""
    metric = named(records[0].get("metric"))
    texts = [record.get(name, "") for record in records for name in ("labels", "predicted")]
    several = metric == F1_OF_ONE and any("," in text or "-" in text for text in texts)
    return F1_OF_SEVERAL if several else metric


def own_names(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return `figures`, of which `metric` is the key, under the names that they have outside."""
    if "metric" not in figures:
        return dict(figures)
    key = figures["metric"]
    return {NAMES[name].format(key) if name in NAMES else name: it for name, it in figures.items() if name != "metric"}


def common_names(figures: Mapping[str, Any], key: str | None = None) -> dict[str, Any]:
    """Return `figures`, whose names are those of own_names, under the names that they have here, and `metric`.

    Whose they are is told by its score, or by `key` where that is not among them.
    """
    key = key or next((key for key in BY_KEY if key in figures), None)
    if key is None:
        return dict(figures)
    here = {own.format(key): name for name, own in NAMES.items()}
    return {"metric": key} | {here.get(name, name): it for name, it in figures.items()}
