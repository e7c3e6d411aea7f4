"""Use this suite's fixture `cell`, even if a repository has another of that name."""

from qbert.pytest_plugin import cell

__all__ = ["cell"]
