"""Hold `qbert choose` against judging every variant by every document: what it picks, and the seconds of both.

    python tools/trial_choose.py --model model --dataset reviews --validation unseen.csv --guards 0.005,0.01

Prints what each variant loses on the validation documents and on the test split, then what is chosen with each guard.
"""

import argparse
import tempfile
import time
from pathlib import Path

from qbert import variants
from qbert.inputs import dataset as datasets
from qbert.inputs.dataset import text_rows
from qbert.measure.cells import baseline_of
from qbert.selection import choosing, kept_answers
from qbert.selection.kept_answers import KeptAnswers
from qbert.system.errors import CannotRunError

VARIANTS = "default,int8-dynamic-per-channel"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--guards", default="0.005,0.01", help="empty: only judge everything")
    parser.add_argument("--variants", default=VARIANTS)
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as place:
        for guard in filter(None, given.guards.split(",")):
            folder = Path(place) / guard
            kept_answers.cache_dir = lambda folder=folder: folder  # answers of its own: nothing is known at first
            wanted = choosing.Wanted(float(guard))
            found = choosing.choose(
                given.model, given.dataset, given.variants, folder / "served", wanted, validation=given.validation
            )
            seconds = ", ".join(f"{what} {taken:.1f} s" for what, taken in found.seconds.items())
            every_s = found.documents * sum(row.latency_s or 0.0 for row in found.rows)
            print(f"\nguard {guard}: {seconds}; {found.classified} answers\n{found.sentence}", flush=True)
            print(f"  at these latencies, every document with every variant takes {every_s:.0f} s")
            for row in found.rows:
                drop = "" if row.f1_drop is None else f"{row.f1_drop:+.4f}"
                chance = "" if row.chance is None else f"{row.chance:.0%}"
                latency = "" if row.latency_s is None else f"{row.latency_s * 1e3:.2f} ms"
                print(f"  {row.variant:26} {latency:>9} {row.documents:6} {drop:>8} {row.verdict} {chance}")
        kept_answers.cache_dir = lambda: Path(place) / "all"
        judge_all(given)


def judge_all(given: argparse.Namespace) -> None:
    """Print the figures of every variant on all documents, and how long that took."""
    loaded = datasets.load(given.dataset)
    fp32 = baseline_of(given.model, loaded)
    splits = {"validation": loaded.read_like_train(given.validation), "test": loaded.test}
    baseline: dict[str, object] = {}
    taken = dict.fromkeys(splits, 0.0)
    print(f"\n{'all documents':26} {'F1':>7}  " + "  ".join(f"{split:>32}" for split in splits))
    for variant in sorted(variants.select(given.variants), key=lambda row: row.name != variants.BASELINE):
        cell = fp32.suite.cell(fp32.model.name, fp32.max_length, variant.name)
        line = []
        try:
            _ = cell.classifier
        except CannotRunError as error:
            print(f"{variant.name:26} {error}")
            continue
        for split, documents in splits.items():
            start = time.monotonic()
            logits = KeptAnswers(cell).logits(text_rows(documents))
            taken[split] += time.monotonic() - start
            found = cell.compare(documents, baseline.setdefault(split, logits), logits)
            interval = f"{found.f1_drop_low:+.4f} to {found.f1_drop_high:+.4f}"
            line.append(f"{found.f1_drop:+.4f} ({interval}) {found.flips:4}")
        print(f"{variant.name:26} {found.f1:7.4f}  " + "  ".join(f"{text:>32}" for text in line), flush=True)
    counts = ", ".join(f"{split}: {len(rows)} documents in {taken[split]:.1f} s" for split, rows in splits.items())
    print(f"F1 of the test split; F1 drop (95 %) and flips. {counts}")


if __name__ == "__main__":
    main()
