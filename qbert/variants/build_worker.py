"""A process that fills the cache with variants' files when build_processes.make_missing asks."""

from pathlib import Path
from types import SimpleNamespace

import torch

from qbert import variants
from qbert.inputs import dataset as datasets
from qbert.inputs.checkpoint import Checkpoint
from qbert.system import worker


def _prepare(variant: str, checkpoint: str, dataset: str, max_length: int | None, threads: int) -> None:
    torch.set_num_threads(threads)
    variants.prepare(variants.get(variant), Checkpoint.open(Path(checkpoint)), datasets.load(dataset), max_length)


if __name__ == "__main__":
    worker.answer_requests(SimpleNamespace(prepare=_prepare))
