"""Weights as a kernel reads them, in a file that is mapped: so all processes of a machine hold one copy of them.

`qbert quantize --for` writes the file beside the artefact's weights; else the first load writes it to the cache. Its
first HEADER bytes say what it holds; the rest is in the order and alignment of Weights in memory.h.
"""

import contextlib
import hashlib
import json
import mmap
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qbert.system.cache import PlaceError, build_kept, cache_dir, check_files, check_trusted, listed
from qbert.variants.native.compiler import Library

HEADER = 4096
"""A page, so that what follows is aligned."""
CHUNK = 16 << 20
"""The file is written in pieces of this size, so that Linux keeps it in large pages where it can."""
IN_MEMORY = "in memory"

Bytes = npt.NDArray[np.uint8]
Pieces = Callable[[], Iterable[memoryview]]
"""The packed weights, as Encoder.pieces."""


def name(library: Library) -> str:
    """Return the name of the file for the kernel of `library`."""
    return f"{library.kernel.name}.packed"


def write(weights: Path, checksum: str, library: Library, pieces: Pieces, folder: Path) -> None:
    """Write `weights`, a file with that `checksum`, packed as `pieces`, to the file in `folder` that is mapped.

    Nobody is to change it while others map it.
    """
    path = folder / name(library)
    content = bytearray(_header(weights, checksum, library))
    with path.open("xb") as file:
        for piece in pieces():
            content += piece
            whole = len(content) // CHUNK * CHUNK
            file.write(content[:whole])
            del content[:whole]
        file.write(content)
    path.chmod(0o444)


def is_unread(weights: Path, library: Library) -> bool:
    """Whether `weights` need not be read, nor checked: they are packed, and have not changed since then."""
    checksum = listed(weights.parent).get(weights.name, "")
    with contextlib.suppress(PlaceError):
        for file in (weights.with_name(name(library)), _folder(checksum, library) / name(library)):
            if _mapped(file, weights, checksum, library) is not None:
                return weights.stat().st_mtime_ns <= file.stat().st_mtime_ns
    return False


def shared(weights: Path, library: Library, pieces: Pieces) -> tuple[Bytes | None, Path, str]:
    """Return the packed `weights`, mapped, their file, and in words where they are; None, and why, if not shared.

    What the cache lacks is made of `pieces`; what it has is held against its checksum.

    Raises:
        InputError: `weights` are damaged.
    """
    checksums = listed(weights.parent)
    if not (checksum := checksums.get(weights.name)):
        return None, weights, f"{IN_MEMORY}: {weights} has no checksum"
    beside = weights.with_name(name(library))
    if beside.name in checksums and (mapped := _mapped(beside, weights, checksum, library)) is not None:
        return mapped, beside, "mapped from the artefact"

    def pack(stage: Path) -> None:
        check_files(weights.parent, only=weights.name)
        write(weights, checksum, library, pieces, stage)

    try:
        file = build_kept(_folder(checksum, library), pack) / name(library)
        check_trusted(file, "holds weights that are shared")
        if (mapped := _mapped(file, weights, checksum, library)) is not None:
            return mapped, file, "mapped from the cache"
        why = f"{file} cannot be mapped"
    except (PlaceError, MemoryError) as error:
        why = str(error)
    check_files(weights.parent, only=weights.name)  # which whoever asked is_unread did not
    return None, weights, f"{IN_MEMORY}: {why}"


def _identity(checksum: str, library: Library) -> str:
    """Return what identifies packed weights: whatever may change the layout is part of it."""
    parts = [checksum, library.kernel.name, library.wide, library.sources_sha256]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _folder(checksum: str, library: Library) -> Path:
    return cache_dir() / "packed" / _identity(checksum, library)[:16]


def _header(weights: Path, checksum: str, library: Library) -> bytes:
    """Return the first bytes of the packed file; they also identify the header of `weights`, which is read."""
    with weights.open("rb") as file:
        length = file.read(8)
        sizes = hashlib.sha256(length + file.read(int.from_bytes(length, "little"))).hexdigest()
    return json.dumps({"packed": _identity(checksum, library), "sizes": sizes}).encode().ljust(HEADER)


def _mapped(file: Path, weights: Path, checksum: str, library: Library) -> Bytes | None:
    """Return what follows the header of `file`, mapped; None unless it is of `weights` and nobody else can write it.

    All of it is mapped at once, in large pages where Linux can and has not read it in small ones already.
    """
    try:
        check_trusted(file)
        with file.open("rb") as opened:
            if opened.read(HEADER) != _header(weights, checksum, library):
                return None
            mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError, PlaceError):
        return None
    with contextlib.suppress(OSError, AttributeError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    content = np.frombuffer(mapped, np.uint8)
    content[:: mmap.PAGESIZE].max()
    return content[HEADER:]
