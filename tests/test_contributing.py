"""What CONTRIBUTING.md and the tools say of each other."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
LINT = "bash .ci/lint"


def test_the_map_names_each_room_and_its_modules_and_no_other() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().split("| in `qbert/` |")[1].split("\n\n")[0]
    rows = table.splitlines()[2:]
    assert len(rows) <= 30
    room, named = "", set()
    for row in rows:
        _, place, what, _ = row.split("|")
        rooms = [name for name in re.findall(r"`(.+?)`", place) if name.endswith("/")]
        room = rooms[0] if rooms else room
        named |= set(re.findall(r"`(\w+\.py)`", place)) | set(rooms)
        named |= {room + name for name in re.findall(r"`(\w+(?:\.py|/))`", what)}
    files = {path.relative_to(ROOT / "qbert").as_posix() for path in (ROOT / "qbert").rglob("*.py")}
    folders = {file.rpartition("/")[0] + "/" for file in files if "/" in file}
    assert named <= files | folders
    left = {"cli/", "selection/rescue/", "variants/native/"}  # a file for each command, runtime, step
    told = {file for file in files - named if not file.endswith("__init__.py")}
    assert not {file for file in told if file.rpartition("/")[0] + "/" not in left}


def test_ci_a_commit_and_the_workflow_run_the_same_linters() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    workflow = yaml.safe_load((ROOT / ".github/workflows/lint.yml").read_text())
    assert hook["entry"] == workflow["jobs"]["lint"]["steps"][-1]["run"] == LINT
    assert LINT in (ROOT / ".ci/run").read_text()
