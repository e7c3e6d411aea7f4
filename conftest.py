"""For `pytest bench/` in this clone: the plugin, and its options by their short names."""

import pytest


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Load the plugin, whether or not it is installed, and add `--model` and the others beside `--qbert-model`."""
    pluginmanager.import_plugin("qbert.pytest_plugin")
    from qbert.pytest_plugin import add_options, check_benchmarks

    check_benchmarks(pluginmanager)  # pyproject.toml has options of it, which pytest would not know
    add_options(parser, "--")
