"""Modules by the names that they had when all lay side by side in qbert/, for one release.

Plugins of users import them by these names, and so does the worker of a gate whose head is older than its base.
"""

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ROOMS = ("system", "inputs", "variants", "measure", "selection")
RENAMED = {"suite": "cells"}


class FormerNames:
    """Finds and loads `qbert.NAME` from the room that has it now; to import the classes of finders takes 20 ms."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002  importlib gives them
        """Return a spec that loads the module of today; None where there is none."""
        package, _, name = fullname.rpartition(".")
        if package != "qbert" or name in ROOMS:
            return None
        for room in ROOMS:
            if today := importlib.util.find_spec(f"qbert.{room}.{RENAMED.get(name, name)}"):
                loader: Any = self  # it has what is called
                return ModuleSpec(fullname, loader, origin=today.origin, loader_state=today)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module of today."""
        return importlib.import_module(spec.loader_state.name)

    def exec_module(self, module: ModuleType) -> None:
        """Undo what importing by another name has changed."""
        assert module.__spec__ is not None  # noqa: S101  importlib has set it
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Make the former names known."""
    if not any(isinstance(finder, FormerNames) for finder in sys.meta_path):
        sys.meta_path.append(FormerNames())
