"""A cached folder is absent or whole, whatever happens to those who build it."""

import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qbert.system import cache
from qbert.system.cache import build_folder, build_kept
from qbert.system.errors import InputError


def write(folder: Path) -> None:
    (folder / "file").write_text("whole")


def test_a_folder_is_built_once(tmp_path: Path) -> None:
    built = []
    for _ in range(2):
        build_folder(tmp_path / "deep" / "folder", lambda stage: (built.append(stage), write(stage))[1])
    assert len(built) == 1
    assert (tmp_path / "deep" / "folder" / "file").read_text() == "whole"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert (build_folder(tmp_path, write) / "file").is_file()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        build_folder(tmp_path / "folder", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_what_a_killed_build_left_is_not_taken_for_finished(tmp_path: Path) -> None:
    script = f"""
        import os, pathlib
        from qbert.system.cache import build_folder
        def die(folder):
            (folder / "half").write_text("half")
            os.kill(os.getpid(), 9)
        build_folder(pathlib.Path({str(tmp_path / "folder")!r}), die)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert not (tmp_path / "folder").exists()
    build_folder(tmp_path / "folder", write)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


def test_stages_that_anyone_left_are_removed_and_those_of_other_folders_are_not(tmp_path: Path) -> None:
    left = [".folder.unfinished", ".folder.unfinished-1", "..folder.unfinished-1.unfinished-2"]
    others = [".folder-2.unfinished-1", ".a.folder.unfinished-1"]
    for name in left + others:
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    build_folder(tmp_path / "folder", write)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", *others}


def test_a_stage_that_cannot_be_removed_or_comes_back_does_not_stop_a_build(tmp_path: Path) -> None:
    (tmp_path / ".folder.unfinished").touch()  # what removes folders fails on a file

    def build(stage: Path) -> None:
        (tmp_path / ".folder.unfinished-1").mkdir()  # as one that lives on unseen makes it
        write(tmp_path / ".folder.unfinished-1")
        write(stage)

    assert [path.name for path in build_folder(tmp_path / "folder", build).iterdir()] == ["file"]


def test_who_waits_for_another_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SILENT_S", 0.1)
    building = threading.Event()

    def slow(stage: Path) -> None:
        building.set()
        time.sleep(3)  # long enough that no neighbour keeps the other waiting for it
        write(stage)

    other = threading.Thread(target=build_folder, args=(tmp_path / "folder", slow))
    other.start()
    building.wait()
    build_folder(tmp_path / "folder", lambda _: pytest.fail("was built twice"))
    other.join()
    assert f"waiting for another process, which makes {tmp_path / 'folder'}" in capsys.readouterr().err


@pytest.mark.parametrize("is_there", [False, True], ids=["absent", "damaged"])
def test_two_processes_share_the_work(tmp_path: Path, *, is_there: bool) -> None:
    if is_there:
        build_kept(tmp_path / "folder", write)
        (tmp_path / "folder" / "file").write_text("damaged")
    script = f"""
        import pathlib, time
        from qbert.system.cache import build_kept
        def build(folder):
            with open({str(tmp_path / "log")!r}, "a") as log:
                log.write("built\\n")
            time.sleep(0.5)
            (folder / "file").write_text("whole")
        build_kept(pathlib.Path({str(tmp_path / "folder")!r}), build)
    """
    processes = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
    assert (tmp_path / "folder" / "file").read_text() == "whole"


@pytest.mark.skipif(os.name != "posix", reason="needs a special file")
def test_a_cache_or_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"/dev/null.* cannot be written"):
        build_folder(Path("/dev/null/folder"), write)
    monkeypatch.setenv("QBERT_CACHE", "/dev/null")
    with pytest.raises(InputError, match=r"/dev/null/locks cannot be written .*QBERT_CACHE"):
        build_folder(tmp_path / "folder", write)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "file").write_text("while"),
        lambda folder: (folder / "file").unlink(),
        lambda folder: (folder / cache.MANIFEST).unlink(),
        lambda folder: (folder / "more").touch(),
    ],
    ids=["changed", "removed", "unsealed", "added"],
)
def test_a_kept_folder_that_was_changed_is_built_again_and_said(
    damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = []

    def build(stage: Path) -> None:
        built.append(stage)
        write(stage)

    folder = tmp_path / "folder"
    for _ in range(2):
        build_kept(folder, build)
    assert len(built) == 1
    damage(folder)
    build_kept(folder, build)
    assert len(built) == 2
    assert (folder / "file").read_text() == "whole"
    assert f"{folder} is damaged: making it again" in capsys.readouterr().err
    build_kept(folder, build)
    assert len(built) == 2


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_a_kept_folder_can_be_checked_with_sha256sum(tmp_path: Path) -> None:
    folder = build_kept(tmp_path / "folder", write)
    subprocess.run([str(shutil.which("sha256sum")), "--check", "--strict", cache.MANIFEST], cwd=folder, check=True)


def test_whatever_is_raised_on_a_full_disk_is_said_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    with pytest.raises(RuntimeError):
        build_folder(tmp_path / "folder", fail)
    monkeypatch.setattr(cache, "FULL", 1 << 60)  # no disk has so much left
    with pytest.raises(InputError, match=r"No space left on device.*QBERT_CACHE"):
        build_folder(tmp_path / "folder", fail)
    assert not list(tmp_path.glob("*folder*"))


def test_what_threads_build_at_once_is_closed_to_others_and_their_umask_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBERT_CACHE", str(tmp_path / "cache"))
    first_ended, both = threading.Event(), threading.Barrier(2)

    def first(stage: Path) -> None:
        both.wait()
        (stage / "file").touch()

    def second(stage: Path) -> None:
        both.wait()
        first_ended.wait()
        (stage / "sub").mkdir()
        (stage / "sub" / "file").touch()

    before = os.umask(0o002)
    try:
        with ThreadPoolExecutor(2) as threads:
            one, other = (threads.submit(build_folder, tmp_path / fill.__name__, fill) for fill in (first, second))
            one.result()
            first_ended.set()
            other.result()
        assert os.umask(0o002) == 0o002
    finally:
        os.umask(before)
    made = [tmp_path / "first", tmp_path / "second", *(tmp_path / "second").rglob("*")]
    assert len(made) == 4
    assert not any(path.stat().st_mode & 0o022 for path in made)


def test_a_pipe_is_written_directly(tmp_path: Path) -> None:
    script = "from pathlib import Path; from qbert.system.cache import write_file\n"
    script += "write_file(Path('/dev/stdout'), lambda path: path.write_text('written'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "written"


def test_a_file_system_without_modes_takes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    assert (build_folder(tmp_path / "folder", write) / "file").read_text() == "whole"
