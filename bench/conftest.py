"""The fixture `cell` is ours here, even where a repository has another of that name."""

from qbert.pytest_plugin import cell

__all__ = ["cell"]
