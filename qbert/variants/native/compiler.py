"""Load a kernel's library: the wheel's, or what is compiled of the C++ sources at first use and kept in the cache."""

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

from qbert.system import machine
from qbert.system.cache import build_kept, cache_dir, check_trusted
from qbert.system.errors import CannotRunError, InputError, reason
from qbert.system.terminal import say
from qbert.variants.native.targets import AVX2, FLAGS, KERNELS, LIBRARIES, SOURCES, SUFFIX, Kernel, chosen, shipped

LIBRARY = f"native{SUFFIX}"
TWIN = "-DQBERT_TWIN"
"""Among the flags of `QBERT_CXXFLAGS`: plain C++ instead of a kernel's instructions, to test it on any processor."""
PACKAGE = "ziglang"
"""A C++ compiler that pip installs."""


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
    if compiler() or _brought(kernels(name)[0]):
        return ""
    remedy = "leave out QBERT_CXXFLAGS" if _extra_flags() else "qbert from a wheel, which brings what one would compile"
    return f"no C++ compiler: install g++ or clang++, or {remedy}"


def made_by() -> str:
    """Return what makes the libraries: the wheel, which has brought them, or a compiler."""
    return "the wheel's libraries" if any(LIBRARIES.glob(f"*{SUFFIX}")) and not _extra_flags() else "a C++ compiler"


@cache
def compiler() -> tuple[str, ...]:
    """Return the command of the first C++ compiler of `CXX`, g++, clang++ and pip's; empty where there is none."""
    for command in (os.environ.get("CXX", ""), "g++", "clang++"):
        words = shlex.split(command)
        if words and (path := shutil.which(words[0])):
            return (path, *words[1:])
    return (sys.executable, "-m", PACKAGE, "c++") if importlib.util.find_spec(PACKAGE) else ()


def flags(kernel: Kernel, *, wide: bool = False, twin: bool = False) -> tuple[str, ...]:
    """Return the flags for `kernel`, as plain C++ if `twin`, then those of `QBERT_CXXFLAGS` (sanitizers, plain C++)."""
    plain = twin or TWIN in _extra_flags()
    instructions = (*(AVX2 if machine.is_x86() else ()), *(() if plain else kernel.flags))
    slow = ("-O1", TWIN) if twin else ()  # it only packs, and takes minutes to optimize
    return *FLAGS, *instructions, *chosen(kernel, wide=wide), *slow, *_extra_flags()


def _extra_flags() -> list[str]:
    return shlex.split(os.environ.get("QBERT_CXXFLAGS", ""))


class Library(ctypes.CDLL):
    """A loaded library."""

    file: Path
    kernel: Kernel
    wide: bool
    sources_sha256: str
    """The hash of what it was compiled from and, where you give flags, of these."""
    made: str
    """Where and by what it was compiled."""


@cache
def load_library(name: str = "", *, wide: bool = False) -> Library:
    """Return the library of the fastest kernel that runs here, or of the kernel `name`; with floats where `wide`.

    What is compiled is kept under a hash of sources, compiler and flags, and of the machine where you give flags; of
    two processes that need it at once, one compiles it.

    Raises:
        InputError: this machine cannot run it, the compiler fails, or where it is kept is no place for programs.
    """
    if why := unsupported(name):
        raise InputError(f"qbert's native library cannot be made here: {why}")
    for kernel in kernels(name):
        library = _load(kernel, wide=wide)
        if library.qbert_permitted():
            return library
    raise InputError(f"this system does not let a process use {kernel.name}: set QBERT_ISA to a lesser one")


def sources_sha256() -> str:
    """Return the hash of the C++ sources, and of `QBERT_CXXFLAGS`."""
    digest = hashlib.sha256(repr(_extra_flags()).encode())
    for path in sorted([*SOURCES.rglob("*.h"), *SOURCES.rglob("*.cpp")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def load_to_pack(name: str, *, wide: bool) -> Library:
    """Return a library that packs weights for the kernel `name`, which this processor need not run: then as plain C++.

    Raises:
        InputError: there is no compiler, and it takes one.
    """
    kernel = next(kernel for kernel in KERNELS if kernel.name == name)
    if kernel.needs <= set(machine.instruction_sets()):
        return _load(kernel, wide=wide)
    if not compiler():
        raise InputError(f"to pack for {name}, which this processor does not have, takes a C++ compiler: install g++")
    return _load(kernel, wide=wide, twin=True)


def _brought(kernel: Kernel, *, wide: bool = False) -> Path | None:
    """Return the library that a wheel brought for `kernel`; None in a clone, and where you give flags."""
    file = shipped(kernel, wide=wide)
    return file if file.exists() and not _extra_flags() else None


def _load(kernel: Kernel, *, wide: bool, twin: bool = False) -> Library:
    brought = None if twin else _brought(kernel, wide=wide)
    file = brought or _compiled(kernel, flags(kernel, wide=wide, twin=twin))
    try:
        library = _declare(Library(str(file)))
    except OSError as error:
        remedy = "install the sdist" if brought else "if it is mounted noexec, name another place (QBERT_CACHE)"
        where = f"{file}" if brought else f"what is compiled in {cache_dir()}"
        raise CannotRunError(f"int8-native cannot run {where} ({reason(error)}): {remedy}") from error
    library.file, library.kernel, library.wide, library.sources_sha256 = file, kernel, wide, sources_sha256()
    by = library.qbert_compiler().decode().partition(" (")[0]
    library.made = f"{'brought by the wheel' if brought else 'compiled here'}, {by}"
    return library


def _compiled(kernel: Kernel, options: tuple[str, ...]) -> Path:
    """Return the library, compiled now unless the cache has it."""
    command = compiler()
    executable = Path(command[0]).resolve().stat()
    own = [*command[1:], *_extra_flags()]  # which may say -march=native
    here = (machine.instruction_sets(), machine.hardware()) if own else ()
    parts = command, executable.st_size, executable.st_mtime_ns, options, here, sources_sha256()
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()
    folder = build_kept(cache_dir() / "native" / digest[:16], lambda stage: _compile(kernel, options, stage))
    check_trusted(folder)
    return folder / LIBRARY


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


def _declare(library: Library) -> Library:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name, result, arguments in (
        ("instructions", ctypes.c_char_p, ()),
        ("permitted", ctypes.c_bool, ()),
        ("compiler", ctypes.c_char_p, ()),
        ("new", pointer, (pointer, pointer, number)),
        ("delete", None, (pointer,)),
        ("set_embeddings", ctypes.c_bool, (pointer, pointer)),
        ("add_layer", ctypes.c_bool, (pointer, pointer)),
        ("set_head", ctypes.c_bool, (pointer, pointer)),
        ("weights", ctypes.c_bool, (pointer, number, pointer, pointer)),
        ("keep", ctypes.c_bool, (pointer, number, number, ctypes.c_bool)),
        ("run", ctypes.c_int, (pointer, pointer, pointer, pointer, number, pointer)),
        ("register_loop", number, (ctypes.c_int, number)),
        ("read_bytes", number, (pointer, number)),
        ("product_new", pointer, (number, number, number)),
        ("product_run", None, (pointer,)),
        ("product_delete", None, (pointer,)),
    ):
        function = getattr(library, f"qbert_{name}")
        function.restype, function.argtypes = result, arguments
    return library
