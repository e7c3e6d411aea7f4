"""Compile the C++ sources here for this processor at first use, and keep the library in the cache."""

import ctypes
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

from qbert.system import machine
from qbert.system.cache import build_kept, cache_dir, check_trusted
from qbert.system.errors import CannotRunError, InputError, pip_install, reason
from qbert.system.terminal import say

SOURCES = Path(__file__).parent
LIBRARY = "native.dylib" if sys.platform == "darwin" else "native.so"
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-fvisibility=hidden", "-shared")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
"""On every x86 processor: those of AVX2 all have FMA and F16C."""
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
DOTPROD = "-march=armv8.2-a+dotprod"
TWIN = "-DQBERT_TWIN"
"""Among the flags of `QBERT_CXXFLAGS`: plain C++ instead of a kernel's instructions, to test it on any processor."""
WIDE = "-DQBERT_WIDE"
"""Floats instead of halves between two products (rows.h)."""
PACKAGE = "ziglang"
"""A C++ compiler that pip installs: the extra `native`."""


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


def kernels(name: str = "") -> list[Kernel]:
    """Return the kernels that this processor can run, the fastest first; only `name`, or `QBERT_ISA`, where given.

    Raises:
        InputError: no kernel has that name.
    """
    name = name or os.environ.get("QBERT_ISA", "")
    if name and name not in {kernel.name for kernel in KERNELS}:
        raise InputError(f"QBERT_ISA={name} is none of {', '.join(kernel.name for kernel in KERNELS)}")
    known = [kernel for kernel in KERNELS if not name or kernel.name == name]
    return [kernel for kernel in known if TWIN in _extra_flags() or kernel.needs <= set(machine.instruction_sets())]


def unsupported(name: str = "") -> str:
    """Return why the sources cannot be compiled or run here, with the kernel `name` or any; empty where they can."""
    if sys.platform == "win32" or not kernels():
        wanted = os.environ.get("QBERT_ISA") or "AVX2 or ARM's dot products"
        return f"it is written for processors with {wanted}, on Linux or macOS"
    if not kernels(name):
        return f"this processor does not have {name}"
    return "" if compiler() else f"no C++ compiler: install g++ or clang++, or {pip_install('native')}"


@cache
def compiler() -> tuple[str, ...]:
    """Return the command of the first C++ compiler of `CXX`, g++, clang++ and pip's; empty where there is none."""
    for command in (os.environ.get("CXX", ""), "g++", "clang++"):
        words = shlex.split(command)
        if words and (path := shutil.which(words[0])):
            return (path, *words[1:])
    return (sys.executable, "-m", PACKAGE, "c++") if importlib.util.find_spec(PACKAGE) else ()


def flags(kernel: Kernel, *, wide: bool = False) -> tuple[str, ...]:
    """Return the flags for `kernel`, then those of `QBERT_CXXFLAGS` (sanitizers, plain C++)."""
    instructions = (*(AVX2 if machine.is_x86() else ()), *(() if TWIN in _extra_flags() else kernel.flags))
    return (*FLAGS, *instructions, *chosen(kernel), *([WIDE] if wide else ()), *_extra_flags())


def chosen(kernel: Kernel) -> tuple[str, ...]:
    """Return the flags that make native.cpp use `kernel`."""
    return f"-DQBERT_KERNEL={kernel.struct}", "-include", str(SOURCES / "kernels" / kernel.header)


def _extra_flags() -> list[str]:
    return shlex.split(os.environ.get("QBERT_CXXFLAGS", ""))


@cache
def load_library(name: str = "", *, wide: bool = False) -> ctypes.CDLL:
    """Return the library of the fastest kernel that runs here, or of the kernel `name`; with floats where `wide`.

    It is kept under a hash of sources, compiler and flags, and of the machine where you give flags; of two processes
    that need it at once, one compiles it.

    Raises:
        InputError: this machine cannot run it, the compiler fails, or where it is kept is no place for programs.
    """
    if why := unsupported(name):
        raise InputError(f"qbert's native library cannot be made here: {why}")
    for kernel in kernels(name):
        library = _load(kernel, flags(kernel, wide=wide))
        if library.qbert_permitted():
            return library
    raise InputError(f"this system does not let a process use {kernel.name}: set QBERT_ISA to a lesser one")


def _load(kernel: Kernel, options: tuple[str, ...]) -> ctypes.CDLL:
    command = compiler()
    executable = Path(command[0]).resolve().stat()
    own = [*command[1:], *_extra_flags()]  # which may say -march=native
    here = (machine.instruction_sets(), machine.hardware()) if own else ()
    digest = hashlib.sha256(repr((command, executable.st_size, executable.st_mtime_ns, options, here)).encode())
    for path in sorted([*SOURCES.rglob("*.h"), *SOURCES.rglob("*.cpp")]):
        digest.update(path.read_bytes())
    folder = build_kept(
        cache_dir() / "native" / digest.hexdigest()[:16], lambda stage: _compile(kernel, options, stage)
    )
    check_trusted(folder)
    try:
        library = ctypes.CDLL(str(folder / LIBRARY))
    except OSError as error:
        raise CannotRunError(
            f"int8-native cannot run what is compiled in {cache_dir()} ({reason(error)}): if it is mounted noexec, "
            "name another place (QBERT_CACHE)"
        ) from error
    return _declare(library)


def _compile(kernel: Kernel, options: tuple[str, ...], folder: Path) -> None:
    say(f"compiling int8-native for {kernel.name}, once")
    done = subprocess.run(  # noqa: S603  the user's compiler
        [*compiler(), *options, str(SOURCES / "native.cpp"), "-o", str(folder / LIBRARY)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TMPDIR": str(folder)},  # /tmp may be closed to it, or full
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [f"exit code {done.returncode}"]
        raise CannotRunError(
            f"{' '.join(compiler())} cannot compile {SOURCES} ({errors[0]}): set CXX to another compiler"
        )


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name, result, arguments in (
        ("instructions", ctypes.c_char_p, ()),
        ("permitted", ctypes.c_bool, ()),
        ("new", pointer, (pointer,)),
        ("delete", None, (pointer,)),
        ("set_embeddings", ctypes.c_bool, (pointer, pointer)),
        ("add_layer", ctypes.c_bool, (pointer, pointer)),
        ("set_head", ctypes.c_bool, (pointer, pointer)),
        ("keep", ctypes.c_bool, (pointer, number, number, ctypes.c_bool)),
        ("run", ctypes.c_bool, (pointer, pointer, pointer, number, pointer)),
        ("register_loop", number, (ctypes.c_int, number)),
        ("read_bytes", number, (pointer, number)),
        ("product_new", pointer, (number, number, number)),
        ("product_run", None, (pointer,)),
        ("product_delete", None, (pointer,)),
    ):
        function = getattr(library, f"qbert_{name}")
        function.restype, function.argtypes = result, arguments
    return library
