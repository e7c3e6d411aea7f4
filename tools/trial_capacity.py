"""Whether the simulated queue tells the truth: real workers answer requests that arrive at random on this machine.

    python tools/trial_capacity.py --model model --dataset reviews --max-length 128 --variants fp32,int8-native

The requests' times are drawn beforehand, and the latency of each counts from when it was due: a slow answer does not
hold the next requests back (no coordinated omission). What the simulation knows, texts one after the other in
all workers and texts that find their worker idle, alternates with the requests, so that both see the same minutes.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qbert import capacity, cores, dataset, queueing
from qbert.crew import Crew
from qbert.suite import Cell, Suite
from qbert.terminal import echo

LOADS = (0.5, 0.7, 0.9)
STRETCHES = 8
KNOWING = 0.25  # the share of the time for what the simulation knows


@dataclass(frozen=True)
class Found:
    """What was simulated and what was found at one rate, in seconds."""

    load: float
    """The rate as a share of the capacity."""
    rate: float
    simulated_s: float
    simulated_error_s: float
    driven_s: float
    driven_error_s: float
    """The standard error, from how far the stretches lie apart."""
    requests: int

    @property
    def off(self) -> float:
        """How far the driven p99 is above the simulated one, as a share."""
        return self.driven_s / self.simulated_s - 1


def drive(cell: Cell, rows: Sequence[tuple[str, ...]], workers: int, seconds: float) -> list[Found]:
    """Simulate and drive `workers` of `cell`, which classify `rows`, for about `seconds` at each of LOADS."""
    rng = np.random.default_rng(1)
    found = []
    with Crew(cell, rows, workers, cores.here()) as crew:
        each = max(2, round(KNOWING * seconds / STRETCHES / crew.cost_s))
        services: list[list[float]] = [[] for _ in range(workers)]
        after_idle_s: list[float] = []

        def know(rate: float) -> None:
            texts = np.array(rng.permutation(capacity.representative(rows, workers * each)))
            for worker, answer in crew.block(dict(enumerate(texts.reshape(workers, each).tolist()))).items():
                services[worker] += answer["seconds"]
            texts = rng.integers(len(rows), size=each).tolist()
            served = crew.serve(capacity.IDLE_LOAD * rate, texts, seed=int(rng.integers(1 << 31)))
            after_idle_s.extend(served[served[:, 1] == 1, 0].tolist())

        know(workers / crew.cost_s)
        for load in LOADS:
            services, after_idle_s = [times[-each:] for times in services], []  # nothing of the minutes before
            most = queueing.capacity(services)
            rate = load * most
            stretches = []
            for _ in range(STRETCHES):
                requests = max(10, round(rate * (1 - KNOWING) * seconds / STRETCHES))
                texts = rng.integers(len(rows), size=requests).tolist()
                stretches.append(crew.serve(rate, texts, seed=int(rng.integers(1 << 31)))[:, 0])
                know(most)
            each_p99 = [np.percentile(stretch, 99) for stretch in stretches]
            stay = queueing.simulate(services, [rate], after_idle_s=after_idle_s, queues=400)
            found.append(
                Found(
                    load=load,
                    rate=rate,
                    simulated_s=float(stay.p99_s[0]),
                    simulated_error_s=float(stay.error_s[0]),
                    driven_s=float(np.percentile(np.concatenate(stretches), 99)),
                    driven_error_s=float(np.std(each_p99, ddof=1) / np.sqrt(STRETCHES)),
                    requests=sum(map(len, stretches)),
                )
            )
    return found


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
    echo("variant              load   rate  simulated p99 ms  driven p99 ms    off  requests")
    for variant in options.variants.split(","):
        cell = suite.cell(model, options.max_length, variant)
        for one in drive(cell, dataset.text_rows(suite.dataset.test), options.workers, options.seconds):
            simulated, driven = (
                f"{p99_s * 1e3:8.2f} ± {error_s * 1e3:5.2f}"
                for p99_s, error_s in (
                    (one.simulated_s, one.simulated_error_s),
                    (one.driven_s, one.driven_error_s),
                )
            )
            echo(f"{variant:20} {one.load:4.0%} {one.rate:6.1f}  {simulated} {driven} {one.off:+6.1%} {one.requests:9}")


if __name__ == "__main__":
    main()
