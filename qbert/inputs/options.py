"""The options of the benchmarks, each described once: for pytest, the commands, `[tool.qbert]` and `qbert fleet`.

It imports the standard library alone: pytest loads it in every project of the environment.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Number:
    """A kind of number within bounds; a call reads one, and raises ValueError where the text is none."""

    name: str
    """What argparse calls it: invalid positive int value: '0'."""
    kind: type[int] | type[float]
    least: float
    most: float | None = None
    above: bool = False
    """Whether `least` itself is too little."""

    def __call__(self, text: str) -> Any:  # noqa: ANN401  a `kind`
        """Return the number that `text` says."""
        value = self.kind(text)
        if not self.least <= value <= (value if self.most is None else self.most) or (
            self.above and value == self.least
        ):
            raise ValueError
        return value

    def __repr__(self) -> str:
        """Return its name, which argparse shows."""
        return self.name


COUNT = Number("positive int", int, 1)
POSITIVE = Number("positive float", float, 0, 1e9, above=True)
DROP = Number("drop", float, -1, 1)
"""A drop of the score; a negative one is a gain."""


def counts(text: str) -> tuple[int, ...]:
    """Read a comma-separated list of numbers above 0: of tokens, workers or threads."""
    return tuple(dict.fromkeys(COUNT(part) for part in text.split(",")))


def name(text: str) -> str:
    """Read a name, which is not empty."""
    if not text.strip():
        raise ValueError
    return text.strip()


@dataclass(frozen=True)
class Option:
    """An option of the benchmarks."""

    name: str
    """Without hyphens in front: `--qbert-NAME` everywhere, `--NAME` in a clone of qbert and for `qbert bench`."""
    metavar: str
    help: str
    parse: Callable[[str], Any] = str
    default: Any = None
    key: str = ""
    """Its key in `[tool.qbert]`, whose default it then has; empty where there is none."""
    choices: tuple[str, ...] = ()
    is_flag: bool = False
    repeatable: bool = False
    of_machine: bool = False
    """Whether it is of one machine, so that `qbert fleet` does not forward it."""
    former: str = ""
    """A name that it had before, and still answers to."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, and its former one."""
        return tuple(filter(None, (self.name, self.former)))

    @property
    def dest(self) -> str:
        """The name of its value in pytest's options."""
        return f"qbert_{self.name.replace('-', '_')}"

    @property
    def description(self) -> str:
        """Its help, with whether it is repeatable."""
        return f"{self.help}; repeatable" if self.repeatable else self.help

    def for_pytest(self) -> dict[str, Any]:
        """Return the arguments of pytest's `addoption`."""
        how: dict[str, Any] = {"dest": self.dest, "help": self.description}
        if self.is_flag:
            return how | {"action": "store_true"}
        if self.choices:
            return how | {"choices": self.choices}
        return how | {
            "metavar": self.metavar,
            "default": None if self.key else self.default,
            **({"action": "append"} if self.repeatable else {"type": self.parse}),
        }


_ALL = (
    Option(
        "model",
        "MODEL",
        "checkpoint folder, hub id or built-in model",
        default=("bert-base", "bert-tiny"),
        key="models",
        repeatable=True,
    ),
    Option(
        "dataset",
        "DIR",
        "folder with train.csv, test.csv and, for labels, label.json",
        default="news_mini",
        key="dataset",
    ),
    Option(
        "variants", "LIST", "names with commas between; also 'default' and 'all'", default="default", key="variants"
    ),
    Option("max-lengths", "LIST", "tokens: 128,256,384", counts, (128, 256, 384), key="max_lengths"),
    Option("documents", "N", "judge by a sample of N test documents, not by all", COUNT),
    Option(
        "max-drop",
        "DROP",
        "greatest drop allowed, of F1 or of what else answers are judged by (the variant's own: 0.01)",
        DROP,
        key="max_drop",
        former="max-f1-drop",
    ),
    Option(
        "drop-guard",
        "",
        "judge the drop (point), or what it surely does not exceed (interval)",
        default="point",
        key="drop_guard",
        choices=("point", "interval"),
        former="f1-guard",
    ),
    Option(
        "strict-guard", "", "fail for every variant over its limit, not only for those that are named", is_flag=True
    ),
    Option("seconds-per-cell", "S", "time to measure each cell of latency and of capacity for", POSITIVE, 1.5),
    Option("experiments", "N", "training seeds of each built-in model", COUNT, 1),
    Option(
        "workers", "LIST", "capacity: processes at the same time, such as 1,2,4 (one for each physical core)", counts
    ),
    Option("traffic", "FILE", "capacity: the texts to serve, one a line or a CSV column 'text' (the test documents)"),
    Option("latency-limit", "MS", "capacity: how long 99 of 100 requests may take, waiting included", POSITIVE, 50.0),
    Option(
        "price-per-hour",
        "PRICE",
        "capacity: of this machine, to tell what a million texts cost",
        POSITIVE,
        key="price_per_hour",
        of_machine=True,
    ),
    Option(
        "machine-name",
        "NAME",
        "what saved runs and reports call this machine (its processor, instruction sets and cores)",
        name,
    ),
    Option("threads", "LIST", "capacity: more cells, of one process with this many threads, such as 1,2", counts),
    Option("batch", "LIST", "capacity: more cells, of calls with this many texts, such as 8", counts),
)
OPTIONS = {option.name: option for option in _ALL}
"""By name, in the order of the help."""
