"""A variant's load time, first call, call after a pause, and peak memory, measured in a separate process."""

import importlib
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qbert.system import children
from qbert.system.errors import CannotRunError

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
    from qbert.variants import accepted_options

    with tempfile.TemporaryDirectory() as temporary:
        arrays = Path(temporary) / "encoding.npz"
        named: dict[str, Any] = dict(encoding)
        np.savez(arrays, **named)
        load = variant.load
        done = children.run(
            *("-m", "qbert.measure.footprint"),
            *(load.__module__, load.__qualname__, json.dumps(accepted_options(load, variant.options))),
            *(str(folder.resolve()), str(arrays), str(pauses)),
            capture_output=True,
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CannotRunError(f"variant {variant.name} fails in a process of its own: {lines[-1]}")
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


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
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) if seconds else None


def main(module: str, name: str, options: str, folder: str, arrays: str, pauses: str) -> None:
    """Print the footprint of `module.name(folder, **options)`, called with the encoding in the file `arrays`."""
    with np.load(arrays) as file:
        encoding = dict(file)
    start = time.perf_counter()
    load = getattr(importlib.import_module(module), name)
    classifier = load(Path(folder), **json.loads(options))
    loaded = time.perf_counter()
    logits = classifier(encoding)
    called = time.perf_counter()
    if not np.isfinite(logits).all():
        sys.exit("it answers with nan or infinity")
    figures = {
        "load_s": loaded - start,
        "first_call_s": called - loaded,
        "peak_rss_bytes": _peak_rss_bytes(),
        "evidence": dict(classifier.evidence),
        "after_pause_s": _after_pauses(lambda: classifier(encoding), int(pauses)),
    }
    sys.stdout.write(f"\n{json.dumps(figures)}\n")


if __name__ == "__main__":
    children.end_with_parent()
    main(*sys.argv[1:])
