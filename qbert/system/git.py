"""Start git, which then sees the folder that it runs in, and neither hooks nor what a git that started us told us."""

import os
import subprocess
from collections.abc import Collection
from functools import cache

EVENTS = ("post-checkout", "post-index-change", "reference-transaction")
"""Of what our commands do, those for which git runs hooks."""
NO_HOOKS = ("core.hooksPath=/dev/null", "core.fsmonitor=false", *(f"hook.{event}.enabled=false" for event in EVENTS))
"""Settings with which no program of the repository runs but its filters; a hook of the settings needs git 2.55."""


class GitError(Exception):
    """Git failed; the message is its own, on one line."""


def run_git(*arguments: str) -> str:
    """Return git's output.

    Raises:
        GitError: it fails, or cannot be started.
    """
    settings = (part for setting in NO_HOOKS for part in ("-c", setting))
    return _start(*settings, *arguments, hidden=names_of_a_repository())


@cache
def names_of_a_repository() -> Collection[str]:
    """Return the environment variables by which git tells hooks and aliases of its repository, index and settings."""
    return _start(
        "rev-parse", "--local-env-vars", hidden=[name for name in os.environ if name.startswith("GIT_")]
    ).split()


def _start(*arguments: str, hidden: Collection[str]) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    try:
        done = subprocess.run(["git", *arguments], env=environment, capture_output=True, check=False)  # noqa: S603, S607
    except OSError as error:
        raise GitError(f"git cannot be started ({error.strerror})") from error
    if done.returncode:
        said = " ".join(os.fsdecode(done.stderr).split())
        raise GitError(said or f"git ended with exit code {done.returncode}")
    return os.fsdecode(done.stdout).removesuffix("\n")
