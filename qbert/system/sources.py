"""The source files that a result depends on: those of a module and of all that it imports, directly or indirectly.

It imports only the standard library: the gate runs this file in the interpreter of each side, on that side's code.
"""

import ast
import hashlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

COMPILED = ("*.h", "*.cpp", "kernels/*.h")
"""Sources that the module beside them compiles at first use."""
LIBRARIES = {"site-packages", "dist-packages"}
"""The names of folders of installed libraries, also of those that a .pth file adds to the module path."""


@cache
def sha256(*modules: str) -> str:
    """Return the hash of the sources that `modules`, named as they are imported, depend on.

    Imports inside functions count, those for type checkers do not. Libraries are left out: their versions are recorded.
    """
    digest = hashlib.sha256()
    for name, path in sorted(files(*modules).items()):
        beside = sorted(file for pattern in COMPILED for file in path.parent.glob(pattern))
        for file in (path, *beside):
            within = file.relative_to(path.parent).as_posix()
            digest.update(f"{name} {within} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def files(*modules: str) -> dict[str, Path]:
    """Return the source file of each module that `modules` depend on, by the module's name.

    Raises:
        ModuleNotFoundError: there is no module of one of these names: its hash would hide every change.
    """
    own = frozenset({"qbert", *(name.partition(".")[0] for name in modules)})
    for name in modules:
        if name not in sys.modules and _spec(name, own) is None:
            raise ModuleNotFoundError(f"there is no module {name} to hash", name=name)
    paths: dict[str, Path] = {}
    pending = list(modules)
    while pending:
        name = pending.pop()
        spec = None if name in paths else _spec(name, own)
        if spec and spec.origin and spec.origin.endswith(".py"):
            paths[name] = Path(spec.origin)
            package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
            if not name.startswith("qbert."):
                pending.append(name.rpartition(".")[0])  # a stranger's package may do anything when it is imported
            for module, attribute in _imports(ast.parse(paths[name].read_bytes()), package):
                part = f"{module}.{attribute}"
                pending.append(part if attribute and _spec(part, own) else module)
    return paths


@cache
def _spec(name: str, own: frozenset[str]) -> importlib.machinery.ModuleSpec | None:
    """Return the spec of the module `name`; None where it is no module, or of the standard library or a library."""
    top = name.partition(".")[0]
    if not _is_own(top, own):
        return None
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a function's or a class's name
        return None


@cache
def _is_own(top: str, own: frozenset[str]) -> bool:
    """Whether the top-level module `top` is one of `own`, or neither in the standard library nor installed."""
    if top in sys.stdlib_module_names or top == "__main__":
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None or top in own:
        return spec is not None
    places = [spec.origin, *(spec.submodule_search_locations or ())]
    return not any(place and LIBRARIES.intersection(Path(place).parts) for place in places)


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """Yield the imports in `tree`, of a module in `package`: `(module, "")`, or `(module, name)` of a `from` import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).removeprefix("typing.") == "TYPE_CHECKING":
            yield from _imports(ast.Module(node.orelse, []), package)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            module = importlib.util.resolve_name(name, package) if node.level else name
            yield from ((module, alias.name) for alias in node.names)
        else:
            yield from _imports(node, package)
