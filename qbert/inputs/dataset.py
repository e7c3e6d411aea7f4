"""Load a dataset folder, and check it so that training, timing and judging do not fail on it."""

import csv
import hashlib
import io
import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qbert.inputs.labels import Indicators, one_hot
from qbert.system.errors import InputError
from qbert.system.parse import check_name, decode, read_bytes
from qbert.system.terminal import counted

BUILT_IN = "news_mini"
SPLITS = ("train.csv", "test.csv")
LABELS = "label.json"
FILES = (*SPLITS, LABELS)
"""Of a dataset with labels; one with numbers has the first two."""
LEAST_DOCUMENTS = 20  # to choose a model by: fewer decide nothing


class DatasetWarning(UserWarning):
    """The dataset can be used, but its figures may mislead."""


@dataclass(frozen=True)
class Dataset:
    """Texts with labels or numbers, in a training split and a test split."""

    folder: Path
    """The folder of its files."""
    label_names: tuple[str, ...]
    """The names of the labels, in the order of their ids; empty where documents have numbers."""
    train: pd.DataFrame
    """Columns `text`, for sentence pairs `text_pair`, and `label` (int64 ids) or `labels` (tuples of ids).

    Where documents have numbers, `label` is of float64, and where they are ranked, `query` says within which query.
    """
    test: pd.DataFrame
    """The same columns as `train`."""
    sha256: str
    """The hash of its files."""
    order: tuple[int, ...] = ()
    """The ids of the labels in the order in which a model has them; empty where that is by id."""
    ids: Mapping[str, int] = field(default_factory=dict)
    """The id of each label by what stands in the files: its name, or the id itself."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the labels, in the order in which the model has them."""
        return tuple(self.label_names[label] for label in self.order) or self.label_names

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files."""
        return FILES if self.label_names else SPLITS

    @property
    def ranked(self) -> bool:
        """Whether a document's number is its relevance for a query."""
        return "query" in self.train

    @property
    def multi_label(self) -> bool:
        """Whether a document has any number of labels."""
        return "labels" in self.train

    def indicators(self, documents: pd.DataFrame) -> Indicators:
        """Return which labels each of `documents`, rows of a split, has; the shape is `(documents, num_labels)`.

        The labels are in the order of `names`.
        """
        count = len(self.label_names)
        if self.multi_label:
            result = np.zeros((len(documents), count), dtype=bool)
            for row, ids in enumerate(documents["labels"]):
                result[row, list(ids)] = True
        else:
            result = one_hot(documents["label"].to_numpy(), count)
        return result[:, self.order] if self.order else result

    def documents(self, count: int | None = None) -> pd.DataFrame:
        """Return the test split, or a sample of `count` documents: always the same, in file order.

        Queries are drawn whole: as many as have `count` documents or the first one more.
        """
        if count is None or count >= len(self.test):
            return self.test
        if not self.ranked:
            return self.test.sample(count, random_state=0).sort_index()
        drawn = _shuffled(self.test)
        sample = drawn[drawn["query"].isin(drawn["query"].iloc[:count])].sort_index()
        _check_queries(f"{self.folder / SPLITS[1]}, {counted(len(sample), 'document')} of it", sample)
        return sample

    def training_texts(self, count: int) -> list[tuple[str, ...]]:
        """Return the text, or the two texts of a pair, of `count` training documents: always the same."""
        return text_rows(self.calibration(count))

    def calibration(self, count: int) -> pd.DataFrame:
        """Return `count` training documents, always the same: those that variants are calibrated on."""
        return _shuffled(self.train).iloc[:count]

    def held_out(self, calibration: int) -> pd.DataFrame:
        """Return half of the training split, always the same and stratified by label, without the `training_texts`.

        `calibration` is how many of these there are. With several labels a document's stratum is its set of labels.
        Queries are held out whole.
        """
        if self.ranked:
            drawn = _shuffled(self.train)
            rest = drawn[~drawn["query"].isin(drawn["query"].iloc[:calibration])]
            return rest[rest["query"].isin(rest["query"].iloc[: len(self.train) // 2])].sort_index()
        rest = self.train.drop(self.calibration(calibration).index).sample(frac=1, random_state=0)
        rest = rest.sort_values("labels" if self.multi_label else "label", kind="stable")
        # Evenly over all strata, as those of one document cannot be halved.
        taken = min(len(rest), len(self.train) // 2)
        return rest.iloc[[place * len(rest) // taken for place in range(taken)]].sort_index()

    def to_choose_by(
        self, validation: Path | None, calibration: int, trained_on: str | None
    ) -> tuple[pd.DataFrame, str]:
        """Return the documents to choose a model by, in random order, and a sentence on what they are.

        Those of the file `validation`, or else half of the training split without its `calibration` documents.
        `trained_on` is the hash of the dataset that the model was trained on, where that is known.

        Raises:
            InputError: the file cannot be used or has rows of the test split, or the training split is too small.
        """
        if validation is not None:
            documents = self.read_like_train(validation)
            texts, known, tested = (set(text_rows(rows)) for rows in (documents, self.train, self.test))
            if texts & tested:
                raise InputError(
                    f"{validation}: {len(texts & tested)} of {counted(len(documents), 'row')} are in test.csv too, on "
                    "which the choice is judged: remove them"
                )
            said = f"Chosen by {counted(len(documents), 'document')} of {validation.name}"
            if self.ranked:
                _check_queries(str(validation), documents)
            seen = len(texts & known)
            said += f"; {seen} of them are in train.csv, so the model may have seen them." if seen else "."
            return _shuffled(documents), said
        documents = self.held_out(calibration)
        if len(documents) < LEAST_DOCUMENTS:
            raise InputError(
                f"{self.folder / 'train.csv'} has {counted(len(self.train), 'row')}, too few to hold any out "
                "to choose by: add some, or give a file of other documents (--validation)"
            )
        if self.ranked:
            _check_queries(f"{self.folder / SPLITS[0]}, held-out rows", documents)
        said = f"Chosen by {counted(len(documents), 'document')} of train.csv, which no variant is calibrated on"
        answers = "labels" if self.label_names else "answers"
        if trained_on == self.sha256:
            said += f", but which the model was trained on: on unseen text {answers} change more (--validation FILE)."
        else:
            said += f". If the model was trained on them, {answers} change more on unseen text (--validation FILE)."
        return _shuffled(documents), said

    def read_like_train(self, path: Path) -> pd.DataFrame:
        """Return the documents in `path`, a file with the columns of train.csv.

        Raises:
            InputError: it cannot be read, lacks a column, or has another label.
        """
        content = read_bytes(path, "give a CSV file with the columns of train.csv")
        rows = _rows(path, content, numbers=not self.label_names)
        if set(rows) != set(self.train):
            found, needed = (", ".join(split.columns) for split in (rows, self.train))
            raise InputError(f"{path} has the columns {found}, not {needed}: name them alike")
        if not self.label_names:
            return _read_numbers(path, rows)
        return _number_labels(self.ids or _label_ids(self.label_names, [rows]), {path: rows})[0]


def load(source: str | Path) -> Dataset:
    """Load the dataset folder `source`, or the built-in one by its name.

    Without label.json its labels are numbers.

    Warns with DatasetWarning where rows occur in both splits, and where queries cannot be ranked.

    Raises:
        InputError: a file, column or label is missing or damaged; the message names file and line.
    """
    folder = _locate(source)
    check_name(Path(folder.resolve().name))  # records hold it
    needed = files_of(folder)
    has_labels = LABELS in needed
    contents = {}
    for name in needed:
        contents[name] = read_bytes(folder / name, f"a dataset is a folder with {', '.join(FILES)}")
    label_names = _label_names(folder / LABELS, contents[LABELS]) if has_labels else ()
    train, test = (_rows(folder / name, contents[name], numbers=not has_labels) for name in SPLITS)
    for name in ("text_pair", "labels", "query"):
        if (name in train) != (name in test):
            raise InputError(f"{folder}: column {name!r} has to be in both train.csv and test.csv or in neither")
    digest = hashlib.sha256()
    for content in contents.values():
        digest.update(hashlib.sha256(content).digest())
    if not has_labels:
        train, test = (_read_numbers(folder / name, split) for name, split in zip(SPLITS, (train, test), strict=True))
        _warn_of_duplicates(folder, train, test)
        loaded = Dataset(folder.resolve(), (), train, test, digest.hexdigest())
        if loaded.ranked and (alike := _check_queries(str(folder / SPLITS[1]), test)):
            warnings.warn(
                f"{folder / SPLITS[1]}: {len(alike)} of {test['query'].nunique()} queries, such as {alike[0]!r}, have "
                "one passage or one label: no order is better than another, so they are not judged",
                DatasetWarning,
                stacklevel=2,
            )
        return loaded
    ids = _label_ids(label_names, [train, test])
    train, test = _number_labels(ids, {folder / "train.csv": train, folder / "test.csv": test})
    train_labels, test_labels = (
        set(split["labels"].explode().dropna() if "labels" in split else split["label"]) for split in (train, test)
    )
    if untrained := sorted(test_labels - train_labels):
        names = ", ".join(repr(label_names[label]) for label in untrained)
        raise InputError(f"{folder / 'test.csv'} has the label {names}, of which train.csv has no row: add some")
    _warn_of_duplicates(folder, train, test)
    return Dataset(folder.resolve(), label_names, train, test, digest.hexdigest(), ids=ids)


def files_of(folder: str | Path) -> tuple[str, ...]:
    """Return the names of the files of the dataset in `folder`: those of one with labels, or with numbers."""
    return FILES if os.path.lexists(Path(folder) / LABELS) or not Path(folder).is_dir() else SPLITS


def _shuffled(documents: pd.DataFrame) -> pd.DataFrame:
    """Return `documents` in random order, always the same; those of a query follow one another."""
    if "query" not in documents:
        return documents.sample(frac=1, random_state=0)
    queries = documents["query"].drop_duplicates().sample(frac=1, random_state=0)
    place = pd.Series(range(len(queries)), index=queries)
    return documents.iloc[documents["query"].map(place).argsort(kind="stable")]


def text_rows(documents: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return the text, or the two texts of a pair, of each document."""
    columns = [name for name in ("text", "text_pair") if name in documents]
    return list(documents[columns].itertuples(index=False, name=None))


def traffic(path: Path) -> list[tuple[str, ...]]:
    """Return the texts in the file `path`, one a line, or of a CSV file its columns `text` and, for pairs, `text_pair`.

    Blank ones are left out: a service refuses them.

    Raises:
        InputError: it cannot be read, is no UTF-8 or CSV, has no such column, or holds no text.
    """
    remedy = "name a file of texts, one a line, or a CSV file with the column 'text'"
    content = _text(path, read_bytes(path, remedy))
    rows: list[tuple[str, ...]]
    if path.suffix.lower() != ".csv":
        rows = [(line,) for line in content.splitlines()]
    else:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
        try:
            header = reader.fieldnames or []
            if "text" not in header:
                raise InputError(f"{path}: the column 'text' is needed, its first line has {list(header)}: {remedy}")
            columns = [name for name in ("text", "text_pair") if name in header]
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}, line {reader.line_num}: more or fewer fields than the {len(header)} of the first "
                        "line: quote a text that holds commas"
                    )
                rows.append(tuple(row[name] for name in columns))
        except csv.Error as error:
            raise InputError(
                f"{path}, line {reader.line_num}: broken CSV ({error}): double the quotes inside a quoted text"
            ) from error
    if not (rows := [row for row in rows if all(text.strip() for text in row)]):
        raise InputError(f"{path} holds no text: {remedy}")
    return rows


def _locate(source: str | Path) -> Path:
    if source == BUILT_IN:
        package = Path(__file__).parents[1]
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
    ids = decode(path, content, dict[str, int], 'it maps each label\'s name to its id, as in {"sport": 0, "health": 1}')
    if len(ids) < 2 or sorted(ids.values()) != list(range(len(ids))):  # noqa: PLR2004  one label is no choice
        raise InputError(
            f"{path} has the ids {sorted(ids.values())}: at least two are needed, 0, 1, 2 and so on, each once"
        )
    return tuple(sorted(ids, key=ids.__getitem__))


def _rows(path: Path, content: bytes, *, numbers: bool) -> pd.DataFrame:
    """Return the columns of a CSV file that are used, as text, indexed by the line where each row begins.

    The labels may be `numbers`; then queries are used.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # csv's default of 128 KiB is less than a document may have
    reader = csv.reader(io.StringIO(_text(path, content), newline=""), strict=True)
    lines, rows = [], []
    start = 1
    try:
        header = next(reader, [])
        columns = _columns(path, header, numbers=numbers)
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
                    if not value.strip() and name != "labels":
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


def _columns(path: Path, header: list[str], *, numbers: bool) -> list[str]:
    """Return which columns of the file `path`, whose first line is `header`, are used; see _rows."""
    if numbers and "labels" in header:
        raise InputError(f"{path} has the column 'labels', and there is no {LABELS} beside it: add one")
    for alternatives in (["text"], ["label", "labels"]):
        if sum(map(header.count, alternatives)) != 1:
            either = " or ".join(map(repr, alternatives))
            raise InputError(f"{path}: one column {either} is needed, its first line has {header}")
    wanted = ("query", "text", "text_pair", "label") if numbers else ("text", "text_pair", "label", "labels")
    return [name for name in wanted if name in header]


def _label_ids(label_names: tuple[str, ...], splits: Sequence[pd.DataFrame]) -> dict[str, int]:
    """Return the id of each label by its name or by the id itself, whichever stands in more rows of `splits`."""
    by_name = {name: label for label, name in enumerate(label_names)}
    by_id = {str(label): label for label in range(len(label_names))}
    labels = [label for split in splits for row in _written(split) for label in row]
    return max(by_name, by_id, key=lambda ids: sum(label in ids for label in labels))


def _number_labels(known: Mapping[str, int], files: Mapping[Path, pd.DataFrame]) -> list[pd.DataFrame]:
    """Return the splits in `files` with label ids, which `known` has for what stands there."""
    numbered = []
    for path, split in files.items():
        written = _written(split)
        for line, row in written.items():
            for label in row:
                if label not in known:
                    raise InputError(
                        f"{path}, line {line}: label {label!r} is not in label.json, which has {', '.join(known)}"
                    )
        ids = written.map(lambda row: tuple(sorted({known[label] for label in row})))
        column = {"labels": ids} if "labels" in split else {"label": ids.str[0].astype("int64")}
        numbered.append(split.assign(**column).reset_index(drop=True))
    return numbered


def _read_numbers(path: Path, split: pd.DataFrame) -> pd.DataFrame:
    """Return `split`, the rows in `path`, with its labels as numbers.

    Raises:
        InputError: one is no finite number, or a relevance below 0, or all are equal.
    """
    numbers = []
    for line, text in split["label"].items():
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(
                f"{path}, line {line}: label {text!r} is no finite number: write one, or name the labels in {LABELS}"
            )
        if number < 0 and "query" in split:
            raise InputError(f"{path}, line {line}: label {text} of a query's passage is below 0: 0 is irrelevant")
        numbers.append(number)
    if len(set(numbers)) == 1:
        raise InputError(f"{path}: every label is {numbers[0]:g}, so nothing can be told by them: add other rows")
    return split.assign(label=np.array(numbers)).reset_index(drop=True)


def _check_queries(place: str, documents: pd.DataFrame) -> list[str]:
    """Return the queries of `documents`, which are at `place`, that cannot be ranked.

    Raises:
        InputError: fewer than two can.
    """
    kinds = documents.groupby("query", sort=False)["label"].nunique()
    alike = [str(query) for query in kinds.index[kinds == 1]]
    if len(kinds) - len(alike) < 2:  # noqa: PLR2004  one query has no spread
        raise InputError(
            f"{place}: {len(kinds) - len(alike)} of {len(kinds)} queries have passages of different labels: two are "
            "needed, as the order of others cannot be judged"
        )
    return alike


def _written(split: pd.DataFrame) -> "pd.Series[Any]":
    """Return the labels of each row as they stand there: those in the column `labels` are separated by |."""
    if "labels" in split:
        return split["labels"].map(lambda text: text.split("|") if text.strip() else [])
    return split["label"].map(lambda text: [text])


def _warn_of_duplicates(folder: Path, train: pd.DataFrame, test: pd.DataFrame) -> None:
    texts = [name for name in ("text", "text_pair") if name in train]
    shared = test[texts].merge(train[texts].drop_duplicates(), on=texts)
    if len(shared):
        warnings.warn(
            f"{folder}: {len(shared)} of {len(test)} test rows are in train.csv too, so figures flatter: remove them",
            DatasetWarning,
            stacklevel=3,
        )
