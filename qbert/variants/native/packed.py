"""Weights as a kernel reads them, in a file that is mapped: so all processes of a machine hold one copy of them.

`qbert quantize --for` writes the file beside the artefact's weights; else the first load writes it to the cache. Its
first HEADER bytes say what it holds; the rest is in the order and alignment of Weights in memory.h.
"""

import contextlib
import hashlib
import json
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qbert.system.cache import PlaceError, build_kept, cache_dir, check_files, check_trusted, listed
from qbert.variants.native.compiler import Library

HEADER = 4096
"""A page, so that what follows is aligned."""
IN_MEMORY = "in memory"

Bytes = npt.NDArray[np.uint8]
Append = Callable[[bytearray], None]
"""Appends the packed weights, as Encoder.append_to does."""


class Mapped(NamedTuple):
    """Packed weights."""

    file: Path
    content: Bytes


def name(library: Library) -> str:
    """Return the name of the file for the kernel of `library`."""
    return f"{library.kernel.name}.packed"


def identity(checksum: str, library: Library) -> str:
    """Return what identifies the weights whose file has that `checksum`, packed for `library`.

    Whatever may change the layout is part of it.
    """
    parts = [checksum, library.kernel.name, library.wide, library.sources_sha256]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def write(folder: Path, library: Library, checksum: str, append: Append) -> None:
    """Write the weights whose file has that `checksum`, packed by `append`, to the file in `folder` that is mapped.

    Nobody is to change it while others map it. It is written at once: so Linux keeps it in large pages where it can.
    """
    content = bytearray(json.dumps({"packed": identity(checksum, library)}).encode().ljust(HEADER))
    append(content)
    path = folder / name(library)
    path.write_bytes(content)
    path.chmod(0o444)


def found(weights: Path, library: Library) -> Mapped | None:
    """Return the packed `weights` that are beside them, with a checksum, or in the cache; None where neither is."""
    identified = _identity(weights, library)
    for file in _places(weights, library, identified) if identified else ():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            mapped = _map(file)
            if json.loads(bytes(mapped.content[:HEADER]))["packed"] == identified:
                return Mapped(file, mapped.content[HEADER:])
    return None


def unread(weights: Path, library: Library) -> bool:
    """Whether `weights` need not be read: they are packed, and did not change since then."""
    mapped = found(weights, library)
    return mapped is not None and weights.stat().st_mtime_ns <= mapped.file.stat().st_mtime_ns


def shared(weights: Path, library: Library, append: Append) -> tuple[Mapped | None, str]:
    """Return the packed `weights`, and in words where they are; None, and why, where they cannot be shared.

    What the cache lacks is made by `append`; what it has is held against its checksum.

    Raises:
        InputError: `weights` are damaged.
    """
    identified = _identity(weights, library)
    if not identified:
        return None, f"{IN_MEMORY}: {weights} has no checksum"
    mapped, where = found(weights, library), "mapped from the artefact"

    def pack(stage: Path) -> None:
        check_files(weights.parent, only=weights.name)
        write(stage, library, listed(weights.parent)[weights.name], append)

    try:
        if mapped is None or mapped.file.parent != weights.parent:
            where = "mapped from the cache"
            build_kept(_folder(identified), pack)
            mapped = found(weights, library)
        if mapped is not None:
            check_trusted(mapped.file)
    except PlaceError as error:
        return None, f"{IN_MEMORY}: {error}"
    return mapped, where


def _identity(weights: Path, library: Library) -> str:
    """Return the identity by the checksum that is listed beside `weights`; empty where none is."""
    checksum = listed(weights.parent).get(weights.name)
    return identity(checksum, library) if checksum else ""


def _places(weights: Path, library: Library, identified: str) -> Iterator[Path]:
    if name(library) in listed(weights.parent):
        yield weights.with_name(name(library))
    with contextlib.suppress(PlaceError):
        yield _folder(identified) / name(library)


def _folder(identified: str) -> Path:
    return cache_dir() / "packed" / identified[:16]


def _map(file: Path) -> Mapped:
    """Map `file`, all of it at once, in large pages where Linux can, and has not read it in small ones already."""
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    with contextlib.suppress(OSError, AttributeError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    content = np.frombuffer(mapped, np.uint8)
    content[:: mmap.PAGESIZE].max()
    return Mapped(file, content)
