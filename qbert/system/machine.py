"""The processor and the installed libraries: the part of a measurement's identity that is in no file."""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qbert.system.errors import DISTRIBUTION

LIBRARIES = (DISTRIBUTION, "torch", "transformers", "tokenizers", "numpy", "pytest-benchmark")

_X86 = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
INSTRUCTION_SETS = {name: name for name in (*_X86, "asimd", "asimddp", "i8mm", "bf16")} | {
    "avx512vnni": "avx512_vnni",
    "hw.optional.arm.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}
"""The flags that decide which kernels run, by their names in Linux, py-cpuinfo and Apple's `sysctl`."""


@cache
def instruction_sets() -> tuple[str, ...]:
    """Return this processor's INSTRUCTION_SETS, sorted."""
    cpuinfo = Path("/proc/cpuinfo")
    if sys.platform == "linux" and platform.machine() == "aarch64":
        return tuple(sorted(arm_sets(*map(_auxiliary, (16, 26)))))  # cpuinfo is the host's where ARM is emulated
    if cpuinfo.is_file():  # 0.1 s faster than py-cpuinfo
        lines = cpuinfo.read_text().splitlines()
        flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    elif sys.platform == "darwin":
        lines = _output("sysctl", "hw.optional", "machdep.cpu.features", "machdep.cpu.leaf7_features")
        flags = [*apple_flags(lines), *intel_mac_flags(lines)]
    else:
        import cpuinfo as py_cpuinfo

        flags = py_cpuinfo.get_cpu_info().get("flags", [])
    return tuple(sorted({INSTRUCTION_SETS[flag] for flag in flags if flag in INSTRUCTION_SETS}))


def arm_sets(capabilities: int, more: int) -> list[str]:
    """Return the INSTRUCTION_SETS by Linux's AT_HWCAP and AT_HWCAP2.

    Source: Linux, Documentation/arch/arm64/elf_hwcaps.rst and uapi/asm/hwcap.h.
    """
    bits = {"asimd": capabilities >> 1, "asimddp": capabilities >> 20, "i8mm": more >> 13, "bf16": more >> 14}
    return [name for name, bit in bits.items() if bit & 1]


def _auxiliary(kind: int) -> int:
    """Return that entry of what the system has told this process at its start."""
    import ctypes

    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, (ctypes.c_ulong,)
    return int(getauxval(kind))


def apple_flags(lines: str) -> list[str]:
    """Return the names of what `lines`, the output of `sysctl hw.optional`, say that an Apple processor has.

    The names are those of Apple's page "Determining instruction set characteristics".
    """
    return [name for name, _, value in (line.partition(": ") for line in lines.splitlines()) if value == "1"]


def intel_mac_flags(lines: str) -> list[str]:
    """Return what `lines`, the output of `sysctl machdep.cpu`, say that the Intel processor of a Mac has."""
    values = [value for name, _, value in (line.partition(": ") for line in lines.splitlines()) if "features" in name]
    return " ".join(values).lower().split()


def available_bytes() -> int:
    """Return how much memory programs can still take; a great number where the system does not tell."""
    lines = _read("/proc/meminfo").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 1 << 62)


HIDING = ("QBERT_ISA", "QBERT_CXXFLAGS", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Environment variables by which a runtime takes other kernels than the fastest: answers then differ a little."""


def hidden() -> dict[str, str]:
    """Return those of HIDING that are set."""
    return {name: os.environ[name] for name in HIDING if os.environ.get(name)}


def has(*names: str) -> bool:
    """Whether this processor has any of these instruction sets."""
    return not set(names).isdisjoint(instruction_sets())


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 numbers: AVX512-BF16, AMX or ARM's bf16."""
    return has("avx512_bf16", "amx_bf16", "bf16")


def saturates() -> bool:
    """Whether this processor adds two products of a signed and an unsigned byte in 16 bits, which can overflow.

    Then weights must fit in 7 bits (ONNX Runtime's documentation, "Quantize ONNX models"; NNCF's documentation of
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
    """Return the versions of Python and of all LIBRARIES and `packages` that are installed."""
    from importlib import metadata  # 20 ms

    installed = {"python": platform.python_version()}
    for name in (*LIBRARIES, *packages):
        try:
            installed["qbert" if name == DISTRIBUTION else name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def identity(*packages: str) -> dict[str, Any]:
    """Return what must agree for two runs to be comparable, including the versions of `packages`."""
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
"""The properties that distinguish processors of one name, by Linux's keys on x86 and ARM."""


@cache
def hardware() -> dict[str, int | str]:
    """Return what distinguishes this processor from others of its name: family, model, stepping, cores and caches.

    `logical cores` includes hyper-threads. Values that the system does not give are left out.
    """
    known: dict[str, int | str] = {}
    processors = [
        {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in part.splitlines())}
        for part in _read("/proc/cpuinfo").split("\n\n")
    ]
    for key, name in NUMBERS.items():
        with contextlib.suppress(ValueError):
            known.setdefault(name, int(processors[0].get(key, ""), base=0))
    if not known:
        import cpuinfo

        known = of_cpuinfo(cpuinfo.get_cpu_info())
    ids = ("physical id", "core id")
    if cores := {tuple(entry[key] for key in ids) for entry in processors if set(ids) <= set(entry)}:
        known["physical cores"] = len(cores)
    if logical := os.cpu_count():
        known["logical cores"] = logical
    if kind := instance_type():
        known["instance type"] = kind
    return known | caches()


METADATA = (
    ("ds", "meta_data", "instance-type"),  # Amazon EC2, OpenStack
    ("ds", "meta_data", "instance_type"),
    ("ds", "meta_data", "imds", "compute", "vmSize"),  # Azure
    ("ds", "meta_data", "machine-type"),  # Google Compute Engine
)
"""Where cloud-init keeps the instance type, by cloud. Source: cloud-init's documentation, "Instance metadata"."""


def instance_type(root: Path = Path("/")) -> str:
    """Return the instance type by which a cloud sells this machine, from files below `root`; empty where none tells.

    Nothing is asked over the network: EC2 writes it into the firmware's tables, other clouds' is in cloud-init's file.
    """
    firmware = root / "sys/devices/virtual/dmi/id"
    if _read(firmware / "sys_vendor") == "Amazon EC2":
        return _read(firmware / "product_name")
    try:
        metadata = json.loads(_read(root / "run/cloud-init/instance-data.json"))
    except ValueError:
        return ""
    for keys in METADATA:
        value = metadata
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str) and value and not value.startswith("redacted"):
            return value.rpartition("/")[2]  # Google's begins with the project's name
    return ""


def of_cpuinfo(info: Mapping[str, Any]) -> dict[str, int | str]:
    """Return the part of `hardware` that py-cpuinfo's `info` has, which pytest-benchmark saves."""
    names = {"family": "family", "model": "model", "stepping": "stepping", "count": "logical cores"}
    return {name: info[key] for key, name in names.items() if isinstance(info.get(key), int)}


def boot() -> str:
    """Return the id of the kernel's current boot; empty if the system gives none.

    It helps to identify a session: results.history.sessions.
    """
    return _read("/proc/sys/kernel/random/boot_id")


def caches() -> dict[str, str]:
    """Return the size of each cache of the first core, by level and kind; empty if the system gives none."""
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        if level and kind and size:  # ARM guests may have no sizes
            sizes[f"L{level} {kind.lower()}"] = size
    return sizes


def disturbances() -> list[str]:
    """Return a sentence for each thing that disturbs timing on this machine."""
    sentences = []
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor and governor != "performance":
        sentences.append(f"the clock's governor is {governor}: 'performance' keeps the clock from following the load")
    if _read("/sys/devices/system/cpu/smt/active") == "1":
        sentences.append("hyper-threads are on: two of them share a core, so leave the sibling of the timed one idle")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > BUSY_LOAD:
        sentences.append(f"{load:.1f} processes are running or waiting, on average of a minute: stop what else runs")
    if (stolen := stolen_share()) > STOLEN:
        sentences.append(f"{stolen:.1%} of the time went to other virtual machines of this host: expect a wider spread")
    if (_read("/sys/fs/cgroup/cpu.max") or "max").split()[0] != "max":
        sentences.append("this container has a limit of processor time, which stops it in the middle of a call")
    return sentences


BUSY_LOAD = 0.5  # more than an occasional process, while nothing is timed
STOLEN = 0.001


def stolen_share(seconds: float = 0.5) -> float:
    """Return the share of processor time that the host gave to other virtual machines, over `seconds`."""

    def ticks() -> tuple[int, int]:
        kinds = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
        counts = dict(zip(kinds, map(int, (_read("/proc/stat") or "cpu").splitlines()[0].split()[1:]), strict=False))
        return sum(counts.values()), counts.get("steal", 0)

    total, stolen = ticks()
    time.sleep(seconds)
    later, stolen_later = ticks()
    return (stolen_later - stolen) / max(1, later - total)


def _read(path: str | Path) -> str:
    """Return the content of a kernel file; empty if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _output(*command: str) -> str:
    """Return what a command of the system prints; empty if it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603  no user's words
    except OSError:
        return ""


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread on the last core that it may use, if the system supports it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})  # the first core handles most interrupts
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
