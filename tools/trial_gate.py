"""How often the gate is right on this machine: many gates of identical sides, and 5 % put into a copy of one cell.

    python tests/trial_gate.py --gates 20 --output trial.jsonl

Each gate runs as `qbert gate` would, and beside its cells the copy; in the next gate it is of another cell. Each takes
minutes; what is in the output already is not run again, so an interrupted trial goes on where it was.
"""

import argparse
import json
import sys
from pathlib import Path

from qbert.gate import run as gate_run
from qbert.gate import sides
from qbert.terminal import say

SLOWDOWN = 0.05


def run(number: int, options: argparse.Namespace) -> dict[str, object]:
    """Run one gate."""
    models = tuple(options.models.split(","))
    lengths = tuple(map(int, options.max_lengths.split(",")))
    variants = options.variants.split(",")
    names = [(model, length, variant) for model in models for length in lengths for variant in variants]
    chosen = names[number % len(names)]
    slowdowns = [(SLOWDOWN, gate_run.Budget.min_effect)]
    base, head = (
        sides.Side(name, sys.executable, sides.tree_here(), models, options.dataset) for name in ("base", "head")
    )
    subject = sides.Subject(lengths, options.variants, documents=20)
    return gate_run.run(
        base,
        head,
        subject,
        gate_run.Budget(max_seconds=options.max_seconds),
        slowdowns=lambda cell: slowdowns * (chosen == (cell.model, cell.max_length, cell.variant)),
        against_itself=True,
    )


def main() -> None:
    """Run what is missing of the trial, and count the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gates", type=int, default=20)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--models", default="bert-tiny,bert-base")
    parser.add_argument("--max-lengths", default="128,256,384")
    parser.add_argument("--variants", default="fp32,int8-dynamic")
    parser.add_argument("--dataset", default="news_mini")
    parser.add_argument("--max-seconds", type=float, default=gate_run.Budget.max_seconds)
    options = parser.parse_args()
    done = options.output.read_text().splitlines() if options.output.exists() else []
    for number in range(len(done), options.gates):
        say(f"gate {number + 1} of {options.gates}")
        with options.output.open("a") as output:
            output.write(json.dumps(run(number, options)) + "\n")
    found = [json.loads(line) for line in options.output.read_text().splitlines()]
    for slowdown in (0.0, SLOWDOWN):
        cells = [cell for one in found for cell in one["cells"] if cell["slowdown"] == slowdown]
        counts = {
            verdict: sum(cell["verdict"] == verdict for cell in cells)
            for verdict in ("slower", "faster", "same", "inconclusive", "not comparable")
        }
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        print(f"{slowdown:.0%} put in: {told} of {len(cells)}")
    seconds = sorted(one["measure_s"] for one in found)
    print(f"{len(found)} gates, {seconds[len(seconds) // 2]:.0f} s each (median), {seconds[-1]:.0f} s at most")


if __name__ == "__main__":
    main()
