"""What the C++ sources are compiled for: kernels and flags. tools/wheels.py loads this file alone."""

import sys
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).parent
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
"""Of a library of this platform."""
LIBRARIES = SOURCES / "libraries"
"""What a wheel brings: the library of each kernel of its platform (tools/wheels.py). A clone has none."""
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-fvisibility=hidden", "-shared")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
"""On every x86 processor: those of AVX2 all have FMA and F16C."""
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
DOTPROD = "-march=armv8.2-a+dotprod"
WIDE = "-DQBERT_WIDE"
"""Floats instead of halves between two products (rows.h)."""


class Kernel(NamedTuple):
    """An instruction set that the sources are compiled for."""

    name: str
    header: str
    """Its file in `kernels/`."""
    struct: str
    """In that file: the products that are used."""
    flags: tuple[str, ...]
    needs: frozenset[str]
    """Those of `machine.INSTRUCTION_SETS` that the processor must have."""


KERNELS = (
    Kernel(
        "amx",
        "amx.h",
        "Amx",
        (*AVX512, "-mavx512bf16", "-mavx512vbmi", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
        frozenset({"amx_int8", "amx_bf16", "avx512_vnni", "avx512_bf16"}),
    ),
    Kernel(
        "avx512_bf16",
        "avx512_vnni.h",
        "Avx512VnniBf16",
        (*AVX512, "-mavx512bf16"),
        frozenset({"avx512_vnni", "avx512_bf16"}),
    ),
    Kernel("avx512_vnni", "avx512_vnni.h", "Avx512Vnni", AVX512, frozenset({"avx512_vnni"})),
    Kernel("avx_vnni", "avx_vnni.h", "AvxVnni", ("-mavxvnni",), frozenset({"avx_vnni"})),
    Kernel("avx2", "avx2.h", "Avx2", (), frozenset({"avx2"})),
    Kernel("neon_i8mm", "neon_i8mm.h", "NeonI8mm", (f"{DOTPROD}+i8mm",), frozenset({"asimddp", "i8mm"})),
    Kernel("neon_dotprod", "neon_dotprod.h", "NeonDotprod", (DOTPROD,), frozenset({"asimddp"})),
)
"""From the fastest to the slowest, of x86 and then of ARM."""


def chosen(kernel: Kernel, *, wide: bool = False) -> tuple[str, ...]:
    """Return the flags that make native.cpp use `kernel`, with floats where `wide`."""
    header = str(SOURCES / "kernels" / kernel.header)
    return f"-DQBERT_KERNEL={kernel.struct}", "-include", header, *([WIDE] if wide else ())


def shipped(kernel: Kernel, *, wide: bool = False, suffix: str = SUFFIX) -> Path:
    """Return where a wheel has the library of `kernel`, of a platform whose libraries end in `suffix`."""
    return LIBRARIES / f"{kernel.name}{'-wide' if wide else ''}{suffix}"
