"""The latency of int8-native compared with OpenVINO's int8: calls in turn, in one process.

    python tools/trial_native.py

The model is BERT-base with random weights. It prints the median and quartiles of the ratios to the first variant.
"""

import argparse
import time

import numpy as np

from qbert import variants
from qbert.inputs import dataset
from qbert.measure.cells import Suite
from qbert.measure.latency import time_call
from qbert.system.machine import one_core


def durations(suite: Suite, names: list[str], length: int, seconds: float) -> dict[str, np.ndarray]:
    """Return the seconds of each variant's calls, in alternating order; the first of each turn warms up the caches."""
    cells = {name: suite.cell("bert-base", length, name) for name in names}
    encoding = next(iter(cells.values())).encoder.fill(suite.dataset, length)
    classifiers = {name: cell.classifier for name, cell in cells.items()}
    seconds_by_variant: dict[str, list[float]] = {name: [] for name in names}
    with one_core():
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            for name in (*names, *reversed(names)):
                classifiers[name](encoding)
                seconds_by_variant[name] += [time_call(classifiers[name], encoding) for _ in range(2)]
    return {name: np.array(calls) for name, calls in seconds_by_variant.items()}


def main() -> None:
    """Print a line for each length and variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="int8-openvino,int8-native")
    parser.add_argument("--max-lengths", default="128,256,384")
    parser.add_argument("--seconds", type=float, default=10, help="for each length")
    parser.add_argument("--dataset", default="news_mini")
    options = parser.parse_args()
    lengths, names = list(map(int, options.max_lengths.split(","))), options.variants.split(",")
    suite = Suite(dataset.load(options.dataset), ["bert-base"], max_lengths=lengths)
    for name in names:
        variants.get(name)
    for length in lengths:
        seconds_by_variant = durations(suite, names, length, options.seconds)
        for name, calls in seconds_by_variant.items():
            low, middle, high = np.quantile(calls / seconds_by_variant[names[0]], [0.25, 0.5, 0.75])
            print(f"{length} {name}: {np.median(calls) * 1e3:.1f} ms, {middle:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
