"""Whether the simulated queue tells the truth: real workers answer requests that arrive at random on this machine.

    python tools/trial_capacity.py --model model --dataset reviews --max-length 128 --variants fp32,int8-native

The requests' times are drawn beforehand, and the latency of each counts from when it was due: a slow answer does not
hold the next requests back (no coordinated omission). Before and after each stretch of requests all workers classify
texts one after the other, and some as they come: that is what the simulation of this stretch knows, so that both see
the same minutes. It begins with an empty queue and has as many requests as the stretch. Near the capacity a machine
that becomes 3 % slower meanwhile waits a third longer; the last column has only those stretches that kept their pace.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qbert.inputs import dataset
from qbert.measure import capacity, queueing, stats
from qbert.measure.capacity_crew import Crew
from qbert.measure.cells import Cell, Suite
from qbert.system import cores
from qbert.system.terminal import echo

LOADS = (0.5, 0.7, 0.9)
STRETCHES = 30
QUEUES = 200
KNOWING = 0.4  # the share of the time for what the simulation knows
STEADY = 0.03  # in a stretch whose texts took, on average, at most this much longer or shorter than was known


@dataclass(frozen=True)
class Found:
    """What was simulated and what was found at one share of the capacity; medians of the stretches."""

    load: float
    """The rate as a share of the capacity."""
    rate: float
    simulated_s: float
    driven_s: float
    off: float
    """How far the driven p99 is above the simulated one of the same stretch, as a share."""
    off_low: float
    off_high: float
    """The ends of its 95 % interval."""
    off_steady: float
    """`off` of those stretches in which the machine kept its pace."""
    steady: int
    """How many of STRETCHES these were."""


class Known:
    """What the simulation knows of some minutes."""

    def __init__(self, crew: Crew, rows: Sequence[tuple[str, ...]], texts: int, seed: int) -> None:
        """Let each worker classify that many texts, then some that come at random."""
        rng = np.random.default_rng(seed)
        numbers = rng.permutation(capacity.representative(rows, crew.workers * texts)).reshape(crew.workers, texts)
        answers = crew.block(dict(enumerate(numbers.tolist())))
        self.services_s = [answer["seconds"] for answer in answers.values()]
        self.capacity = queueing.capacity(self.services_s)
        count = max(20, texts)
        rested = capacity.representative(rows, count)
        self.rested_s = crew.serve(queueing.HALF * self.capacity, rested, seed)[:, 1].tolist()


def drive(cell: Cell, rows: Sequence[tuple[str, ...]], workers: int, seconds: float) -> Iterator[Found]:
    """Simulate and drive `workers` of `cell`, which classify `rows`, for about `seconds` at each of LOADS."""
    rng = np.random.default_rng(1)
    with Crew(cell, rows, workers, cores.here()) as crew:
        texts = max(2, round(KNOWING * seconds / STRETCHES / 2 / crew.cost_s))
        crew.see_lengths(dict.fromkeys(range(workers), range(len(rows))))
        before = Known(crew, rows, texts, seed=0)
        for load in LOADS:
            driven, simulated, paces, rates = [], [], [], []
            for stretch in range(STRETCHES):
                rate = load * before.capacity
                count = max(100, round(rate * (1 - KNOWING) * seconds / STRETCHES))
                served = crew.serve(rate, rng.integers(len(rows), size=count).tolist(), seed=1000 + stretch)
                after = Known(crew, rows, texts, seed=1 + stretch)
                services_s = [[*one, *other] for one, other in zip(before.services_s, after.services_s, strict=True)]
                slowdown = capacity.slowdown(before.rested_s + after.rested_s, np.concatenate(services_s).tolist())
                longer = queueing.slowdown_at([rate], queueing.capacity(services_s), slowdown)[0]
                paces.append(served[:, 1].mean() / np.mean(np.concatenate(services_s)) / longer)
                stay = queueing.stays(services_s, [rate], slowdown, QUEUES, count)
                driven.append(float(np.percentile(served[:, 0], 99)))
                simulated.append(float(np.median(np.percentile(stay[:, 0], 99, axis=0))))
                rates.append(rate)
                before = after
            logs = np.log(driven) - np.log(simulated)
            off, low, high = stats.signed_rank_interval(logs, stats.CONFIDENCE)
            steady = logs[np.abs(np.array(paces) - 1) < STEADY]
            yield Found(
                load,
                float(np.mean(rates)),
                float(np.median(simulated)),
                float(np.median(driven)),
                *(float(np.expm1(end)) for end in (off, low, high, np.median(steady) if len(steady) else np.nan)),
                len(steady),
            )


def main() -> None:
    """Print a line for each variant and load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert-tiny")
    parser.add_argument("--dataset", default="news_mini")
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--variants", default="fp32-onnxruntime,int8-onnxruntime,int8-openvino")
    parser.add_argument("--workers", type=int, default=cores.here().workers)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each variant and load")
    options = parser.parse_args()
    suite = Suite(dataset.load(options.dataset), [options.model], max_lengths=[options.max_length])
    (model,) = suite.models
    echo("variant          load   rate  p99 ms, driven off, 95 %                at its pace")
    for variant in options.variants.split(","):
        cell = suite.cell(model, options.max_length, variant)
        for one in drive(cell, dataset.text_rows(suite.dataset.test), options.workers, options.seconds):
            off = f"{one.off:+6.1%} {one.off_low:+6.1%} to {one.off_high:+6.1%}"
            p99_ms = f"{one.simulated_s * 1e3:7.2f} {one.driven_s * 1e3:7.2f}"
            steady = f"{one.off_steady:+6.1%} of {one.steady}"
            echo(f"{variant:16} {one.load:4.0%} {one.rate:6.1f} {p99_ms} {off} {steady}")


if __name__ == "__main__":
    main()
