"""Where worker processes run: physical cores before hyper-threads, and the processor time that a container may take."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qbert.system.terminal import counted

ROOT = Path("/")


@dataclass(frozen=True)
class Cores:
    """The processors that this process may use."""

    order: tuple[int, ...]
    """Their numbers: one of each physical core first, then the hyper-threads beside them."""
    physical: int
    """How many physical cores they belong to."""
    quota: float = math.inf
    """How many processors' time the container may take."""
    pinnable: bool = True
    """Whether the system lets a process choose its processors."""

    @property
    def workers(self) -> int:
        """How many workers to start where nobody says: one for each physical core, no more than the quota feeds."""
        return min(self.physical, max(1, math.ceil(self.quota)) if math.isfinite(self.quota) else self.physical)

    def of_worker(self, number: int, threads: int = 1) -> list[int]:
        """Return the processors of the worker `number`, one for each of its threads; they repeat if there are too few.

        The list is empty where the system does not let a process choose.
        """
        if not self.pinnable:
            return []
        return sorted({self.order[(number * threads + thread) % len(self.order)] for thread in range(threads)})

    def notes(self, workers: int, threads: int = 1) -> list[str]:
        """Return what is unusual about this number of workers and threads here, each a sentence."""
        wanted = workers * threads
        what = counted(workers, "worker") + (f" of {threads} threads" if threads > 1 else "")
        sentences = []
        if wanted > len(self.order):
            sentences.append(f"{what} on {counted(len(self.order), 'processor')}: they share them.")
        elif wanted > self.physical:
            sentences.append(f"{what} on {counted(self.physical, 'core')}: some are on hyper-threads of one core.")
        if wanted > self.quota:
            sentences.append(f"{what}, but this container may take {self.quota:g} processors' time (cgroup quota).")
        if not self.pinnable:
            sentences.append(
                "This system pins no process to a core: workers may move, and hyper-threads are not told apart."
            )
        return sentences


def here(root: Path = ROOT) -> Cores:
    """Return the processors that this process may use; `root` holds the kernel's files."""
    pinnable = hasattr(os, "sched_getaffinity")
    allowed = sorted(os.sched_getaffinity(0)) if pinnable else list(range(os.cpu_count() or 1))
    order, physical = in_order(allowed, root)
    return Cores(order, physical, quota(root), pinnable)


def in_order(allowed: Sequence[int], root: Path = ROOT) -> tuple[tuple[int, ...], int]:
    """Return the processors `allowed` with one of each physical core first, and the number of physical cores."""
    first: dict[str, int] = {}
    for processor in allowed:
        topology = root / f"sys/devices/system/cpu/cpu{processor}/topology"
        # Without the file each processor counts as a core.
        siblings = _read(topology / "thread_siblings_list") or str(processor)
        first.setdefault(siblings, processor)
    leading = list(first.values())
    return (*leading, *(processor for processor in allowed if processor not in leading)), len(leading)


def quota(root: Path = ROOT) -> float:
    """Return how many processors' time this process's control groups allow; infinite without a limit.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst: `cpu.max` is "QUOTA PERIOD" in microseconds, and the limits
    of all groups above apply too; version 1 has them in two files.
    """
    least = math.inf
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("" if number == "0" else controllers)
        group = Path(path.lstrip("/"))
        for folder in (mount / place for place in (group, *group.parents)):
            if number == "0":
                given = _read(folder / "cpu.max").split()
            else:
                given = [_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
            if len(given) == 2 and all(text.isdigit() for text in given):  # noqa: PLR2004  "max" and -1: no limit
                least = min(least, int(given[0]) / int(given[1]))
    return least


def _read(path: Path) -> str:
    """Return the content of a kernel file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
