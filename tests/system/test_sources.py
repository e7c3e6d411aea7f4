"""What a cached result depends on: every file that its code imports, however deep, and no other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qbert.system import sources


def hashed(folder: Path, *modules: str) -> str:
    """The hash as a new process takes it, with `folder` on the module path."""
    script = f"from qbert.system import sources; print(sources.sha256(*{modules!r}))"
    return subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("module", "needs"),
    [
        ("qbert.variants.openvino", {"eager", "trimmed", "families"}),
        ("qbert.variants.onnxruntime", {"eager", "trimmed", "families"}),
        ("qbert.variants.inductor", {"eager"}),
        ("qbert.variants.native.convert", {"families", "native.encoder"}),
    ],
)
def test_an_export_depends_on_what_it_imports_and_not_on_other_runtimes(module: str, needs: set[str]) -> None:
    found = sources.files(module)
    of_variants = {name.removeprefix("qbert.variants.") for name in found if name.startswith("qbert.variants.")}
    assert needs <= of_variants
    assert {"qbert.system.machine", module} <= set(found)
    runtimes = {"openvino", "onnxruntime", "inductor", "native.convert"} - {module.removeprefix("qbert.variants.")}
    assert not runtimes & of_variants
    assert not {"qbert.cli", "qbert.results.page", "qbert.gate.run"} & set(found)


def test_a_training_depends_on_its_recipe_and_the_reading_of_texts() -> None:
    assert {"qbert.inputs.training", "qbert.inputs.dataset", "qbert.inputs.checkpoint"} <= set(
        sources.files("qbert.inputs.training")
    )


@pytest.fixture
def team(tmp_path: Path) -> Path:
    """A stranger's modules: a plugin, a package that it imports in a function, and one that nothing imports."""
    (tmp_path / "plugin.py").write_text("def load():\n    from team.parts import deep\n")
    package = tmp_path / "team" / "parts"
    (package / "kernels").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text(
        "from typing import TYPE_CHECKING\nfrom . import deeper\n"
        "if TYPE_CHECKING:\n    from . import unrelated\nelse:\n    from . import at_run_time\n"
        "if not TYPE_CHECKING:\n    from . import not_checking\n"
    )
    (package / "at_run_time.py").write_text("")
    (package / "not_checking.py").write_text("")
    (package / "deeper.py").write_text("import json, numpy\nSCALE = 1\n")
    (package / "unrelated.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("plugin.py", True),
        ("team/parts/deep.py", True),
        ("team/parts/deeper.py", True),
        ("team/parts/deeper.h", True),
        ("team/parts/kernels/deepest.h", True),
        ("team/parts/__init__.py", True),
        ("team/parts/at_run_time.py", True),
        ("team/parts/not_checking.py", True),
        ("team/parts/unrelated.py", False),
    ],
)
def test_an_edit_counts_where_it_is_imported_at_any_depth(team: Path, file: str, *, counts: bool) -> None:
    before = hashed(team, "plugin")
    with (team / file).open("a") as edited:
        edited.write("\n# edited\n")
    assert (hashed(team, "plugin") != before) == counts


def test_every_source_of_the_kernels_counts() -> None:
    folder = Path(sources.files("qbert.variants.native.compiler")["qbert.variants.native.compiler"]).parent
    hashed_too = {file for pattern in sources.COMPILED for file in folder.glob(pattern)}
    assert {path for path in folder.rglob("*") if path.suffix in (".h", ".cpp")} == hashed_too


def test_the_place_of_the_files_does_not_count(team: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    team.rename(copy)
    there = hashed(copy, "plugin")
    copy.rename(team)
    assert hashed(team, "plugin") == there


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_libraries_do_not_count_wherever_they_are_installed(team: Path, folder: str) -> None:
    script = "from qbert.system import sources; print(*sources.files('plugin'))"
    (team / "plugin.py").write_text("import library\nfrom team.parts import unrelated\n")
    (team / folder).mkdir()
    (team / folder / "library.py").write_text("")
    path = os.pathsep.join(map(str, (team, team / folder)))
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {"plugin", "team.parts", "team.parts.unrelated"}


def test_a_module_that_there_is_not_is_an_error_and_no_hash_of_nothing() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"no module qbert\.inputs\.tokeniser to hash"):
        sources.sha256("qbert.inputs.dataset", "qbert.inputs.tokeniser")
