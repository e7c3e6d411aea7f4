"""Folders that are either absent or whole: built beside their place under a lock, then renamed."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import platformdirs
from filelock import FileLock

from qbert import InputError

CANNOT_WRITE = {errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS}


def cache_dir() -> Path:
    """Return the folder that keeps trained built-in models and quantized variants (`QBERT_CACHE`)."""
    return Path(os.environ.get("QBERT_CACHE") or platformdirs.user_cache_dir("qbert"))


def is_filled(target: Path) -> bool:
    """Whether something is at `target`, an empty folder aside."""
    return target.exists() and not (target.is_dir() and not any(target.iterdir()))


def _lock(target: Path) -> FileLock:
    """Return the lock of `target`; lock files stay, so they are kept apart from a person's folders."""
    locks = cache_dir() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / hashlib.sha256(str(target).encode()).hexdigest()[:32])


def build_folder(target: Path, build: Callable[[Path], None]) -> Path:
    """Return `target`; where it is missing or empty, let `build` fill an empty folder beside it and rename that.

    A second process that wants the same folder waits and then uses the first one's work. What a killed
    process left beside `target` is removed by the next one that builds it.

    Raises:
        InputError: the place cannot be written to.
    """
    target = target.resolve()
    if is_filled(target):
        return target
    stage = target.with_name(f".{target.name}.unfinished")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            if is_filled(target):
                return target
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir()
            try:
                build(stage)
                if target.is_dir():
                    target.rmdir()
                stage.rename(target)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise InputError(
            f"{error.filename or target} cannot be written ({error.strerror}): "
            "name another place (QBERT_CACHE names the cache)"
        ) from error
    return target
