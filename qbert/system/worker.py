"""What every process that works for another does: end with its parent, answer requests, load a classifier, time calls.

It imports only the standard library: the gate loads this file in trees that lack it, too.
"""

import contextlib
import gc
import importlib
import inspect
import json
import math
import operator
import os
import signal
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

LIFELINE = "QBERT_LIFELINE"
"""The environment variable with the file descriptor of the child's end of a pipe that closes with its parent."""
WARM_UP_S = 0.15  # chooses kernels, touches memory, raises the clock: BERT-tiny is steady after 0.1 s


def end_with_parent() -> None:
    """Make this process, and the group that it leads, end with its parent, if that started it with children.tied."""
    if number := os.environ.pop(LIFELINE, ""):  # so that its own children do not inherit it
        pipe = int(number)
        os.set_inheritable(pipe, False)  # noqa: FBT003  the standard library's
        _watch(pipe)
        os.register_at_fork(after_in_child=lambda: _watch(pipe))  # a fork has no thread but that which forked


def _watch(pipe: int) -> None:
    threading.Thread(target=_end_after, args=(pipe,), daemon=True).start()


def _end_after(pipe: int) -> None:
    """Wait, without processor time, until the parent's end of `pipe` is closed; then end this process."""
    os.read(pipe, 1)
    if os.getpgrp() == os.getpid():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(0, signal.SIGKILL)
    os._exit(1)


def answer_requests(handler: object) -> None:
    """Answer the requests of children.Child, on standard input, by the methods of `handler` until there are no more."""
    end_with_parent()
    parent = Connection(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what this process starts has no part in it
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = json.loads(parent.recv_bytes())
            try:
                reply = {"answer": getattr(handler, request.pop("do"))(**request)}
            except Exception as error:  # noqa: BLE001  of any class; the parent reports it
                if os.environ.get("QBERT_TRACEBACK"):  # errors.TRACEBACK, which a tree may lack
                    traceback.print_exc()
                reply = _described(error)
            parent.send_bytes(json.dumps(reply).encode())


def _described(error: Exception) -> dict[str, str]:
    """Return a sentence on `error`, and which class of qbert.system.errors it is of, if any: a tree has its own."""
    classes = [base.__name__ for base in type(error).__mro__]
    kind = next((name for name in classes if name in {"CannotRunError", "InputError"}), "")
    lines = [text.strip() for text in str(error).splitlines() if text.strip()] or ["no message"]
    return {"error": lines[0] if kind else f"{classes[0]}: {lines[0]}", "kind": kind}


def import_modules(modules: Iterable[str]) -> None:
    """Import `modules`; where one fails, loading what needs it tells why."""
    for module in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)


def loading(function: Callable[..., Any], folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by which `load` calls, elsewhere, `function(folder)` with the `options` that it accepts."""
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {
        "module": function.__module__,
        "name": function.__qualname__,
        "folder": str(folder.resolve()),
        "options": {name: value for name, value in options.items() if takes_all or name in parameters},
    }


def load(module: str, name: str, folder: str, options: Mapping[str, Any]) -> Any:  # noqa: ANN401  a Classifier
    """Return the classifier `module.name(folder, **options)`."""
    return operator.attrgetter(name)(importlib.import_module(module))(Path(folder), **options)


def time_call(call: Callable[..., Any], *arguments: Any) -> float:  # noqa: ANN401  of any kind
    """Return the seconds of one call, with the garbage collector off."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        call(*arguments)
        return time.perf_counter() - start
    finally:
        if collecting:
            gc.enable()


def warm_up(timed_call: Callable[[], float], for_s: float = WARM_UP_S) -> float:
    """Make calls, each of which returns its seconds, for `for_s`; return the median of the later half."""
    calls: list[float] = []
    end = time.perf_counter() + for_s
    while not calls or time.perf_counter() < end:
        calls.append(timed_call())
    return statistics.median(calls[len(calls) // 2 :])


@dataclass(frozen=True)
class Turn:
    """How long a side calls when it is its turn; a call takes `cost_s`."""

    block_s: float
    """Of timed calls: clock and scheduler are too coarse for a single short one."""
    settle_s: float
    """Of untimed calls before these: they refill the caches after the other side's turn."""
    caches_filled_s: float
    """A call as long as this rereads more memory than caches hold, so what ran before it has no effect."""

    def settling_calls(self, cost_s: float) -> int:
        """Return the number of untimed calls."""
        return 0 if cost_s >= self.caches_filled_s else math.ceil(self.settle_s / cost_s)

    def timed_calls(self, cost_s: float) -> int:
        """Return the number of timed calls."""
        return max(1, round(self.block_s / cost_s))
