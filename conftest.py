"""For `pytest bench/` in this clone: the plugin, and its options by their short names."""

import pytest

pytest_plugins = ["qbert.pytest_plugin"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--model` and the others beside `--qbert-model`."""
    from qbert.pytest_plugin import add_options  # not before pytest has seen it as a plugin

    add_options(parser, "--")
