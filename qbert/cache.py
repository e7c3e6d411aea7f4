"""Folders and files that are either absent or whole: built beside their place, then renamed; folders under a lock."""

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from qbert.errors import InputError
from qbert.terminal import say

MANIFEST = "files.sha256"
SILENT_S = 2  # of waiting for another process: most of what is built takes longer, and then it is said
OTHERS_WRITE = 0o022  # the bits of a file's mode that let its group and everybody write to it
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


@contextlib.contextmanager
def _closed_to_others() -> Iterator[None]:
    """Let nobody else write to what is made meanwhile: with many a umask a group's members could, and it is run."""
    umask = os.umask(OTHERS_WRITE)
    os.umask(umask | OTHERS_WRITE)
    try:
        yield
    finally:
        os.umask(umask)


@_closed_to_others()
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

    def build_sealed(stage: Path) -> None:
        build(stage)
        seal(stage)

    return build_folder(target, build_sealed, intact=_is_sealed)


def seal(folder: Path) -> None:
    """List the checksums of the files in `folder` beside them."""
    (folder / MANIFEST).write_text(_manifest(folder), encoding="utf-8")


def check_files(folder: Path) -> None:
    """Check that the files that `seal` listed in `folder` are as they were; others beside them do not count.

    Raises:
        InputError: one is missing or was changed, or there is no list.
    """
    again = "make it again with qbert quantize"
    try:
        lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    if not lines:
        raise InputError(
            f"{folder} has no list of checksums ({MANIFEST}): {again}, or load it unchecked (--no-verify; verify=False)"
        )
    for line in lines:
        digest, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing, and {MANIFEST} beside it lists it: {again}")
        if _sha256(path) != digest:
            raise InputError(f"{path} is damaged (its checksum is not that in {MANIFEST}): {again}")


def _is_sealed(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).read_text(encoding="utf-8") == _manifest(folder)
    except (OSError, ValueError):
        return False


def _manifest(folder: Path) -> str:
    """Return a line for each file below `folder`, as sha256sum writes them."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    return "".join(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_trusted(path: Path) -> None:
    """Check that nobody but this user and root can have written `path`, from which programs are about to be run.

    Looked at are a file and its folder, or a folder and all in it, and what is above in the cache.

    Raises:
        InputError: one of these is another user's, or others can write to it.
    """
    if sys.platform == "win32":  # its rights are not in the mode
        return
    cache, folder = cache_dir().resolve(), path if path.is_dir() else path.parent
    above = [place for place in folder.parents if place.is_relative_to(cache)]
    for place in (*reversed(above), folder, *(folder.rglob("*") if folder == path else [path])):
        try:
            status = place.stat()
        except FileNotFoundError:  # removed meanwhile, or a link to nothing
            continue
        if status.st_uid not in {os.geteuid(), 0}:
            raise InputError(
                f"{place} decides what is run here and belongs to another user (id {status.st_uid}): "
                "take it over with chown, or name a cache of your own (QBERT_CACHE)"
            )
        if status.st_mode & OTHERS_WRITE:
            top = cache if above else folder
            raise InputError(f"{place} decides what is run here and others can write to it: chmod -R go-w {top}")


def _build(build: Callable[[Path], None], stage: Path) -> None:
    """Call `build`; of whatever it raises on a full disk, make the error that says so."""
    try:
        build(stage)
    except Exception as error:  # native writers raise what they like
        if shutil.disk_usage(stage).free < FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(stage.parent)) from error
        raise
