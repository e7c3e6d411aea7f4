"""What other ways to quantize would bring int8-native: rungs between int8 and float, simulated in PyTorch.

    python tools/trial_rungs.py CHECKPOINT:DATASET[:DOCUMENTS.csv] [CHECKPOINT:DATASET[:DOCUMENTS.csv] ...]

Numbers are rounded where int8-native rounds them, and computed in fp32. The first line is int8-native itself, which the
simulation `plain` has to resemble. Documents are those of the test split or of the file, and calibration texts those of
the training split. `error` is the mean squared change of the logits from fp32's, without what moves all of a document's
alike, and `of plain` is its ratio to the simulation's `plain`, with the 95 % interval over documents.
"""

import argparse
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from qbert.inputs import dataset as datasets
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.labels import predicted
from qbert.inputs.tokenizer import Encoding
from qbert.measure import accuracy
from qbert.selection.rescue.judging import squared_errors
from qbert.variants import CALIBRATION_DOCUMENTS, families, native
from qbert.variants.native import rounding
from qbert.variants.native.encoder import PRODUCTS, WEIGHTS, Encoder

BATCH = 32
INT8, INT4 = 127, 7  # the greatest step
GROUPS = (128, 64, 32)
RESAMPLES = 2_000
SHRINKS = np.linspace(0.5, 1, 26)  # of an int4 step, below the one that reaches the greatest weight

Tensor = torch.Tensor
Array = npt.NDArray[Any]
Weights = Mapping[str, Array]


@dataclass(frozen=True)
class Rung:
    """What is quantized, and how."""

    weights: Weights
    """Those that differ from the checkpoint's."""
    activations: bool = True
    first_token: bool = True
    """Whether the first token has 16 bits."""


class Simulation:
    """A BERT that rounds where int8-native does; padded batches, since padding changes no token's scale."""

    def __init__(self, checkpoint: Checkpoint, bits: int) -> None:
        """Load `checkpoint`, to quantize activations to `bits`; until `prepare` is called it computes in fp32."""
        self.checkpoint, self.bits = checkpoint, bits
        self.model = checkpoint.load()
        body = families.of(checkpoint, "int8-native").body
        layers = f"{self.model.base_model_prefix}.{body['layers']}"
        self.modules = {
            f"layers.{number}.{name}": f"{layers}.{number}.{body[name]}"
            for number in range(self.model.config.num_hidden_layers)
            for name in PRODUCTS
        }
        """What the checkpoint calls each product."""
        self.products = {name: self.model.get_submodule(module) for name, module in self.modules.items()}
        self.weights = {name: module.weight.detach().numpy().copy() for name, module in self.products.items()}
        self.rung = Rung({})

    def prepare(self) -> None:
        """Round as int8-native does from now on."""
        AttentionInterface.register("like_native", attention)
        AttentionMaskInterface.register("like_native", sdpa_mask)
        self.model.set_attn_implementation("like_native")
        words = self.model.base_model.embeddings.word_embeddings.weight
        words.data = words.data.bfloat16().float()
        for name, module in self.products.items():
            module.register_forward_pre_hook(partial(self._before, name))
            attended = name.endswith(("query", "key", "value"))
            to = torch.bfloat16 if attended else torch.float32 if name.endswith("up") else torch.float16
            module.register_forward_hook(lambda _, __, output, to=to: output.to(to).float())

    def logits(self, encodings: Sequence[Encoding]) -> npt.NDArray[np.float32]:
        """Return the logits, `(texts, num_labels)`."""
        order = sorted(range(len(encodings)), key=lambda number: encodings[number]["input_ids"].shape[1])
        result = np.empty((len(encodings), self.model.config.num_labels), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                numbers = order[start : start + BATCH]
                batch = {
                    name: torch.nn.utils.rnn.pad_sequence(
                        [torch.from_numpy(encodings[number][name][0]) for number in numbers], batch_first=True
                    )
                    for name in encodings[0]
                }
                result[numbers] = self.model(**batch).logits.numpy()
        return result

    def run(self, rung: Rung, encodings: Sequence[Encoding]) -> npt.NDArray[np.float32]:
        """Return the logits with `rung`."""
        self.rung = rung
        for name, module in self.products.items():
            module.weight.data = torch.from_numpy(rung.weights.get(name, self.weights[name]))
        return self.logits(encodings)

    def _before(self, name: str, _: object, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (rows,) = inputs
        if name.endswith(("output", "down")):
            rows = rows.half().float()
        if self.rung.activations:
            rounded = steps(rows, self.bits)
            if self.rung.first_token:
                rounded[:, 0] += steps(rows[:, 0] - rounded[:, 0], self.bits)
            rows = rounded
        return (rows,)


def attention(
    _: object, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **__: object
) -> tuple[Tensor, None]:
    """Return softmax(Q K^T) V with powers in bf16, which are divided by the sum of the unrounded ones."""
    scores = query @ key.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e38)
    powers = (scores - scores.amax(-1, keepdim=True)).exp()
    context = powers.bfloat16().float() @ value / powers.sum(-1, keepdim=True)
    return context.transpose(1, 2).contiguous(), None


def steps(rows: Tensor, bits: int) -> Tensor:
    """Return `rows`, each rounded to the numbers of that many bits from its least to its greatest."""
    low, high = rows.aminmax(dim=-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    return low + step * ((rows - low) / step.clamp_min(1e-30)).round()


def step_sizes(weight: Array, greatest: int = INT8, group: int | None = None) -> Array:
    """Return the size of each weight's step: one for each output, or for each `group` of its inputs.

    Steps of int8 reach the greatest weight. So few as int4 has lose less where they do not: those of least squares.
    """
    grouped = weight.reshape(len(weight), -1, group or weight.shape[1])
    widest = np.maximum(np.abs(grouped).max(-1, keepdims=True), np.float32(1e-12)) / np.float32(greatest)
    if greatest == INT8:
        best = widest
    else:
        sizes = [np.float32(shrink) * widest for shrink in SHRINKS]
        errors = [((size * whole(grouped, size, greatest) - grouped) ** 2).sum(-1, keepdims=True) for size in sizes]
        best = np.choose(np.argmin(errors, axis=0), sizes)
    return np.broadcast_to(best, grouped.shape).reshape(weight.shape)


def whole(weight: Array, size: Array, greatest: int) -> Array:
    """Return `weight` rounded to the nearest of the steps of that `size`."""
    return np.clip(np.rint(weight / size), -greatest, greatest)


def rungs(
    simulation: Simulation, calibrations: Sequence[Sequence[Encoding]], *, int4: bool
) -> Iterable[tuple[str, Rung]]:
    """Yield each rung by its name, or `int4` alone; what is calibrated, once for each of the sets of texts."""

    def every(squares: Weights | None = None, greatest: int = INT8, group: int | None = None) -> Weights:
        found = {}
        for name, weight in simulation.weights.items():
            size = step_sizes(weight, greatest, group)
            if squares is None:
                found[name] = size * whole(weight, size, greatest)
            else:
                found[name] = size * rounding.least_squares(weight, size, squares[name], greatest)
        return found

    int8 = every()
    yield "plain", Rung(int8)
    known = [rounding.squares_of(simulation.checkpoint, simulation.modules, texts) for texts in calibrations]
    if int4:
        for group in (None, *GROUPS):
            name = f"int4 by {group}" if group else "int4"
            yield name, Rung(every(greatest=INT4, group=group))
            for seed, squares in enumerate(known):
                yield f"{name}, least squares, seed {seed}", Rung(every(squares, INT4, group))
        return
    yield "weights alone", Rung(int8, activations=False)
    yield "activations alone", Rung({})
    yield "neither", Rung({}, activations=False)
    yield "first token in 8 bits", Rung(int8, first_token=False)
    for group in GROUPS:
        yield f"groups of {group}", Rung(every(group=group))
    for seed, squares in enumerate(known):
        yield f"least squares, seed {seed}", Rung(every(squares))


def ratio_interval(errors: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the ratio of the means, by bootstrap over documents."""
    drawn = np.random.default_rng(0).integers(len(errors), size=(RESAMPLES, len(errors)))
    low, high = np.quantile(errors[drawn].mean(axis=1) / others[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def trial(source: str, options: argparse.Namespace) -> None:
    """Print a line for each rung of one checkpoint."""
    folder, dataset_name, *files = source.split(":")
    dataset = datasets.load(dataset_name)
    checkpoint = Checkpoint.open(Path(folder))
    rows = dataset.read_like_train(Path(files[0])) if files else dataset.test
    rows = rows.sample(min(options.documents, len(rows)), random_state=0)

    def encoded(documents: Any) -> list[Encoding]:
        return [checkpoint.encoder(*text, max_length=checkpoint.max_length) for text in datasets.text_rows(documents)]

    encodings = encoded(rows)
    simulation = Simulation(checkpoint, options.bits)
    reference = simulation.logits(encodings)
    simulation.prepare()
    labels = dataset.indicators(rows)
    before = predicted(reference, checkpoint.problem_type)
    print(f"{folder}, {len(rows)} documents of {Path(files[0]).name if files else dataset.name}")
    print(f"{'':36}{'error':>9} {'of plain':>16}  {'|error|':>8}{'flips':>6}{'drop':>8}")
    base: npt.NDArray[np.float64] | None = None

    def line(name: str, logits: npt.NDArray[np.float32]) -> None:
        errors = squared_errors(logits, reference)
        found = accuracy.compare(labels, before, predicted(logits, checkpoint.problem_type))
        ratio = ""
        if base is not None:
            low, high = ratio_interval(errors, base)
            ratio = f"{errors.mean() / base.mean():.2f} {low:.2f}-{high:.2f}"
        absolute = np.abs(logits - reference).mean()
        print(
            f"{name:36}{errors.mean():9.2g} {ratio:>16}  {absolute:8.4f}{found.flips:6}{found.f1_drop:8.4f}", flush=True
        )

    with tempfile.TemporaryDirectory() as place:
        native.export(checkpoint, Path(place))
        encoder = Encoder(Path(place) / WEIGHTS, {7: "avx2", 8: ""}[options.bits])
        line("int8-native", np.concatenate([encoder(encoding) for encoding in encodings]))
    calibrations = [
        encoded(dataset.train.sample(options.calibration, random_state=seed)) for seed in range(options.seeds)
    ]
    for name, rung in rungs(simulation, calibrations, int4=options.int4):
        logits = simulation.run(rung, encodings)
        line(name, logits)
        if base is None:
            base = squared_errors(logits, reference)


def main() -> None:
    """Print the rungs of each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="CHECKPOINT:DATASET[:DOCUMENTS.csv]")
    parser.add_argument("--documents", type=int, default=1000, help="at most this many")
    parser.add_argument("--calibration", type=int, default=CALIBRATION_DOCUMENTS, help="training texts")
    parser.add_argument("--seeds", type=int, default=3, help="sets of calibration texts")
    parser.add_argument("--bits", type=int, choices=(7, 8), default=8, help="of activations; those of AVX2 are 7")
    parser.add_argument("--int4", action="store_true", help="weights of 4 bits instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for source in options.sources:
        trial(source, options)


if __name__ == "__main__":
    main()
