"""The figures of a cell in a saved run, and damaged copies of saved runs: in a value, a key, some bits, the end."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

FIGURES: dict[str, dict[str, Any]] = {
    "latency": {"speedup": 1.0},
    "accuracy": {
        "documents": 500,
        "f1": 0.95,
        "f1_baseline": 0.95,
        "f1_drop_low": -0.01,
        "f1_drop_high": 0.01,
        "flips": 0,
        "mcnemar_p": 1.0,
        "visible_drop": 0.012,
        "max_f1_drop": 0.01,
        "f1_guard": "point",
        "flipped": [],
    },
    "footprint": {"disk_bytes": 4e8, "load_s": 0.5, "first_call_s": 0.2, "peak_rss_bytes": 5e8},
    "capacity": {
        "workers": 2,
        "worker_threads": 1,
        "texts_per_s": 40.0,
        "worker_shares": [0.52, 0.48],
        "loaded_p50_s": 0.1,
        "loaded_worst_s": 0.9,
        "latency_limit_s": 0.05,
        "rates": [4.0, 36.0],
        "rates_p99_s": [0.04, 0.2],
        "rate_within_limit": 8.0,
        "traffic": "texts of news",
        "traffic_sha256": "e" * 64,
        "traffic_tokens": {"p5": 20, "p50": 60, "p95": 128},
        "capacity_notes": [],
        "answers_compared": 300,
    },
}
"""The keys of `extra_info` that each measurement requires besides the cell and its percentiles."""
DEPTH = 100_000
MARK = "garbled-here"
VALUES: dict[str, Any] = {
    "null": None,
    "a text": "x",
    "a number as text": "0.5",
    "true": True,
    "a list": [],
    "an object": {},
    "zero": 0,
    "negative": -3.5,
    "huge": 1e300,
    "a huge whole number": 10**40,
    "deep nesting": MARK,
}


def garbled_runs(run: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` damages of the saved run `run`, chosen by `seed`: a description, and the damaged copy.

    In turn, values are replaced, a key is misspelt, the file is cut off, and some of its bits are flipped.
    """
    content = json.loads(run)
    generator = random.Random(seed)  # noqa: S311  nothing secret is drawn
    damages = (_replaced, _replaced, _replaced, _misspelt, _truncated, _flipped)
    for number in range(count):
        yield damages[number % len(damages)](run, content, generator)


def _replaced(_: bytes, content: Any, generator: random.Random) -> tuple[str, bytes]:
    """Replace a value, but none of the rounds, which are most of a run and which nothing reads."""
    content = copy.deepcopy(content)
    place = _place(content, generator)
    inner = _at(content, place[:-1])
    name = generator.choice([one for one, value in VALUES.items() if inner[place[-1]] != value])
    inner[place[-1]] = VALUES[name]
    text = json.dumps(content).replace(f'"{MARK}"', "[" * DEPTH + "]" * DEPTH)
    return f"{name} at {'.'.join(map(str, place))}", text.encode()


def _misspelt(_: bytes, content: Any, generator: random.Random) -> tuple[str, bytes]:
    content = copy.deepcopy(content)
    place = _place(content, generator)
    while not isinstance(place[-1], str):
        place = place[:-1]
    inner = _at(content, place[:-1])
    inner[place[-1] + "x"] = inner.pop(place[-1])
    return f"misspelt {'.'.join(map(str, place))}", json.dumps(content).encode()


def _truncated(run: bytes, _: Any, generator: random.Random) -> tuple[str, bytes]:
    end = generator.randrange(len(run.rstrip()))
    return f"cut off at {end}", run[:end]


def _flipped(run: bytes, _: Any, generator: random.Random) -> tuple[str, bytes]:
    changed = bytearray(run)
    places = [generator.randrange(len(run)) for _ in range(generator.randint(1, 20))]
    for place in places:
        changed[place] ^= 1 << generator.randrange(8)
    return f"{len(places)} bits flipped, from {min(places)}", bytes(changed)


def _place(content: Any, generator: random.Random) -> list[str | int]:
    """Return the path of keys to a value of `content`; at each level it ends with a probability of one in four."""
    place: list[str | int] = []
    inner = content
    while isinstance(inner, dict | list) and inner and (not place or generator.random() < 0.75):
        keys = [key for key in (inner if isinstance(inner, dict) else range(len(inner))) if key != "data"]
        key = generator.choice(keys)
        if not place and generator.random() < 0.75 and "benchmarks" in inner:
            key = "benchmarks"
        place.append(key)
        inner = inner[key]
    return place


def _at(content: Any, place: list[str | int]) -> Any:
    for key in place:
        content = content[key]
    return content
