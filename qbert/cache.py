"""Folders and files that are either absent or whole: built beside their place, then renamed; folders under a lock."""

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from qbert import InputError
from qbert.terminal import say

MANIFEST = "files.sha256"
SILENT_S = 2  # of waiting for another process: most of what is built takes longer, and then it is said
FULL = 1 << 20  # bytes left on a disk that was written to until it was full
CANNOT_WRITE = {errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS}


def cache_dir() -> Path:
    """Return the folder that keeps trained built-in models and quantized variants (`QBERT_CACHE`)."""
    return Path(os.environ.get("QBERT_CACHE") or platformdirs.user_cache_dir("qbert"))


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` write a file beside `path`, then rename it; what is no file (/dev/stdout, a pipe) is written to.

    Raises:
        InputError: it cannot be written.
    """
    place = beside = path
    try:
        place = beside = path.resolve()
        if not place.exists() or place.is_file():
            # The suffix stays, since it may choose the format.
            beside = place.with_name(f".{place.stem}.unfinished-{secrets.token_hex(4)}{place.suffix}")
        write(beside)
        if beside != place:
            beside.replace(place)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): name another file") from error
    finally:
        if beside != place:
            with contextlib.suppress(OSError):
                beside.unlink()


def is_filled(target: Path) -> bool:
    """Whether something is at `target`, an empty folder aside."""
    return target.exists() and not (target.is_dir() and not any(target.iterdir()))


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target`; lock files stay, so they are kept apart from a person's folders."""
    locks = cache_dir() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / hashlib.sha256(str(target).encode()).hexdigest()[:32])
    try:
        lock.acquire(timeout=SILENT_S)
    except Timeout:
        say(f"waiting for another process, which makes {target}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_stages(target: Path) -> None:
    """Remove what builds of `target` left beside it, as far as that can be removed: nothing but room depends on it."""
    for dots in (".", ".."):  # with two: where a process started by the build filled the stage in the same way
        for stage in target.parent.glob(f"{dots}{glob.escape(target.name)}.unfinished*"):
            shutil.rmtree(stage, ignore_errors=True)


def build_folder(target: Path, build: Callable[[Path], None], *, intact: Callable[[Path], bool] = is_filled) -> Path:
    """Return `target`; where it is not `intact`, let `build` fill an empty folder beside it and rename that.

    A second process that wants the same folder waits and then uses the first one's work. What a killed process left
    beside `target` is removed by the next one that builds it; no two builds share a stage, so that one which lives on
    unseen disturbs none.

    Raises:
        InputError: the place cannot be written to, or is full.
    """
    target = target.resolve()
    if intact(target):
        return target
    stage = target.with_name(f".{target.name}.unfinished-{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            if intact(target):
                return target
            if is_filled(target):
                say(f"{target} is damaged: making it again")
                shutil.rmtree(target)
            _remove_stages(target)
            stage.mkdir()
            try:
                _build(build, stage)
                if target.is_dir():
                    target.rmdir()
                stage.rename(target)
            finally:
                _remove_stages(target)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise InputError(
            f"{error.filename or target} cannot be written ({error.strerror}): "
            "name another place (QBERT_CACHE names the cache)"
        ) from error
    return target


def build_kept(target: Path, build: Callable[[Path], None]) -> Path:
    """Do as build_folder for a folder of the cache, which is built again where one of its files was changed."""

    def seal(stage: Path) -> None:
        build(stage)
        (stage / MANIFEST).write_text(_manifest(stage), encoding="utf-8")

    return build_folder(target, seal, intact=_is_sealed)


def _is_sealed(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).read_text(encoding="utf-8") == _manifest(folder)
    except (OSError, ValueError):
        return False


def _manifest(folder: Path) -> str:
    """Return a line for each file below `folder`, as sha256sum writes them."""
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder)}\n")
    return "".join(lines)


def _build(build: Callable[[Path], None], stage: Path) -> None:
    """Call `build`; of whatever it raises on a full disk, make the error that says so."""
    try:
        build(stage)
    except Exception as error:  # native writers raise what they like
        if shutil.disk_usage(stage).free < FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(stage.parent)) from error
        raise
