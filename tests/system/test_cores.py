"""Where workers run: physical cores before hyper-threads, and what a container may take."""

import math
import os
from pathlib import Path

import pytest

from qbert.system import cores
from qbert.system.cores import Cores


def topology(root: Path, *siblings: str) -> Path:
    for number, text in enumerate(siblings):
        folder = root / f"sys/devices/system/cpu/cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{text}\n")
    return root


def groups(root: Path, membership: str, **limits: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, text in limits.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_max", ".max").replace("cpu_cfs", "cpu.cfs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_one_of_each_core_comes_before_the_hyper_threads_beside_them(tmp_path: Path) -> None:
    assert cores.in_order([2, 3], tmp_path) == ((2, 3), 2), "without a topology each processor is a core"
    topology(tmp_path, "0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7")
    assert cores.in_order(range(8), tmp_path) == ((0, 1, 2, 3, 4, 5, 6, 7), 4)
    assert cores.in_order([1, 4, 5], tmp_path) == ((1, 4, 5), 2)


@pytest.mark.parametrize(
    ("membership", "limits", "quota"),
    [
        ("", {}, math.inf),
        ("0::/\n", {}, math.inf),
        ("0::/\n", {"cpu_max": "max 100000\n"}, math.inf),
        ("0::/\n", {"cpu_max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a__cpu_max": "200000 100000", "a__b__cpu_max": "300000 100000"}, 2.0),
        ("4:cpu,cpuacct:/a\n0::/\n", {"cpu,cpuacct__a__cpu_cfs_quota_us": "50000",
                                      "cpu,cpuacct__a__cpu_cfs_period_us": "100000"}, 0.5),
        ("4:cpu:/\n", {"cpu__cpu_cfs_quota_us": "-1", "cpu__cpu_cfs_period_us": "100000"}, math.inf),
    ],
)  # fmt: skip
def test_the_least_quota_of_a_container_s_groups_holds(
    tmp_path: Path, membership: str, limits: dict[str, str], quota: float
) -> None:
    assert cores.quota(groups(tmp_path, membership, **limits)) == quota


@pytest.mark.parametrize(
    ("known", "workers"),
    [
        (Cores((0,), 1), 1),
        (Cores((0, 1, 2, 3), 2), 2),
        (Cores((0, 1), 2, 1.5), 2),
        (Cores(tuple(range(64)), 64, 2.0), 2),
    ],
)
def test_there_is_a_worker_for_each_core_that_can_be_fed(known: Cores, workers: int) -> None:
    assert known.workers == workers


def test_workers_have_cores_of_their_own_while_there_are_some() -> None:
    known = Cores((0, 1, 4, 5), 2)
    assert [known.of_worker(number) for number in range(5)] == [[0], [1], [4], [5], [0]]
    assert known.of_worker(0, threads=2) == [0, 1]
    assert Cores((3,), 1).of_worker(0, threads=2) == [3]
    assert Cores((0, 1), 2, pinnable=False).of_worker(0) == []


@pytest.mark.parametrize(
    ("known", "workers", "told"),
    [
        (Cores((0, 1), 2), 2, []),
        (Cores((0,), 1), 4, ["4 workers on 1 processor: they share them."]),
        (Cores((0, 1, 2, 3), 2), 3, ["3 workers on 2 cores: some are on hyper-threads of one core."]),
        (Cores((0, 1), 2, 1.5), 2, ["2 workers, but this container may take 1.5 processors' time (cgroup quota)."]),
    ],
)
def test_what_is_unusual_is_said(known: Cores, workers: int, told: list[str]) -> None:
    assert known.notes(workers) == told


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs an affinity")
def test_here_only_allowed_processors_are_used() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(allowed)})
        assert cores.here().order == (max(allowed),)
        assert cores.here().workers == 1
    finally:
        os.sched_setaffinity(0, allowed)
