"""Load a dataset folder and check all that training, timing or judging would otherwise trip over."""

import csv
import hashlib
import io
import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from qbert import InputError

BUILT_IN = "news_mini"
FILES = ("train.csv", "test.csv", "label.json")


class DatasetWarning(UserWarning):
    """The dataset can be used, but its figures deserve a second look."""


@dataclass(frozen=True)
class Dataset:
    """Texts with labels, in a split to train on and a split to judge by."""

    folder: Path
    """Where its files are."""
    label_names: tuple[str, ...]
    """The name of each label id."""
    train: pd.DataFrame
    """Columns `text`, `label` (int64 ids) and, for sentence pairs, `text_pair`."""
    test: pd.DataFrame
    """As `train`."""
    sha256: str
    """Of the three files' bytes."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    def documents(self, count: int | None = None) -> pd.DataFrame:
        """Return the test split, or a sample of `count` of it: the same one each time, in file order."""
        if count is None or count >= len(self.test):
            return self.test
        return self.test.sample(count, random_state=0).sort_index()

    def training_texts(self, count: int) -> list[tuple[str, ...]]:
        """Return the text, or the two texts of a pair, of `count` training documents: the same ones each time."""
        return text_rows(self.train.sample(min(count, len(self.train)), random_state=0))


def load(source: str | Path) -> Dataset:
    """Load the dataset folder `source`, or the built-in one by its name.

    Warns with DatasetWarning where rows occur in both splits.

    Raises:
        InputError: a file, column or label is missing or damaged; the message names file and line.
    """
    folder = _locate(source)
    contents = {}
    for name in FILES:
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise InputError(
                f"{folder / name} cannot be read ({error.strerror}): a dataset is a folder with {', '.join(FILES)}"
            ) from error
    label_names = _label_names(folder / "label.json", contents["label.json"])
    train, test = (_rows(folder / name, contents[name]) for name in ("train.csv", "test.csv"))
    if ("text_pair" in train) != ("text_pair" in test):
        raise InputError(f"{folder}: column 'text_pair' has to be in both train.csv and test.csv or in neither")
    train, test = _number_labels(folder, label_names, train, test)
    untrained = sorted(set(test["label"]) - set(train["label"]))
    if untrained:
        names = ", ".join(repr(label_names[label]) for label in untrained)
        raise InputError(f"{folder / 'test.csv'} has the label {names}, of which train.csv has no row: add some")
    _warn_of_duplicates(folder, train, test)
    digest = hashlib.sha256()
    for name in FILES:
        digest.update(hashlib.sha256(contents[name]).digest())
    return Dataset(folder.resolve(), label_names, train, test, digest.hexdigest())


def text_rows(documents: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return the text, or the two texts of a pair, of each document."""
    columns = [name for name in ("text", "text_pair") if name in documents]
    return list(documents[columns].itertuples(index=False, name=None))


def _locate(source: str | Path) -> Path:
    if source == BUILT_IN:
        package = Path(__file__).parent
        for folder in (package.parent / "data" / BUILT_IN, package / "data" / BUILT_IN):
            if folder.is_dir():
                return folder
    folder = Path(source)
    if not folder.is_dir():
        raise InputError(f"dataset {str(source)!r} is no folder: give one with {', '.join(FILES)}, or '{BUILT_IN}'")
    return folder


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: not UTF-8 (byte {error.object[error.start]:#04x}): save it as UTF-8"
        ) from error


def _label_names(path: Path, content: bytes) -> tuple[str, ...]:
    try:
        ids = json.loads(_text(path, content))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): it maps each label's name to its id") from error
    if not isinstance(ids, dict) or any(type(value) is not int for value in ids.values()):
        raise InputError(f'{path} has to map each label\'s name to its id, as in {{"sport": 0, "health": 1}}')
    if len(ids) < 2 or sorted(ids.values()) != list(range(len(ids))):  # noqa: PLR2004  one label is no choice
        raise InputError(
            f"{path} has the ids {sorted(ids.values())}: at least two are needed, 0, 1, 2 and so on, each once"
        )
    return tuple(sorted(ids, key=ids.__getitem__))


def _rows(path: Path, content: bytes) -> pd.DataFrame:
    """Return the needed columns of one CSV file as text, indexed by the line each row begins on."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a document may be longer than csv's 128 KiB
    reader = csv.reader(io.StringIO(_text(path, content), newline=""), strict=True)
    lines, rows = [], []
    start = 1
    try:
        header = next(reader, [])
        for name in ("text", "label"):
            if header.count(name) != 1:
                raise InputError(f"{path}: one column {name!r} is needed, its first line has {header}")
        columns = [name for name in ("text", "text_pair", "label") if name in header]
        start = reader.line_num + 1
        for row in reader:
            if row:  # a blank line is no row
                if len(row) != len(header):
                    raise InputError(
                        f"{path}, line {start}: {len(row)} fields where the first line has {len(header)}: "
                        "quote a text that holds commas"
                    )
                values = [row[header.index(name)] for name in columns]
                for name, value in zip(columns, values, strict=True):
                    if not value.strip():
                        raise InputError(f"{path}, line {start}: {name} is empty: fill it in or remove the row")
                lines.append(start)
                rows.append(values)
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, line {start}: broken CSV ({error}): double the quotes inside a quoted text"
        ) from error
    if not rows:
        raise InputError(f"{path} has no rows below its first line: add documents")
    return pd.DataFrame(rows, columns=columns, index=lines, dtype=str)


def _number_labels(folder: Path, label_names: tuple[str, ...], *splits: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the splits with label ids: read as names or as ids, whichever explains more of them."""
    by_name = {name: label for label, name in enumerate(label_names)}
    by_id = {str(label): label for label in range(len(label_names))}
    labels = [label for split in splits for label in split["label"]]
    known = max(by_name, by_id, key=lambda ids: sum(label in ids for label in labels))
    for split, file in zip(splits, FILES, strict=False):
        for line, label in split["label"].items():
            if label not in known:
                raise InputError(
                    f"{folder / file}, line {line}: label {label!r} is not in label.json, which has {', '.join(known)}"
                )
    return [split.assign(label=split["label"].map(known).astype("int64")).reset_index(drop=True) for split in splits]


def _warn_of_duplicates(folder: Path, train: pd.DataFrame, test: pd.DataFrame) -> None:
    texts = [name for name in ("text", "text_pair") if name in train]
    shared = test[texts].merge(train[texts].drop_duplicates(), on=texts)
    if len(shared):
        warnings.warn(
            f"{folder}: {len(shared)} of {len(test)} test rows are in train.csv too, so F1 flatters: remove them",
            DatasetWarning,
            stacklevel=3,
        )
