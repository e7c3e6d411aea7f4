"""Fill the cache with several variants' files at once: a process on each core makes them."""

import contextlib
from collections.abc import Iterable
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from qbert.system import children, cores, machine
from qbert.system.errors import InputError
from qbert.variants.base import Variant
from qbert.variants.build import own_module, place, say_making

if TYPE_CHECKING:
    from pathlib import Path

    from qbert.inputs.checkpoint import Checkpoint
    from qbert.inputs.dataset import Dataset

LARGE_BYTES = 50_000_000  # from this size of a checkpoint on, processes gain more than the 5 s in which they start
PEAK = 16  # times the size of BERT-base's checkpoint is what NNCF needs at most; others less than half of that
WORKER = "qbert.variants.build_worker"


def make_missing(
    wanted: Iterable[Variant], checkpoint: "Checkpoint", dataset: "Dataset", max_length: int | None = None
) -> None:
    """Make what the cache lacks of the variants `wanted`, of a large `checkpoint`; the calibrated ones take longest.

    What fails is left out: build.prepare makes it then, or tells why it cannot be made.
    """
    if _size(checkpoint) < LARGE_BYTES:
        return
    missing: dict[Path, Variant] = {}
    for variant in wanted:
        if variant.export and not own_module(variant):
            folder = place(variant, variant.export, checkpoint, dataset, max_length)
            if not folder.exists():
                missing.setdefault(folder, variant)
    with contextlib.suppress(OSError):  # no process can be started
        if len(missing) > 1:
            _make(sorted(missing.values(), key=lambda variant: variant.calibrated), checkpoint, dataset, max_length)


def _make(waiting: list[Variant], checkpoint: "Checkpoint", dataset: "Dataset", max_length: int | None) -> None:
    """Make the variants `waiting`, the last of them first."""
    available = cores.here().workers
    processes = min(available, len(waiting), max(1, machine.available_bytes() // (PEAK * _size(checkpoint))))
    request = {
        "checkpoint": str(checkpoint.folder),
        "dataset": str(dataset.folder),
        "max_length": max_length,
        "threads": max(1, available // processes),
    }
    with contextlib.ExitStack() as stack:
        idle = [
            stack.enter_context(children.Child("a process that makes variants", "-m", WORKER)) for _ in range(processes)
        ]
        busy: dict[Any, children.Child] = {}
        while busy or (idle and waiting):
            while idle and waiting:
                variant, child = waiting.pop(), idle.pop()
                say_making(variant, checkpoint)
                child.send("prepare", variant=variant.name, **request)
                busy[child.pipe] = child
            for pipe in wait([*busy], timeout=children.LOADING_S) or [*busy]:
                child = busy.pop(pipe)
                try:
                    child.receive()
                except children.LostError:  # it has ended, or may still be at it
                    child.close()
                    continue
                except InputError:
                    pass
                idle.append(child)


def _size(checkpoint: "Checkpoint") -> int:
    return sum(path.stat().st_size for path in checkpoint.files)
