"""How long a cluster takes over many documents: costs measured here, then many workers by simulation.

Measured: the time of a document, what a shard costs beside its documents, how many shards a second the scheduler hands
out; and, to check the simulation, one and two workers with shards of several sizes. Simulated: workers of unequal
speed, some of them slow, and workers that die and come back.

    python tools/trial_cluster.py --model MODEL --dataset thucnews_titles --variant int8-native

`--figures COST OVERHEAD HANDING` simulates with figures measured before, in seconds.
"""

import argparse
import heapq
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from qbert import variants
from qbert.cluster import workers as cluster
from qbert.cluster.judging import Job, Logits, Text, Workers
from qbert.inputs import dataset, models
from qbert.inputs.dataset import text_rows
from qbert.measure.cells import Suite

SPREAD = 0.05  # of the logarithm of a worker's speed: machines of one type in a cloud
SLOW, SLOWER = 0.02, 3.0  # that share of the workers is that much slower: a neighbour, a hot processor
MEAN_LIFE_S, AWAY_S = 24 * 3600.0, 120.0  # of a worker: spot instances live longer, and come back sooner or never
PRICE = 0.04  # of a core, an hour
SIZES = (100, 1_000, 10_000)


@dataclass(frozen=True)
class Figures:
    """What was measured, in seconds."""

    document: float
    shard: float
    """What a shard costs a worker beside its documents."""
    handing: float
    """What it costs the scheduler, which hands out one at a time."""


def simulate(
    figures: Figures, documents: int, workers: int, size: int, *, troubles: bool = True, seed: int = 0
) -> tuple[float, int]:
    """Return the seconds until the last shard is done, and how many shards were done again.

    Each worker takes a shard when it is idle. A worker's life is exponential; with it dies the shard that it is at.
    """
    random = np.random.default_rng(seed)
    pace = np.exp(random.normal(0, SPREAD, workers)) if troubles else np.ones(workers)
    if troubles:
        pace[random.random(workers) < SLOW] *= SLOWER
    death = random.exponential(MEAN_LIFE_S, workers) if troubles else np.full(workers, np.inf)
    left, again, free, end = -(-documents // size), 0, 0.0, 0.0
    idle = [(0.0, worker) for worker in range(workers)]
    lost: list[float] = []  # when the shards of the dead became known, which are to be done again
    while left or lost:
        now, worker = heapq.heappop(idle)
        if not left:
            now = max(now, heapq.heappop(lost))
        else:
            left -= 1
        start = free = max(now, free) + figures.handing
        done = start + figures.shard + size * figures.document * float(pace[worker])
        if done > death[worker]:
            gone = max(float(death[worker]), start)
            heapq.heappush(lost, gone)
            again += 1
            death[worker] = gone + AWAY_S + random.exponential(MEAN_LIFE_S)
            heapq.heappush(idle, (gone + AWAY_S, worker))
        else:
            end = max(end, done)
            heapq.heappush(idle, (done, worker))
    return end, again


def measured(team: Workers, job: Job, texts: Sequence[Text], size: int | None) -> tuple[float, Logits]:
    """Return the seconds of judging `texts` in shards of `size`, the least of three, and the logits."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        logits, _, _ = team.judge(job, texts, size=size)
        times.append(time.perf_counter() - start)
    return min(times), logits


def with_a_death(team: Workers, job: Job, texts: Sequence[Text]) -> tuple[float, Logits]:
    """Return the same of one pass during which a worker is killed, with its next one starting meanwhile."""
    killed: list[int] = []

    def kill(_: int) -> None:
        if not killed:
            killed.append(next(iter(team.client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    start = time.perf_counter()
    logits, _, _ = team.judge(job, texts, kill)
    return time.perf_counter() - start, logits


def nothing(number: int) -> int:
    """Return `number`: a shard without documents."""
    return number


def handing_s(team: Workers, count: int = 2_000) -> float:
    """Return the seconds of a shard without documents, of many at once."""
    start = time.perf_counter()
    team.client.gather([team.client.submit(nothing, number, pure=False) for number in range(count)])
    return (time.perf_counter() - start) / count


def measure(arguments: argparse.Namespace) -> Figures:
    """Measure one worker, and check the simulation against one and two."""
    loaded = dataset.load(arguments.dataset)
    max_length = arguments.max_length or models.max_length_of(arguments.model)
    suite = Suite(loaded, [arguments.model], max_lengths=[max_length])
    (model,) = suite.models.values()
    checkpoint = suite.checkpoint(model, max_length)
    texts = text_rows(loaded.documents(arguments.documents))
    sizes = [max(1, len(texts) // part) for part in (100, 16, 4)]
    found: dict[int, dict[int, float]] = {1: {}, 2: {}}
    handing, died_s = 0.0, 0.0
    answers: list[Logits] = []
    for workers, times in found.items():
        with cluster.connect(f"local:{workers}") as client:
            team = Workers(client)
            job = team.job(variants.get(arguments.variant), checkpoint, loaded, max_length, texts[:10])
            team.judge(job, texts[: 8 * workers], size=1)  # so that every worker has loaded it
            for size in sizes:
                times[size], logits = measured(team, job, texts, size)
                answers.append(logits)
            handing = max(handing, handing_s(team))
            if workers > 1:
                died_s, logits = with_a_death(team, job, texts)
                answers.append(logits)
    shards = np.array([-(-len(texts) // size) for size in sizes], dtype=float)
    (overhead, whole), *_ = np.linalg.lstsq(np.stack([shards, np.ones(3)], 1), np.array([*found[1].values()]))
    figures = Figures(float(whole) / len(texts), max(0.0, float(overhead)), handing)
    table = Table("workers", "documents a shard", "measured s", "simulated s", "times one worker", box=None)
    for workers, times in found.items():
        for size, seconds in times.items():
            expected, _ = simulate(figures, len(texts), workers, size, troubles=False)
            row = (workers, size, f"{seconds:.2f}", f"{expected:.2f}", f"{found[1][size] / seconds:.2f}")
            table.add_row(*map(str, row))
    console = Console()
    console.print(f"{arguments.variant}, {len(texts)} documents of {loaded.name}:")
    console.print(table)
    same = all((logits == answers[0]).all() for logits in answers)
    console.print(f"With one of two workers killed {died_s:.2f} s. All logits are {'' if same else 'not '}the same.")
    return figures


def show(figures: Figures) -> None:
    """Print time and cost of a million and a billion documents: the median of three simulations."""
    console = Console()
    console.print(
        f"\nA document {figures.document * 1e3:.3g} ms, a shard {figures.shard * 1e3:.3g} ms more, handing one out "
        f"{figures.handing * 1e3:.3g} ms\n"
    )
    table = Table("documents", "workers", "a shard", "hours", "ideal", "done again", "cost", box=None)
    for documents, counts in ((10**6, (1, 10, 100)), (10**9, (100, 1_000, 10_000))):
        for workers in counts:
            for size in SIZES:
                if documents // size > 2 * 10**6 or documents // size < workers:
                    continue
                seconds, again = sorted(simulate(figures, documents, workers, size, seed=seed) for seed in range(3))[1]
                ideal = documents * figures.document / workers
                table.add_row(
                    f"{documents:.0e}".replace("e+0", "e"),
                    f"{workers:,}",
                    f"{size:,}",
                    f"{seconds / 3600:.2f}",
                    f"{ideal / seconds:.0%}",
                    str(again),
                    f"{workers * seconds / 3600 * PRICE:.2f}",
                )
    console.print(table)
    busy = figures.handing / figures.document
    console.print(
        f"\nThe scheduler keeps n workers busy with shards of at least {busy:.2g} n documents: "
        f"{busy * 1_000:.0f} for a thousand."
    )


def main() -> None:
    """Measure, unless figures are given, and simulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert-tiny")
    parser.add_argument("--dataset", default="news_mini")
    parser.add_argument("--variant", default="int8-dynamic")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--documents", type=int)
    parser.add_argument("--figures", type=float, nargs=3, metavar=("COST", "OVERHEAD", "HANDING"))
    arguments = parser.parse_args()
    show(Figures(*arguments.figures) if arguments.figures else measure(arguments))


if __name__ == "__main__":
    main()
