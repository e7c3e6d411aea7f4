"""How often the gate is right on this machine: many gates of identical sides, with a copy of one cell slowed by 5 %.

    python tools/trial_gate.py --gates 20 --output trial.jsonl

Each gate runs like `qbert gate`, with the slowed copy as an additional cell, in each gate of another cell. A gate takes
minutes; gates that are already in the output are not run again, so an interrupted trial can be continued.
"""

import argparse
import json
import sys
from pathlib import Path

from qbert.gate import run as gate_run
from qbert.gate import sides
from qbert.system.terminal import say

SLOWDOWN = 0.05


def run(number: int, options: argparse.Namespace) -> dict[str, object]:
    """Run gate `number` of the trial."""
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
    """Run the missing gates of the trial, and count the verdicts."""
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
    gates = [json.loads(line) for line in options.output.read_text().splitlines()]
    for slowdown in (0.0, SLOWDOWN):
        cells = [cell for gate in gates for cell in gate["cells"] if cell["slowdown"] == slowdown]
        counts = {
            verdict: sum(cell["verdict"] == verdict for cell in cells)
            for verdict in ("slower", "faster", "same", "inconclusive", "not comparable")
        }
        summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        print(f"{slowdown:.0%} put in: {summary} of {len(cells)}")
    seconds = sorted(gate["measure_s"] for gate in gates)
    print(f"{len(gates)} gates, {seconds[len(seconds) // 2]:.0f} s each (median), {seconds[-1]:.0f} s at most")


if __name__ == "__main__":
    main()
