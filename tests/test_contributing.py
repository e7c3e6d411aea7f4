"""What CONTRIBUTING.md and the tools say of each other."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
LINT = "bash .ci/lint"


def test_the_map_names_every_module_once_and_no_other() -> None:
    rows = [
        line.split("|")[1] for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| `")
    ]
    named = [name for row in rows for name in re.findall(r"`(.+?\.py)`", row)]
    modules = [path.relative_to(ROOT / "qbert").as_posix() for path in (ROOT / "qbert").rglob("*.py")]
    assert sorted(named) == sorted(modules)


def test_ci_a_commit_and_the_workflow_run_the_same_linters() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    workflow = yaml.safe_load((ROOT / ".github/workflows/lint.yml").read_text())
    assert hook["entry"] == workflow["jobs"]["lint"]["steps"][-1]["run"] == LINT
    assert LINT in (ROOT / ".ci/run").read_text()
