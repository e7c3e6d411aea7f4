"""The footprint of each variant: disk, load time, first call, call after a pause, peak memory.

A round is a separate process, from start to end, that loads one variant and calls it with an encoding of the greatest
maximum length. It includes importing the runtime but no tokenizing. Peak memory is that of loading and the first call;
three more calls follow, each after a pause of a second.
"""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

from qbert.measure import footprint
from qbert.system import machine

if TYPE_CHECKING:
    from qbert.measure.cells import Cell


@pytest.mark.own_process
@pytest.mark.greatest_length
def test_footprint(cell: "Cell", benchmark: Any, qbert_attempt: Callable[[], AbstractContextManager[None]]) -> None:
    """One process, on one core."""
    benchmark.group = cell.group("footprint")
    encoding = cell.encoder.fill(cell.suite.dataset, cell.max_length)
    with qbert_attempt(), machine.one_core():
        measured = benchmark.pedantic(
            footprint.measure, args=(cell.variant, cell.folder, encoding, footprint.PAUSES), rounds=1
        )
    figures = dataclasses.asdict(measured)
    described = cell.describe(figures.pop("evidence"))
    benchmark.extra_info.update(described, **figures, disk_bytes=cell.disk_bytes, measured="footprint")
