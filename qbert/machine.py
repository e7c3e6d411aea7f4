"""What this processor is, and what measures on it: the part of a figure's identity that no file holds."""

import importlib.metadata
import platform
from functools import cache
from pathlib import Path
from typing import Any

LIBRARIES = ("qbert", "torch", "transformers", "tokenizers", "numpy", "pytest-benchmark")

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
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def identity(*packages: str) -> dict[str, Any]:
    """Return what has to agree before two runs can be compared; of `packages`, the versions too."""
    return {"processor": processor(), "instruction_sets": list(instruction_sets()), "versions": versions(*packages)}
