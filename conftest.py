"""For `pytest bench/` in this clone: the plugin, and its options by their short names."""

import pytest

from qbert.pytest_plugin import add_options

pytest_plugins = ["qbert.pytest_plugin"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--model` and the others beside `--qbert-model`."""
    add_options(parser, "--")
