"""What a machine serves with every core busy: processes that classify texts, one on each core, and a queue before them.

Blocks alternate in which one worker classifies its texts alone, the others idle, and in which all are busy: both see
the same minutes.
"""

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert.measure import accuracy, audit, queueing, stats
from qbert.measure.capacity_crew import PATIENCE_S, Crew
from qbert.measure.capacity_worker import SETTLE_S, batches
from qbert.measure.stats import CONFIDENCE
from qbert.system import cores as machine_cores
from qbert.system.errors import InputError

if TYPE_CHECKING:
    from qbert.inputs.tokenizer import Encoder
    from qbert.measure.cells import Cell
    from qbert.system.cores import Cores

PAIRS = 8  # of blocks, alone and loaded; where a text takes long, the fewest with which the interval is finite
LATENCY_LIMIT_S = 0.05
# Between requests that come at random a core rests, and wakes up with cold caches and another clock. At half of the
# capacity a text took 1.18 times as long as one after the other, with fp32-openvino and int8-native of a MiniLM, and
# longer whether it had found its worker idle or not; near the capacity nearly as long (two cores of an Intel cloud
# guest). A simulation without it found a p99 of 10.7 ms where 15.5 were true.
RESTED_SHARE = 0.25  # of the time of a cell, in which requests come at random
WAKING_S = 0.1  # a longer text does not notice
MIN_ROUNDS = 299  # the fewest of which accuracy.percentiles gives p99


@dataclass(frozen=True)
class Load:
    """What the workers are to do."""

    rows: Sequence[tuple[str, ...]]
    """Texts, or pairs of them."""
    source: str
    """Where they come from, in words."""
    workers: tuple[int, ...] = ()
    """Numbers of workers to try; empty: one for each physical core that this process may use."""
    seconds: float = 1.5
    """About how long to measure each cell, beside loading."""
    latency_limit_s: float = LATENCY_LIMIT_S
    price_per_hour: float | None = None
    min_rounds: int = 0

    @property
    def sha256(self) -> str:
        """The hash of the texts."""
        return hashlib.sha256(json.dumps(self.rows).encode()).hexdigest()


@dataclass
class Measured:
    """What a number of workers has shown."""

    workers: int
    batch: int
    """Texts in a call."""
    seconds: list[list[float]]
    """Of each worker's calls under load, in order of time."""
    elapsed_s: list[float]
    """Of each worker's blocks under load, all calls together."""
    alone_s: list[float] = field(default_factory=list)
    """Of texts that one worker classified while the others were idle."""
    slowdown: float | None = None
    """How many times as long a text takes at half of the capacity if requests come at random; None: not measured."""
    log_ratios: list[float] = field(default_factory=list)
    """For each pair of blocks: the logarithm of loaded over alone, the median of the texts that both have."""

    @property
    def rounds(self) -> list[float]:
        """The seconds of all texts under load."""
        return list(itertools.chain(*self.seconds))

    @property
    def rates(self) -> list[float]:
        """The texts a second of each worker while all were busy."""
        return [self.batch * len(times) / spent for times, spent in zip(self.seconds, self.elapsed_s, strict=True)]

    def loaded(self) -> dict[str, Any]:
        """Return the throughput, the percentiles under load that the number of rounds allows, and the worst."""
        percentiles = {f"loaded_{name}": value for name, value in accuracy.percentiles(self.rounds).items()}
        rates = {"workers": self.workers, "texts_per_s": sum(self.rates)}
        return rates | percentiles | {"loaded_worst_s": max(self.rounds)}

    def queue(self, limit_s: float, price_per_hour: float | None = None) -> dict[str, Any]:
        """Return the curve of p99 against rate, the highest rate within `limit_s`, and what a million texts cost.

        The rates are of texts, as many as are in the calls that arrive.
        """
        rates = [float(load * queueing.capacity(self.seconds)) for load in queueing.LOADS]
        p99_s = queueing.p99(self.seconds, rates, slowdown=self.slowdown or 1.0).tolist()
        rate = self.batch * queueing.highest_rate(rates, p99_s, limit_s)
        rates = [self.batch * one for one in rates]
        figures = {"latency_limit_s": limit_s, "rates": rates, "rates_p99_s": p99_s, "rate_within_limit": rate}
        if price_per_hour is not None:
            figures["price_per_hour"] = price_per_hour
            if rate:
                figures["cost_per_million"] = queueing.cost_per_million(price_per_hour, rate)
        return figures

    def interference(self) -> dict[str, float]:
        """Return how a text's time under load compares with that alone; nothing where no worker was alone."""
        if not self.log_ratios:
            return {}
        interval = np.exp(stats.signed_rank_interval(self.log_ratios, CONFIDENCE)).tolist()
        names = "loaded_over_alone", "loaded_over_alone_low", "loaded_over_alone_high"
        return {"alone_p50_s": float(np.median(self.alone_s)), **dict(zip(names, interval, strict=True))}


def representative(rows: Sequence[tuple[str, ...]], count: int) -> list[int]:
    """Return the numbers of `count` of `rows` in random order, spread evenly over all rows by length.

    So a few texts have nearly the lengths of all, and more than there are have each about equally often.
    """
    by_length = sorted(range(len(rows)), key=lambda row: sum(map(len, rows[row])))
    chosen = [by_length[int((place + 0.5) * len(rows) / count)] for place in range(count)]
    return [int(row) for row in np.random.default_rng(0).permutation(chosen)]


def block_texts(rows: Sequence[tuple[str, ...]], shape: tuple[int, int, int]) -> npt.NDArray[np.int64]:
    """Return the numbers of representative texts, `(blocks, workers, texts)`.

    The workers of a block have texts of the same lengths, so that they finish at about the same time and their rates
    can be compared; but each in its own order.
    """
    blocks, workers, texts = shape
    by_length = sorted(representative(rows, math.prod(shape)), key=lambda row: sum(map(len, rows[row])))
    rng = np.random.default_rng(0)
    sets = rng.permuted(np.array(by_length).reshape(-1, workers), axis=1)
    return rng.permuted(rng.permutation(sets).reshape(blocks, texts, workers).swapaxes(1, 2), axis=2)


def measure(
    cell: "Cell", load: Load, *, cores: "Cores | None" = None, patience_s: float = PATIENCE_S
) -> tuple[list[float], dict[str, Any]]:
    """Measure what workers serve of `cell` under `load`.

    Return the seconds of each text under load, with the most workers, and the figures of a saved run.

    Raises:
        CannotRunError: the cell cannot be served.
        InputError: a worker is lost, or an answer under load is another one.
    """
    cores = cores or machine_cores.here()
    counts = [1] if "threads" in cell.variant.options else sorted(set(load.workers or [cores.workers]))
    with Crew(cell, load.rows, counts[-1], cores, patience_s) as crew:
        given: list[Answer] = []
        each = [_measure(crew, load, workers, given) for workers in counts]
        pss_bytes = crew.pss_bytes()
    full = each[-1]
    for fewer in each[:-1]:
        fewer.slowdown = full.slowdown  # a core rests alike, however many others there are
    figures: dict[str, Any] = {
        **full.loaded(),
        "worker_threads": crew.threads,
        **({"batch": crew.batch} if crew.batch > 1 else {}),
        "worker_shares": [rate / sum(full.rates) for rate in full.rates],
        **full.interference(),
        **full.queue(load.latency_limit_s, load.price_per_hour),
        "answers_compared": check_answers(cell, load.rows, given),
        "traffic": load.source,
        "traffic_sha256": load.sha256,
        "traffic_tokens": token_counts(cell.encoder, cell.max_length, tuple(load.rows)),
        "capacity_notes": cores.notes(full.workers, crew.threads),
        "evidence": crew.evidence,
    }
    figures |= {"pss_bytes": pss_bytes} if pss_bytes is not None else {}
    figures |= {"half_load_slowdown": full.slowdown} if full.slowdown is not None else {}
    if len(each) > 1:
        figures["scaling"] = [
            one.loaded() | {"rate_within_limit": one.queue(load.latency_limit_s)["rate_within_limit"]} for one in each
        ]
    return full.rounds, figures


def _measure(crew: Crew, load: Load, workers: int, given: "list[Answer]") -> Measured:
    """Let `workers` of `crew` be busy in pairs of blocks; in the other block of a pair one of them works alone."""
    blocks_s = max(0.0, (1 - RESTED_SHARE) * load.seconds - 2 * PAIRS * SETTLE_S)
    pairs = PAIRS if 2 * PAIRS * crew.cost_s <= blocks_s else stats.min_sample_size(CONFIDENCE)
    each = max(1, round(blocks_s / (2 * pairs * crew.cost_s)), -(-load.min_rounds // (pairs * workers)))
    texts = block_texts(load.rows, (pairs, workers, each))
    called = batches(load.rows, crew.batch)
    measured = Measured(workers, crew.batch, [[] for _ in range(workers)], [0.0] * workers)
    all_work = workers == crew.workers
    alone_too = workers > 1 and all_work
    rate = queueing.HALF * crew.workers / crew.cost_s
    rests = all_work and crew.cost_s < WAKING_S
    rested = representative(load.rows, max(10, round(RESTED_SHARE * load.seconds / 2 * rate))) if rests else []
    rested_s: list[float] = []
    crew.see_lengths({worker: [*texts[:, worker].ravel().tolist(), *rested] for worker in range(workers)})
    for pair, of_workers in enumerate(texts.tolist()):
        if rests and pair % (pairs // 2) == 1:
            rested_s += crew.serve(rate, rested, seed=pair)[:, 1].tolist()
        # Each worker in turn, and each begins as often alone as loaded.
        one, loaded_first = pair % workers, (pair + pair // workers) % 2
        blocks = [dict(enumerate(of_workers))]
        if alone_too:
            blocks.insert(loaded_first, {one: of_workers[one]})
        found = [crew.block(block) for block in blocks]
        for block, answered in zip(blocks, found, strict=True):
            for worker, answer in answered.items():
                alone = len(block) < workers
                for number, rows in zip(block[worker], answer["logits"], strict=True):
                    given += [(text, worker, alone, row) for text, row in zip(called[number], rows, strict=True)]
        loaded = max(found, key=len)
        for worker, answer in loaded.items():
            measured.seconds[worker] += answer["seconds"]
            measured.elapsed_s[worker] += answer["elapsed_s"]
        if alone_too:
            alone_s = min(found, key=len)[one]["seconds"]
            measured.alone_s += alone_s
            measured.log_ratios.append(float(np.median(np.log(loaded[one]["seconds"]) - np.log(alone_s))))
    measured.slowdown = slowdown(rested_s, measured.rounds) if rested_s else None
    return measured


def slowdown(rested_s: Sequence[float], busy_s: Sequence[float]) -> float:
    """Return how many times as long texts of the same lengths take among rests: without the tenths at both ends.

    So a moment in which the machine does something else does not count as a rest's cost.
    """
    from scipy.stats import trim_mean

    return float(trim_mean(rested_s, 0.1) / trim_mean(busy_s, 0.1))


Answer = tuple[int, int, bool, list[float]]
"""A text's number, the worker, whether that worked alone, and the logits."""


def check_answers(cell: "Cell", rows: Sequence[tuple[str, ...]], given: Sequence[Answer]) -> int:
    """Compare the answers with those of the accuracy pass; return how many were compared.

    An untrained model has no pass: answers under load are compared with those to the same texts that a worker gave
    alone; where none was alone, those to the first CHECKED texts, with what this process answers.

    Raises:
        InputError: an answer is another one.
    """
    trained = cell.model.trained
    expected = {} if trained else {text: np.array(row) for text, _, alone, row in given if alone}
    compared, by = [answer for answer in given if not answer[2]], "alone"
    if not expected:
        texts = list(dict.fromkeys(text for text, *_ in given))[: None if trained else CHECKED]
        judged = cell.reference([rows[text] for text in texts])
        expected = {text: judged[rows[text]] for text in texts}
        compared, by = list(given), "and the accuracy pass" if trained else "and this process"
    compared = [answer for answer in compared if answer[0] in expected]
    logits = np.array([row for *_, row in compared], dtype=np.float32)
    right = np.array([expected[text] for text, *_ in compared], dtype=np.float32)
    for number in audit.differing(right, logits)[:1]:
        text, worker, alone, _ = compared[number]
        raise InputError(
            f"{cell.name}: worker {worker + 1} answers text {text} with {audit.format_logits(logits[number])} "
            f"{'alone' if alone else 'while all are busy'}, {by} with {audit.format_logits(right[number])}: what was "
            "served is not what was judged"
        )
    return len(compared)


CHECKED = 4  # texts of a model that nobody judges


@functools.lru_cache(maxsize=8)
def token_counts(encoder: "Encoder", max_length: int, rows: tuple[tuple[str, ...], ...]) -> dict[str, int]:
    """Return how many tokens the texts of `rows` have as they are served: the 5th, 50th and 95th percentile."""
    sample = [rows[number] for number in representative(rows, min(TOKENIZED, len(rows)))]
    counts = [encoder(*text, max_length=max_length)["input_ids"].shape[1] for text in sample]
    return {f"p{percent}": int(np.percentile(counts, percent, method="nearest")) for percent in (5, 50, 95)}


TOKENIZED = 100  # texts tell the lengths of a file of a million
