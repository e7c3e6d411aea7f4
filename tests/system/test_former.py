"""Modules are found by the names that they had before they lay in rooms."""

import importlib
import sys

import pytest

from qbert.system import former


@pytest.mark.parametrize(
    ("name", "today"),
    [
        ("errors", "system.errors"),
        ("checkpoint", "inputs.checkpoint"),
        ("serving", "variants.serving"),
        ("suite", "measure.cells"),
        ("evaluation", "selection.evaluation"),
    ],
)
def test_a_former_name_is_the_module_of_today(name: str, today: str) -> None:
    module = importlib.import_module(f"qbert.{today}")
    sys.modules.pop(f"qbert.{name}", None)
    assert importlib.import_module(f"qbert.{name}") is module
    assert module.__name__ == module.__spec__.name == f"qbert.{today}"


@pytest.mark.parametrize("name", ["qbert.no_such_module", "qbert.system.checkpoint", "another.checkpoint"])
def test_no_other_name_is_found(name: str) -> None:
    assert former.FormerNames().find_spec(name) is None
