"""The house has floors: no module imports one that lies above it, not even inside a function."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = (
    "errors",
    "record sources children labels forks git",
    "terminal parse",
    "cache cores machine queueing stats tensors tokenizer",
    "checkpoint dataset",
    "variants",
    "artefact accuracy training",
    "serving settings",
    "models roofline footprint audit capacity_worker",
    "crew",
    "capacity cluster latency suite",
    "team timing results",
    "evaluation kept_answers",
    "choosing fleet reproduce rescue gate",
    "api pytest_plugin init",
    "cli",
    "__main__ __init__",
)
"""From the ground up, modules and rooms of one floor beside one another."""
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the first name below qbert of each import in `tree`, those for type checkers aside."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "qbert":
            yield from (alias.name for alias in node.names if alias.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qbert."):
            yield str(node.module).split(".")[1]
        else:
            yield from imports(node)


def test_no_module_knows_those_above_it() -> None:
    wrong = []
    for path in sorted((ROOT / "qbert").rglob("*.py")):
        place = path.relative_to(ROOT / "qbert")
        here = place.parts[0].removesuffix(".py")
        if here == "bench":  # the cases themselves
            continue
        names = set(imports(ast.parse(path.read_text(encoding="utf-8")))) - {here}
        wrong += [f"{place} imports {name}" for name in sorted(names) if FLOOR[name] >= FLOOR[here]]
    assert not wrong, "\n".join(wrong)
