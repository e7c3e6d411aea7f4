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

from qbert import machine
from qbert.cache import build_kept, cache_dir, check_trusted
from qbert.errors import InputError, pip_install
from qbert.terminal import say

SOURCES = Path(__file__).parent
LIBRARY = "native.so"
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-mavx2", "-mfma")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
PACKAGE = "ziglang"
"""A C++ compiler that pip installs: the extra `native`."""


def unsupported() -> str:
    """Return why the sources cannot be compiled or run here; empty where they can."""
    if not (machine.is_x86() and machine.has("avx512_vnni", "avx_vnni")) or sys.platform == "win32":
        return "it is written for processors with AVX512-VNNI or AVX-VNNI, on Linux or macOS"
    return "" if compiler() else f"no C++ compiler: install g++ or clang++, or {pip_install('native')}"


@cache
def compiler() -> tuple[str, ...]:
    """Return the command of the first C++ compiler of `CXX`, g++, clang++ and pip's; empty where there is none."""
    for command in (os.environ.get("CXX", ""), "g++", "clang++"):
        words = shlex.split(command)
        if words and (path := shutil.which(words[0])):
            return (path, *words[1:])
    return (sys.executable, "-m", PACKAGE, "c++") if importlib.util.find_spec(PACKAGE) else ()


def flags() -> tuple[str, ...]:
    """Return the flags for this processor, then those of `QBERT_CXXFLAGS` (sanitizers, fewer instructions)."""
    instructions: tuple[str, ...] = AVX512 if machine.has("avx512_vnni") else ("-mavxvnni",)
    if machine.has("avx512_vnni") and machine.has("avx512_bf16"):
        instructions += ("-mavx512bf16",)
    return (*FLAGS, *instructions, *shlex.split(os.environ.get("QBERT_CXXFLAGS", "")))


@cache
def load_library() -> ctypes.CDLL:
    """Return the compiled library.

    It is kept under a hash of sources, compiler and flags; of two processes that need it at once, one compiles it.

    Raises:
        InputError: this machine cannot run it, the compiler fails, or others can write to where it is kept.
    """
    if why := unsupported():
        raise InputError(f"qbert's native library cannot be made here: {why}")
    command = compiler()
    executable = Path(command[0]).resolve().stat()
    digest = hashlib.sha256(repr((command, executable.st_size, executable.st_mtime_ns, flags())).encode())
    for path in sorted(SOURCES.glob("*.[ch]*")):
        digest.update(path.read_bytes())
    folder = build_kept(cache_dir() / "native" / digest.hexdigest()[:16], _compile)
    check_trusted(folder)
    return _declare(ctypes.CDLL(str(folder / LIBRARY)))


def _compile(folder: Path) -> None:
    say("compiling int8-native, once")
    done = subprocess.run(  # noqa: S603  the user's compiler
        [*compiler(), *flags(), str(SOURCES / "native.cpp"), "-o", str(folder / LIBRARY)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [f"exit code {done.returncode}"]
        raise InputError(f"{' '.join(compiler())} cannot compile {SOURCES} ({errors[0]}): set CXX to another compiler")


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give ctypes the types of native.cpp's functions."""
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name, result, arguments in (
        ("instructions", ctypes.c_char_p, ()),
        ("new", pointer, (pointer,)),
        ("delete", None, (pointer,)),
        ("set_embeddings", ctypes.c_bool, (pointer, pointer)),
        ("add_layer", ctypes.c_bool, (pointer, pointer)),
        ("set_head", ctypes.c_bool, (pointer, pointer)),
        ("run", ctypes.c_bool, (pointer, pointer, pointer, number, pointer)),
    ):
        function = getattr(library, f"qbert_{name}")
        function.restype, function.argtypes = result, arguments
    return library
