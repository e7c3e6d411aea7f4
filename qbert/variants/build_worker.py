"""A process that fills the cache with variants' files when qbert.variants.build.make_missing asks."""

from pathlib import Path
from types import SimpleNamespace

from qbert import variants
from qbert.inputs import dataset as datasets
from qbert.inputs.checkpoint import Checkpoint
from qbert.system import worker


def _prepare(variant: str, checkpoint: str, dataset: str | None, max_length: int | None) -> None:
    documents = None if dataset is None else datasets.load(dataset)
    variants.prepare(variants.get(variant), Checkpoint.open(Path(checkpoint)), documents, max_length)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)  # there is such a process for each core
    worker.answer_requests(SimpleNamespace(prepare=_prepare))
