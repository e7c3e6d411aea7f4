"""What this processor is, and what measures on it: the part of a figure's identity that no file holds."""

import contextlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qbert.errors import DISTRIBUTION

LIBRARIES = (DISTRIBUTION, "torch", "transformers", "tokenizers", "numpy", "pytest-benchmark")

INSTRUCTION_SETS = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx_vnni": "avx_vnni",
    "avx512_vnni": "avx512_vnni",
    "avx512vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "asimd",
    "asimddp": "asimddp",
    "i8mm": "i8mm",
    "bf16": "bf16",
}
"""The flags that decide which kernels run, by the names that Linux and py-cpuinfo give them."""


@cache
def instruction_sets() -> tuple[str, ...]:
    """Return those of INSTRUCTION_SETS that this processor has, sorted."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():  # 0.1 s quicker than the library below
        lines = cpuinfo.read_text().splitlines()
        flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    else:
        import cpuinfo as py_cpuinfo

        flags = py_cpuinfo.get_cpu_info().get("flags", [])
    return tuple(sorted({INSTRUCTION_SETS[flag] for flag in flags if flag in INSTRUCTION_SETS}))


def has(*names: str) -> bool:
    """Whether this processor has any of these instruction sets."""
    return not set(names).isdisjoint(instruction_sets())


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 numbers: AVX512-BF16, AMX or ARM's bf16."""
    return has("avx512_bf16", "amx_bf16", "bf16")


def saturates() -> bool:
    """Whether this processor adds two products of a signed and an unsigned byte in 16 bits, which can overflow.

    Then weights have to keep to 7 bits (ONNX Runtime's documentation, "Quantize ONNX models", and NNCF's of
    OverflowFix). With VNNI, AMX or ARM's dot products it adds in 32 bits.
    """
    return not has("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")


def is_x86() -> bool:
    """Whether this is a 64-bit Intel or AMD processor."""
    return platform.machine().lower() in {"x86_64", "amd64"}


@cache
def processor() -> str:
    """Return the processor's name."""
    import cpuinfo

    return str(cpuinfo.get_cpu_info().get("brand_raw") or platform.processor() or platform.machine())


def versions(*packages: str) -> dict[str, str]:
    """Return the version of each library that a figure depends on, and of `packages`, where they are installed."""
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, *packages):
        try:
            found["qbert" if name == DISTRIBUTION else name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def identity(*packages: str) -> dict[str, Any]:
    """Return what has to agree before two runs can be compared; of `packages`, the versions too."""
    return {
        "processor": processor(),
        "instruction_sets": list(instruction_sets()),
        "hardware": hardware(),
        "versions": versions(*packages),
    }


NUMBERS = {
    "cpu family": "family",
    "model": "model",
    "stepping": "stepping",
    "CPU architecture": "family",
    "CPU part": "model",
    "CPU revision": "stepping",
}
"""What tells processors of one name apart, by Linux's names for it on x86 and on ARM."""


@cache
def hardware() -> dict[str, int | str]:
    """Return what tells this processor from others of its name: family, model, stepping, cores and caches.

    `logical cores` counts hyper-threads too. What the system does not tell is left out.
    """
    found: dict[str, int | str] = {}
    processors = [
        {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in part.splitlines())}
        for part in _read("/proc/cpuinfo").split("\n\n")
    ]
    for key, name in NUMBERS.items():
        with contextlib.suppress(ValueError):
            found.setdefault(name, int(processors[0].get(key, ""), base=0))
    if not found:
        import cpuinfo

        found = of_cpuinfo(cpuinfo.get_cpu_info())
    if cores := {(one["physical id"], one["core id"]) for one in processors if {"physical id", "core id"} <= set(one)}:
        found["physical cores"] = len(cores)
    if logical := os.cpu_count():
        found["logical cores"] = logical
    return found | caches()


def of_cpuinfo(info: Mapping[str, Any]) -> dict[str, int | str]:
    """Return what py-cpuinfo's `info`, which pytest-benchmark saves too, tells of `hardware`."""
    names = {"family": "family", "model": "model", "stepping": "stepping", "count": "logical cores"}
    return {name: info[key] for key, name in names.items() if isinstance(info.get(key), int)}


def boot() -> str:
    """Return what names the time since this kernel started; empty where the system does not tell.

    It is part of what tells a sitting, in which the machine's state is one: history.sittings.
    """
    return _read("/proc/sys/kernel/random/boot_id")


def caches() -> dict[str, str]:
    """Return the size of each cache of the first core, by level and kind; empty where the system does not tell."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        found[f"L{level} {kind.lower()}"] = size
    return found


def disturbances() -> list[str]:
    """Return what disturbs timing here, each in a sentence; empty where nothing was found."""
    found = []
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor and governor != "performance":
        found.append(f"the clock's governor is {governor}: 'performance' keeps the clock from following the load")
    if _read("/sys/devices/system/cpu/smt/active") == "1":
        found.append("hyper-threads are on: two of them share a core, so leave the sibling of the timed one idle")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > BUSY_LOAD:
        found.append(f"{load:.1f} processes are running or waiting, on average of a minute: stop what else runs")
    if (stolen := stolen_share()) > STOLEN:
        found.append(f"{stolen:.1%} of the time went to other virtual machines of this host: expect a wider spread")
    if (_read("/sys/fs/cgroup/cpu.max") or "max").split()[0] != "max":
        found.append("this container has a limit of processor time, which stops it in the middle of a call")
    return found


BUSY_LOAD = 0.5  # more than now and then a process, while nothing is being timed
STOLEN = 0.001


def stolen_share(seconds: float = 0.5) -> float:
    """Return the share of the processors' time that the host gave to others, over `seconds`."""

    def ticks() -> tuple[int, int]:
        kinds = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
        counts = dict(zip(kinds, map(int, (_read("/proc/stat") or "cpu").splitlines()[0].split()[1:]), strict=False))
        return sum(counts.values()), counts.get("steal", 0)

    total, stolen = ticks()
    time.sleep(seconds)
    later, stolen_later = ticks()
    return (stolen_later - stolen) / max(1, later - total)


def _read(path: str) -> str:
    """Return what the kernel says in `path`; empty where it says nothing."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread on the last core that it may use, where the system lets it choose."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})  # the first core is where most interrupts go
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
