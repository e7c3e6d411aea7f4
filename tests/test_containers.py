"""What serves raises an InputError for all that may be wrong around it: homes, users, file systems, limits."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import qbert
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.system.errors import CannotRunError, InputError
from qbert.variants import VARIANTS
from qbert.variants.native import compiler

NAMELESS = 54321
NATIVE = pytest.mark.skipif(bool(VARIANTS["int8-native"].missing()), reason=VARIANTS["int8-native"].missing())
IS_ROOT = pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 1)() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "mount"))),
    reason="needs root, for another user and for mounts",
)
LOAD = """
import sys, qbert
from qbert.system.errors import InputError
for folder in sys.argv[1:]:
    try:
        print("answers", qbert.load(folder)("体育").score)
    except InputError as error:
        print("refuses", error)
"""
AS_NAMELESS = f"setpriv --reuid {NAMELESS} --regid {NAMELESS} --clear-groups"
READS = "--inh-caps +dac_read_search --ambient-caps +dac_read_search --bounding-set -all,+dac_read_search"
"""The tests' interpreter may be in root's home."""
PLACES = {
    "no home": f"{AS_NAMELESS} {READS} env -i PATH=/usr/bin:/bin",
    "a home that is a file": "env -u QBERT_CACHE -u XDG_CACHE_HOME HOME=/etc/passwd",
    "a closed home": f"{AS_NAMELESS} {READS} env -i PATH=/usr/bin:/bin HOME=/nonexistent",
    "noexec": "mount -t tmpfs -o noexec,mode=700,size=60m none $PLACE && env QBERT_CACHE=$PLACE",
    "full": "mount -t tmpfs -o size=40k none $PLACE && env QBERT_CACHE=$PLACE",
    "read-only": "mount -t tmpfs -o ro none $PLACE && env QBERT_CACHE=$PLACE",
}
SAID = {
    "no home": "this user has no home folder (HOME) in which to keep what is made: name a folder for it (QBERT_CACHE)",
    "a home that is a file": "/etc/passwd",
    "a closed home": "/nonexistent cannot be written (Permission denied): name another place (QBERT_CACHE",
    "noexec": "if it is mounted noexec, name another place (QBERT_CACHE)",
    "full": "cannot be written (No space left on device): name another place (QBERT_CACHE",
    "read-only": "cannot be written (Read-only file system): name another place (QBERT_CACHE",
}


def inside(around: str, place: Path, *command: object) -> list[str]:
    """Run `command` after the shell's words `around`, with mounts of its own; return its lines."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{around} "$@"', "sh", *map(str, command)],
        env=os.environ | {"PLACE": str(place)},
        cwd=place.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def artefact(trained: Checkpoint, news: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the artefact of a variant, made once, that every user can read."""
    place = tmp_path_factory.mktemp("artefacts")

    def make(name: str) -> Path:
        if not (place / name).exists():
            qbert.quantize(trained.folder, name, place / name, dataset=news.folder)
        return place / name

    return make


@IS_ROOT
@NATIVE
@pytest.mark.parametrize("around", PLACES)
def test_what_is_compiled_at_first_use_says_what_is_wrong_around_it(
    around: str, artefact: Callable[[str], Path], tmp_path: Path
) -> None:
    (told,) = inside(PLACES[around], tmp_path / "place", sys.executable, "-c", LOAD, artefact("int8-native"))
    assert told.startswith("refuses")
    assert SAID[around] in told


@IS_ROOT
@pytest.mark.slow
@pytest.mark.parametrize("around", [*PLACES.values(), "ulimit -n 16 &&", "ulimit -v 900000 &&", "ulimit -f 1 &&"])
def test_every_default_variant_answers_or_refuses_in_a_sentence(
    around: str, artefact: Callable[[str], Path], tmp_path: Path
) -> None:
    folders = [artefact(row.name) for row in VARIANTS.values() if row.default and not row.missing()]
    told = inside(around, tmp_path / "place", sys.executable, "-c", LOAD, *folders)
    assert len(told) == len(folders)


@NATIVE
def test_the_compiler_needs_no_place_for_temporary_files_beside_the_cache(
    artefact: Callable[[str], Path], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, artefact("int8-native")],
        env=os.environ | {"TMPDIR": "/proc", "QBERT_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("answers"), done.stdout
    assert [path.name for path in (tmp_path / "native").rglob("*") if path.is_file()] == [
        compiler.LIBRARY,
        "files.sha256",
    ]


@IS_ROOT
@NATIVE
@pytest.mark.slow
def test_a_default_run_leaves_out_what_a_noexec_cache_does_not_run(trained: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text("""
from qbert.variants import VARIANTS
for name in set(VARIANTS) - {"fp32", "int8-native"}:
    del VARIANTS[name]
""")
    bench = Path(__file__).parents[1] / "bench"
    command: Sequence[object] = (
        *(sys.executable, "-m", "pytest", "-p", "two", bench, "-k", "latency", "--seconds-per-cell=0.1"),
        *("--model", trained.folder, "--dataset", "news_mini", "--max-lengths", "16"),
    )
    around = f"{PLACES['noexec']} PYTHONPATH={tmp_path}"
    lines = " ".join(inside(around, tmp_path / "place", *command))
    assert "1 passed, 1 skipped" in lines
    assert "int8-native left out: int8-native cannot run what is compiled in" in lines


def broken(error: Exception) -> Callable[..., None]:
    def load(*_: object, **__: object) -> None:
        raise error

    return load


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), KeyError("getpwuid(): uid not found: 54321"), MemoryError()], ids=repr
)
def test_whatever_a_runtime_raises_is_an_input_error(
    error: Exception, artefact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qbert.variants import eager

    folder = artefact("int8-dynamic-onednn")
    monkeypatch.setattr(eager, "_choose_engine", broken(error))
    with pytest.raises(CannotRunError, match=r"variant int8-dynamic-onednn cannot run .* here \(.*\): leave it out"):
        qbert.load(folder)


def test_an_artefact_that_may_not_be_read_is_an_input_error(
    artefact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qbert.system import cache

    folder = artefact("int8-dynamic-onednn")
    monkeypatch.setattr(
        cache, "file_sha256", broken(PermissionError(13, "Permission denied", str(folder / "config.json")))
    )
    with pytest.raises(InputError, match=r"cannot be loaded here \(.*Permission denied: .*config.json'\)"):
        qbert.load(folder)


IN_THE_IMAGE = """
set -e
mount --bind . .
cd "$PWD"
for folder in {python} /lib /lib64 /usr/lib; do
  [ -e "$folder" ] || continue
  mkdir -p ".$folder"
  mount --bind "$folder" ".$folder"
  mount -o remount,bind,ro ".$folder"
done
mount -t proc none proc
{runs}
mount -o remount,bind,ro .
{serves}
"""


def recipe() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile in docs/serving.md, and their arguments."""
    text = (Path(__file__).parents[1] / "docs/serving.md").read_text(encoding="utf-8")
    block = text.partition("```dockerfile\n")[2].partition("```")[0]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in block.splitlines())]


def installed(name: str, into: Path, seen: set[str]) -> None:
    """Copy what pip installs of `name` without extras, and what that needs."""
    from importlib import metadata

    from packaging.requirements import Requirement

    distribution = metadata.distribution(name)
    seen.add(name)
    for file in distribution.files or ():
        source = Path(str(distribution.locate_file(file)))
        if ".." not in file.parts and source.is_file() and "__pycache__" not in file.parts:
            (into / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, into / file)
    for text in distribution.requires or ():
        requirement = Requirement(text)
        if requirement.name not in seen and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
            installed(requirement.name, into, seen)


@IS_ROOT
@NATIVE
@pytest.mark.slow
@pytest.mark.parametrize("brings", [False, True], ids=["packed by the image", "packed for a kernel"])
def test_the_recipe_serves_from_a_read_only_root_without_a_compiler(
    trained: Checkpoint, tmp_path: Path, *, brings: bool
) -> None:
    library = compiler.load_library()
    root = tmp_path / "root"
    for folder in ("bin", "proc", "site", "tmp"):
        (root / folder).mkdir(parents=True)
    for program in ("sh", "chmod", "env", "mkdir"):
        shutil.copy(str(shutil.which(program)), root / "bin" / program)
    (root / "bin/python").symlink_to(Path(sys.base_prefix) / "bin/python3")
    installed("pytest-qbert", root / "site", set())
    shutil.copytree(Path(qbert.__file__).parent, root / "site/qbert", dirs_exist_ok=True)
    brought = root / "site/qbert/variants/native/libraries"
    brought.mkdir()
    shutil.copy(library.file, brought / f"{library.kernel.name}.so")
    kernels = [library.kernel.name] if brings else []
    qbert.quantize(trained.folder, "int8-native", root / "model", kernels=kernels)
    steps = recipe()
    (variables,) = (rest for word, rest in steps if word == "ENV")
    (user,) = (rest for word, rest in steps if word == "USER")
    (command,) = (rest for word, rest in steps if word == "CMD")
    inside = f"/bin/env -i PATH=/bin PYTHONPATH=/site PYTHONHOME={sys.base_prefix} {variables}"
    runs = [f"chroot . {inside} sh -c {shlex.quote(rest)}" for word, rest in steps if word == "RUN"]
    script = IN_THE_IMAGE.format(
        python=sys.base_prefix,
        runs="\n".join(runs[1:]),  # the first has installed the package
        serves=f"chroot --userspec={user}:{user} . {inside} {shlex.join(json.loads(command))}",
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=root, input="体育新闻\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{qbert.load(root / 'model')('体育新闻').label}\n"
    assert [*(root / "cache").rglob("*.packed")] == [] if brings else len([*(root / "cache").rglob("*.packed")]) == 1
