"""A variant's load time, first call, call after a pause, and peak memory, measured in a separate process."""

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from qbert.system import children, worker
from qbert.system.errors import CannotRunError, InputError

if TYPE_CHECKING:
    from qbert.inputs.tokenizer import Encoding
    from qbert.variants import Variant


PAUSES = 3
PAUSE_S = 1.0  # a usual pause of a service, in which the core sleeps, or others change its clock and caches
WARM_CALLS = 5


@dataclass(frozen=True)
class Footprint:
    """The footprint of one variant in a process that does nothing else, on one thread."""

    load_s: float
    """Seconds to import the runtime and load the model."""
    first_call_s: float
    """Seconds of the first call, in which runtimes choose and prepare their kernels."""
    peak_rss_bytes: int
    """Peak resident memory."""
    evidence: Mapping[str, Any]
    """The classifier's `evidence`."""
    after_pause_s: float | None = None
    """Median seconds of a call after a pause of PAUSE_S; None without pauses."""


def measure(variant: "Variant", folder: Path, encoding: "Encoding", pauses: int = 0) -> Footprint:
    """Load `variant` from `folder` in a new process, call it with `encoding` once and after each of the `pauses`.

    Raises:
        CannotRunError: it could not be loaded or run.
    """
    loading = worker.loading(variant.load, folder, variant.options)
    arrays = {name: array.tolist() for name, array in encoding.items()}
    with children.Child("it", "-m", "qbert.measure.footprint") as child:
        try:
            return Footprint(**child.ask("take", loading=loading, arrays=arrays, pauses=pauses))
        except InputError as error:
            raise CannotRunError(f"variant {variant.name} fails in a process of its own: {error}") from error


def _take(loading: Mapping[str, Any], arrays: Mapping[str, Any], pauses: int) -> dict[str, Any]:
    """Return the fields of the Footprint of this process."""
    encoding = {name: np.array(array, dtype=np.int64) for name, array in arrays.items()}
    start = time.perf_counter()
    classifier = worker.load(**loading)
    loaded = time.perf_counter()
    logits = classifier(encoding)
    called = time.perf_counter()
    if not np.isfinite(logits).all():
        raise CannotRunError("it answers with nan or infinity")
    return {
        "load_s": loaded - start,
        "first_call_s": called - loaded,
        "peak_rss_bytes": _peak_rss_bytes(),
        "evidence": dict(classifier.evidence),
        "after_pause_s": _after_pauses(lambda: classifier(encoding), pauses),
    }


def _peak_rss_bytes() -> int:
    """Return this process's peak resident memory; on Linux ru_maxrss would include the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes


def _after_pauses(call: Callable[[], Any], pauses: int) -> float | None:
    """Return the median seconds of a `call` after each of the `pauses`; None without pauses."""
    for _ in range(WARM_CALLS if pauses else 0):
        call()
    seconds = []
    for _ in range(pauses):
        time.sleep(PAUSE_S)
        seconds.append(worker.time_call(call))
    return statistics.median(seconds) if seconds else None


if __name__ == "__main__":
    worker.answer_requests(SimpleNamespace(take=_take))
