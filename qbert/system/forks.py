"""A fork waits until no thread classifies: its child would inherit locks that threads hold, and hang at its first call.

The locks are ours and those of the runtimes and tokenizers, which cannot be made anew from here.
"""

import logging  # noqa: F401  what is registered later is run earlier at a fork: calls can log while it waits for them
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING

from qbert.system.errors import InputError

if TYPE_CHECKING:
    Lock = threading.RLock

WAIT_S = 30.0  # longer than calls take that wait for one another; what takes longer may hang


class _State:
    """A lock for each thread, which it holds during its calls."""

    def __init__(self, *, interrupted: bool = False) -> None:
        self.own = threading.local()
        self.locks: weakref.WeakSet[Lock] = weakref.WeakSet()
        self.changing = threading.Lock()
        self.interrupted = interrupted


_state = _State()
_taken: "list[Lock]" = []


def call() -> "Lock":
    """Return the lock to hold during a call, so that no other thread forks meanwhile.

    Raises:
        InputError: this process was forked during a call.
    """
    try:
        return _state.own.lock  # type: ignore[no-any-return]
    except AttributeError:
        return _new_lock()


def _new_lock() -> "Lock":
    if _state.interrupted:
        raise InputError(
            f"this process was forked while a thread classified for more than {WAIT_S:g} s, so its own calls might "
            "hang: fork before threads classify, or start processes by spawn"
        )
    lock = threading.RLock()  # one that forks during its own call does not wait for itself
    with _state.changing:
        _state.locks.add(lock)
    _state.own.lock = lock
    return lock


def _wait() -> None:
    end = time.monotonic() + WAIT_S
    _state.changing.acquire()
    _taken.extend(lock for lock in _state.locks if lock.acquire(timeout=max(0.0, end - time.monotonic())))


def _go_on() -> None:
    for lock in _taken:
        lock.release()
    _taken.clear()
    _state.changing.release()


def _begin_anew() -> None:
    global _state  # noqa: PLW0603  the threads of the locks are not in this process
    _state = _State(interrupted=_state.interrupted or len(_taken) < len(_state.locks))
    _taken.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait, after_in_parent=_go_on, after_in_child=_begin_anew)
