"""The table `[tool.qbert]` of the user's pyproject.toml: the settings where the command line gives none."""

import fnmatch
import importlib
import math
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, structs

from qbert.inputs.options import COUNT, DROP, OPTIONS, POSITIVE, Number
from qbert.system import parse
from qbert.system.errors import InputError, reason

PYPROJECT = "pyproject.toml"
TABLE = "tool", "qbert"


def _within(number: Number) -> Meta:
    """Return the bounds of `number` as msgspec checks them."""
    bounds = {"gt" if number.above else "ge": number.least} | ({} if number.most is None else {"le": number.most})
    return Meta(**bounds)  # type: ignore[call-overload,no-any-return]


Length = Annotated[int, _within(COUNT)]
Drop = Annotated[float, _within(DROP)]
AtMost = Annotated[float, Meta(ge=0, lt=1e12)]
Price = Annotated[float, _within(POSITIVE)]


class Limit(Struct, frozen=True, forbid_unknown_fields=True):
    """A row of `[[tool.qbert.gate.limits]]`: some cells, and the most that head may show in them."""

    model: str = "*"
    max_length: Length | None = None
    variant: str = "*"
    max_latency_ms: AtMost = math.inf
    max_drop: Drop = math.inf
    """Compared with fp32 of the same side."""
    max_f1_drop: Drop = math.inf
    """The former name of `max_drop`."""
    max_disk_mb: AtMost = math.inf
    max_memory_mb: AtMost = math.inf

    @property
    def drop(self) -> float:
        """The most that the score may drop."""
        return min(self.max_drop, self.max_f1_drop)

    def covers(self, model: str, max_length: int, variant: str) -> bool:
        """Whether it applies to this cell."""
        return (
            fnmatch.fnmatchcase(model, self.model)
            and self.max_length in (None, max_length)
            and fnmatch.fnmatchcase(variant, self.variant)
        )


class Gate(Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[tool.qbert.gate]`."""

    limits: tuple[Limit, ...] = ()


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[tool.qbert]`, with the defaults for what it and the command line leave out."""

    models: Annotated[tuple[str, ...], Meta(min_length=1)] = OPTIONS["model"].default
    dataset: str = OPTIONS["dataset"].default
    variants: str | tuple[str, ...] = OPTIONS["variants"].default
    max_lengths: Annotated[tuple[Length, ...], Meta(min_length=1)] = OPTIONS["max-lengths"].default
    max_drop: Drop | None = None
    drop_guard: Literal["point", "interval"] = OPTIONS["drop-guard"].default
    price_per_hour: Price | None = None
    """Of the machine, in any currency."""
    prices: dict[str, Price] = {}
    """Of each machine that a report of several names, an hour, in one currency."""
    plugins: tuple[str, ...] = ()
    gate: Gate = Gate()
    max_f1_drop: Drop | None = None
    """The former name of `max_drop`; after `read` it is None."""
    f1_guard: Literal["point", "interval"] | None = None
    """The former name of `drop_guard`; after `read` it is None."""

    def but(self, **given: Any) -> "Settings":  # noqa: ANN401  of each setting's own type
        """Return these settings, replaced by those of the command line, `given`, that are neither None nor empty."""
        said = {name: value for name, value in given.items() if value not in (None, (), [])}
        return structs.replace(self, **{name: tuple(it) if isinstance(it, list) else it for name, it in said.items()})

    @property
    def variant_list(self) -> str:
        """The variants' names with commas between."""
        return self.variants if isinstance(self.variants, str) else ",".join(self.variants)


DEFAULTS = Settings()
DEFAULT_MAX_LENGTH = 384
"""The maximum length of a model without a record of the one at which it was trained."""


def nearest(folder: Path) -> Path | None:
    """Return the pyproject.toml in `folder` or the nearest one above it; None where there is none."""
    places = (place / PYPROJECT for place in (folder, *folder.parents))
    return next((path for path in places if path.is_file()), None)


def read(path: Path | None) -> Settings:
    """Return the table `[tool.qbert]` in the file `path`; the defaults where there is no file or table.

    Paths of models and of the dataset are relative to the file, and become absolute.

    Raises:
        InputError: the file is no TOML, or the table has an unknown key or a value of another type.
    """
    if path is None or not path.is_file():
        return DEFAULTS
    try:
        table: Any = tomllib.loads(parse.read_bytes(path, "it may hold the table [tool.qbert]").decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no TOML ({reason(error)}): mend it, since it may hold [tool.qbert]") from error
    for name in TABLE:
        table = table.get(name, {}) if isinstance(table, dict) else table
    if isinstance(table, dict) and isinstance(table.get("models"), str):
        table = table | {"models": [table["models"]]}
    names = ", ".join(Settings.__struct_fields__)
    remedy = f"it has the keys {names}; a row of gate.limits has {', '.join(Limit.__struct_fields__)}"
    settings = parse.convert(table, Settings, f"{path}: [tool.qbert]", remedy)
    for name, former in (("max_drop", "max_f1_drop"), ("drop_guard", "f1_guard")):
        if (said := getattr(settings, former)) is not None:
            if name in table:
                raise InputError(f"{path}: [tool.qbert] has {name} and {former}, its former name: leave one out")
            settings = structs.replace(settings, **{name: said, former: None})
    return structs.replace(
        settings, models=_from(path.parent, settings.models), dataset=_from(path.parent, [settings.dataset])[0]
    )


def _from(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Return `names`; those that are folders relative to `folder` become absolute, unless they name built-in ones."""
    from qbert.inputs.dataset import BUILT_IN
    from qbert.inputs.training import GEOMETRIES

    return tuple(
        str((folder / name).absolute()) if name not in {BUILT_IN, *GEOMETRIES} and (folder / name).is_dir() else name
        for name in names
    )


def here(folder: Path, **given: Any) -> Settings:  # noqa: ANN401  of each setting's own type
    """Return the settings of `folder`, replaced by what the command line has `given`, with their plugins imported.

    Raises:
        InputError: the table `[tool.qbert]` cannot be used, or a plugin cannot be imported.
    """
    path = nearest(folder)
    settings = read(path).but(**given)
    if path:
        import_plugins(settings, path.parent)
    return settings


def import_plugins(settings: Settings, folder: Path) -> None:
    """Import the modules that add variants; they may be in `folder`, beside pyproject.toml, for child processes, too.

    Raises:
        InputError: one cannot be imported.
    """
    if settings.plugins and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    for name in settings.plugins:
        import_plugin(name, f"{folder / PYPROJECT}: [tool.qbert] plugins:")


def import_plugin(name: str, named_by: str) -> None:
    """Import the module `name`, which adds variants; `named_by` begins the error and says where the name is from.

    Raises:
        InputError: it cannot be imported.
    """
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a module may raise anything, and may end the process
        why = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {reason(error)}"
        raise InputError(
            f"{named_by} {name} cannot be imported ({why}): give a module that Python finds from here"
        ) from error
