"""What each variant takes beside time: bytes on disk, seconds to load, seconds of the first call, peak memory.

A round is a process of its own, from its start to its end, that loads one variant and calls it once with an
encoding of the greatest maximum length: import of the runtime included, tokenizing not.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from qbert import InputError, footprint, latency
from qbert.terminal import shown

if TYPE_CHECKING:
    from qbert.suite import Cell


@pytest.mark.own_process
def test_footprint(cell: "Cell", benchmark: Any) -> None:
    """One process, on one core."""
    benchmark.group = cell.group("footprint")
    encoding = cell.encoder.fill(cell.suite.dataset, cell.max_length)
    try:
        with latency.one_core():
            found = benchmark.pedantic(footprint.measure, args=(cell.variant, cell.folder, encoding), rounds=1)
    except InputError as error:
        raise pytest.fail.Exception(shown(str(error)), pytrace=False) from None
    figures = dataclasses.asdict(found)
    described = cell.describe(figures.pop("evidence"))
    benchmark.extra_info.update(described, **figures, disk_bytes=cell.disk_bytes, measured="footprint")
