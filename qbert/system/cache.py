"""Folders and files that are either absent or whole: made beside their place, then renamed; folders under a lock."""

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qbert.system.errors import InputError
from qbert.system.parse import check_name
from qbert.system.terminal import say

if TYPE_CHECKING:
    from filelock import FileLock

MANIFEST = "files.sha256"
SILENT_S = 2  # of waiting for another process before a message says so; most builds take longer
OTHERS_WRITE = 0o022  # the bits of a file's mode with which its group or everybody may write to it
READ = 0o444  # those with which its user, its group and everybody may read it
FULL = 1 << 20  # a disk with fewer free bytes counts as full
CANNOT_WRITE = {
    getattr(errno, name)
    for name in (
        *("EACCES", "EDQUOT", "EEXIST", "EFBIG", "EIO", "ELOOP", "ENAMETOOLONG"),
        *("ENOLCK", "ENOSPC", "ENOSYS", "ENOTDIR", "EOPNOTSUPP", "EPERM", "EROFS"),
    )
    if hasattr(errno, name)
}


class PlaceError(InputError):
    """A folder cannot be written, or others can write to it."""


def cache_dir() -> Path:
    """Return the folder that keeps trained built-in models and quantized variants (`QBERT_CACHE`).

    Raises:
        PlaceError: it is not named, and this user has no home.
    """
    import platformdirs

    try:
        return Path(os.environ.get("QBERT_CACHE") or platformdirs.user_cache_dir("qbert"))
    except RuntimeError as error:  # HOME is not set, and the user's id has no name
        raise PlaceError(
            "this user has no home folder (HOME) in which to keep what is made: name a folder for it (QBERT_CACHE)"
        ) from error


@contextlib.contextmanager
def cannot_be_written(path: Path) -> Iterator[None]:
    """Raise an OSError as an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): name another file") from error


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a file beside `path`, then rename it to `path`; devices and pipes are written directly.

    Raises:
        InputError: it cannot be written.
    """
    with cannot_be_written(path):
        if path.exists() and not path.is_file():  # before it is resolved: a pipe has no path of its own
            write(path)
            return
        destination = path.resolve()
        # The suffix is kept, since it may determine the format.
        hidden = f".{destination.stem}.unfinished-{secrets.token_hex(4)}{destination.suffix}"
        stage = destination.with_name(hidden)
        try:
            write(stage)
            stage.replace(destination)
        finally:
            with contextlib.suppress(OSError):
                stage.unlink()


def is_filled(target: Path) -> bool:
    """Whether `target` exists and is not an empty folder."""
    return target.exists() and not (target.is_dir() and not any(target.iterdir()))


def lock_of(name: str) -> "FileLock":
    """Return the lock of that name, which all processes with this cache share."""
    from filelock import FileLock  # 30 ms, which what is in the cache already does without

    locks = cache_dir() / "locks"
    _make_folder(locks)
    return FileLock(locks / name)


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target`; lock files are never removed, so they are in the cache, not in users' folders."""
    from filelock import Timeout

    lock = lock_of(hashlib.sha256(str(target).encode()).hexdigest()[:32])
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
    """Remove what interrupted builds of `target` left beside it; errors are ignored: leftovers only take disk space."""
    for dots in (".", ".."):  # with two: of a process that the build started and that made the stage in the same way
        for stage in target.parent.glob(f"{dots}{glob.escape(target.name)}.unfinished*"):
            shutil.rmtree(stage, ignore_errors=True)


def _make_folder(folder: Path) -> None:
    """Make `folder`, and those above it that are missing: only this user can write to them, whatever the umask."""
    for place in reversed([folder, *folder.parents]):
        if not place.exists():
            place.mkdir(mode=0o777 & ~OTHERS_WRITE, exist_ok=True)


@contextlib.contextmanager
def _closed_to_others(stage: Path) -> Iterator[None]:
    """Make the folder `stage`, which is open to this user alone meanwhile, and afterwards not for others to write.

    Programs may be among its files. Who may read the folder may then read its files, some of which libraries close to
    others. The umask stays, as it is that of all threads.
    """
    stage.mkdir(mode=0o777 & ~OTHERS_WRITE)
    mode = stage.stat().st_mode
    with contextlib.suppress(PermissionError):  # of a file system without modes; check_trusted looks at what is run
        stage.chmod(0o700)
    yield
    with contextlib.suppress(PermissionError):
        for path in stage.rglob("*"):
            if not path.is_symlink():
                path.chmod((path.stat().st_mode | mode & READ) & ~OTHERS_WRITE)
        stage.chmod(mode)


def build_folder(target: Path, build: Callable[[Path], None], *, intact: Callable[[Path], bool] = is_filled) -> Path:
    """Return `target`; where it is not `intact`, first let `build` fill an empty folder beside it and rename that.

    A second process that needs the same folder waits and then uses it. The next build of `target` removes what a killed
    one left beside it. Each build has a stage of its own, so a build that was thought dead disturbs no other.

    Raises:
        PlaceError: the place cannot be written to, or is full.
        InputError: it has a name that is no UTF-8.
    """
    target = target.resolve()
    check_name(target)
    if intact(target):
        return target
    stage = target.with_name(f".{target.name}.unfinished-{secrets.token_hex(4)}")
    try:
        _make_folder(target.parent)
        with locked(target):
            if intact(target):
                return target
            if is_filled(target):
                say(f"{target} is damaged: making it again")
                shutil.rmtree(target)
            _remove_stages(target)
            try:
                with _closed_to_others(stage):
                    _build(build, stage)
                if target.is_dir():
                    target.rmdir()
                stage.rename(target)
            finally:
                _remove_stages(target)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise PlaceError(
            f"{error.filename or target} cannot be written ({error.strerror}): "
            "name another place (QBERT_CACHE names the cache)"
        ) from error
    return target


def build_kept(target: Path, build: Callable[[Path], None]) -> Path:
    """Return the folder `target` of the cache; where it is absent or a file in it was changed, let `build` fill it."""

    def build_sealed(stage: Path) -> None:
        build(stage)
        seal(stage)

    return build_folder(target, build_sealed, intact=_is_sealed)


def seal(folder: Path) -> None:
    """Write the checksums of the files in `folder` into it."""
    (folder / MANIFEST).write_text(_manifest(folder), encoding="utf-8")


def listed(folder: Path) -> dict[str, str]:
    """Return the checksum of each file in `folder` that `seal` listed; none where there is no list."""
    try:
        lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return {}
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def check_files(folder: Path, only: str = "", leave_out: Collection[str] = ()) -> None:
    """Check that the files in `folder` are as `seal` listed them; files that it did not list are ignored.

    Where `only` is given, no other file is checked; those of `leave_out` are not.

    Raises:
        InputError: one is missing or was changed, or there is no list.
    """
    again = "make it again with qbert quantize"
    checksums = listed(folder)
    if not checksums:
        raise InputError(
            f"{folder} has no list of checksums ({MANIFEST}): {again}, or load it unchecked (--no-verify; verify=False)"
        )
    for name, digest in checksums.items():
        if name in leave_out or only not in {"", name}:
            continue
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing, and {MANIFEST} beside it lists it: {again}")
        if file_sha256(path) != digest:
            raise InputError(f"{path} is damaged (its checksum is not that in {MANIFEST}): {again}")


def _is_sealed(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).read_text(encoding="utf-8") == _manifest(folder)
    except (OSError, ValueError):
        return False


def _manifest(folder: Path) -> str:
    """Return a line for each file below `folder`, in the format of sha256sum."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    return "".join(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)


def file_sha256(path: Path) -> str:
    """Return the checksum of the file `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_trusted(path: Path, does: str = "decides what is run here") -> None:
    """Check that only this user and root can have written `path`, which `does` what messages say.

    It checks a file and its folder, or a folder and all in it, and the folders above within the cache.

    Raises:
        PlaceError: one of these is another user's, or others can write to it.
    """
    if sys.platform == "win32":  # permissions are not in the mode there
        return
    cache, folder = cache_dir().resolve(), path if path.is_dir() else path.parent
    above = [place for place in folder.parents if place.is_relative_to(cache)]
    for place in (*reversed(above), folder, *(folder.rglob("*") if folder == path else [path])):
        try:
            status = place.stat()
        except FileNotFoundError:  # removed meanwhile, or a broken link
            continue
        if status.st_uid not in {os.geteuid(), 0}:
            raise PlaceError(
                f"{place} {does} and belongs to another user (id {status.st_uid}): "
                "take it over with chown, or name a cache of your own (QBERT_CACHE)"
            )
        if status.st_mode & OTHERS_WRITE:
            top = cache if above else folder
            raise PlaceError(f"{place} {does} and others can write to it: chmod -R go-w {top}")


def _build(build: Callable[[Path], None], stage: Path) -> None:
    """Call `build`; where it fails on a full disk, raise the error that says so."""
    try:
        build(stage)
    except Exception as error:  # native writers raise exceptions of any class
        if shutil.disk_usage(stage).free < FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(stage.parent)) from error
        raise
