"""Read what users give into typed objects; errors name the place and the remedy."""

import codecs
import errno
import os
import stat
from pathlib import Path
from typing import Any, TypeVar

from qbert.system.errors import InputError

Kind = TypeVar("Kind")


def read_bytes(path: Path, remedy: str) -> bytes:
    """Return the contents of the file `path`; `remedy` ends the message where it cannot be read.

    Raises:
        InputError: it is missing, cannot be read, or is a pipe or device, of which reading might never end.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            why = os.strerror(errno.EISDIR) if path.is_dir() else "it is a pipe or a device"
            raise InputError(f"{path} cannot be read ({why}): {remedy}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', error)}): {remedy}") from error


def check_name(path: Path) -> None:
    """Check that other programs can take the name `path`, and files hold it.

    Raises:
        InputError: it is no UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name {path} is no UTF-8, which not every library can use: rename it") from error


def read_json(path: Path, kind: type[Kind], remedy: str) -> Kind:
    """Return the JSON in the file `path` as a `kind`, a msgspec.Struct or another type.

    Raises:
        InputError: it cannot be read, is no JSON, or a value in it is of another type or beyond its bounds.
    """
    return decode(path, read_bytes(path, remedy), kind, remedy)


def decode(path: Path, content: bytes, kind: type[Kind], remedy: str) -> Kind:
    """Return the JSON in `content`, which was read from the file `path`, as a `kind`.

    Raises:
        InputError: it is no JSON, or a value in it is of another type or beyond its bounds.
    """
    import msgspec

    try:
        return msgspec.json.decode(content.removeprefix(codecs.BOM_UTF8), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} cannot be used ({error}): {remedy}") from error


def convert(value: Any, kind: type[Kind], what: str, remedy: str) -> Kind:  # noqa: ANN401  its type is checked here
    """Return `value`, which JSON or TOML held, as a `kind`; `what` names it in the error.

    Raises:
        InputError: it, or a value in it, is of another type or beyond its bounds.
    """
    import msgspec

    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InputError(f"{what} cannot be used ({error}): {remedy}") from error
