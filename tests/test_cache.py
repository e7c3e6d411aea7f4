"""A cached folder is absent or whole, whatever happens to those who build it."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from qbert import InputError
from qbert.cache import build_folder


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
        from qbert.cache import build_folder
        def die(folder):
            (folder / "half").write_text("half")
            os.kill(os.getpid(), 9)
        build_folder(pathlib.Path({str(tmp_path / "folder")!r}), die)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert not (tmp_path / "folder").exists()
    build_folder(tmp_path / "folder", write)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    script = f"""
        import pathlib, time
        from qbert.cache import build_folder
        def build(folder):
            with open({str(tmp_path / "log")!r}, "a") as log:
                log.write("built\\n")
            time.sleep(0.5)
        print(build_folder(pathlib.Path({str(tmp_path / "folder")!r}), lambda f: (build(f), (f / "file").touch())))
    """
    processes = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


def test_nothing_but_the_folder_itself_is_left_beside_it(tmp_path: Path) -> None:
    build_folder(tmp_path / "folder", write)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(os.name != "posix", reason="needs a special file")
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBERT_CACHE", "/dev/null")
    with pytest.raises(InputError, match=r"/dev/null/locks cannot be written .*QBERT_CACHE"):
        build_folder(tmp_path / "folder", write)


@pytest.mark.skipif(os.name != "posix", reason="needs a special file")
def test_a_place_that_cannot_be_written_is_named() -> None:
    with pytest.raises(InputError, match=r"/dev/null.* cannot be written"):
        build_folder(Path("/dev/null/folder"), write)
