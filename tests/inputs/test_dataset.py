"""What the loader takes, and what it refuses with file, line and remedy."""

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qbert.inputs import dataset
from qbert.system.errors import InputError

Write = Callable[..., Path]
SHARED = Path(__file__).parents[3] / "shared" / "datasets"


def test_labels_are_read_as_ids_and_as_names(write_dataset: Write) -> None:
    by_id = dataset.load(write_dataset())
    by_name = dataset.load(
        write_dataset(train="text,label\ngood film,positive\nbad film,negative\n", test="text,label\nfine,positive\n")
    )
    assert list(by_id.train["label"]) == [1, 0]
    assert list(by_name.train["label"]) == [1, 0]


def test_names_that_are_numbers_are_told_from_ids_by_what_explains_more(write_dataset: Write) -> None:
    stars = '{"1": 0, "2": 1, "3": 2}'
    as_names = dataset.load(write_dataset(train="text,label\na,1\nb,2\nc,3\n", test="text,label\nd,3\n", label=stars))
    as_ids = dataset.load(write_dataset(train="text,label\na,0\nb,1\nc,2\n", test="text,label\nd,2\n", label=stars))
    assert list(as_names.train["label"]) == list(as_ids.train["label"]) == [0, 1, 2]


def test_labels_of_another_file_are_read_as_those_of_the_splits(write_dataset: Write, tmp_path: Path) -> None:
    stars = '{"1": 0, "2": 1, "3": 2}'
    by_id = dataset.load(write_dataset(train="text,label\na,0\nb,1\nc,2\n", test="text,label\nd,2\n", label=stars))
    (tmp_path / "validation.csv").write_text("text,label\ne,1\nf,2\n")
    assert list(by_id.read_like_train(tmp_path / "validation.csv")["label"]) == [1, 2]
    (tmp_path / "validation.csv").write_text("text,label\ne,3\n")
    with pytest.raises(InputError, match=r"label '3' is not in label\.json, which has 0, 1, 2"):
        by_id.read_like_train(tmp_path / "validation.csv")


def test_a_document_has_the_labels_between_the_bars_of_its_field_or_none(write_dataset: Write) -> None:
    names = "text,labels\na,positive|negative\nb,\nc,positive\nd,positive|positive\n"
    for split in (names, names.replace("positive", "1").replace("negative", "0")):
        loaded = dataset.load(write_dataset(train=split, test="text,labels\ne,\n"))
        assert loaded.multi_label
        assert list(loaded.train["labels"]) == [(0, 1), (), (1,), (1,)]
        indicators = loaded.indicators(loaded.train)
        assert indicators.tolist() == [[True, True], [False, False], [False, True], [False, True]]


def test_one_label_a_document_has_indicators_too(write_dataset: Write) -> None:
    loaded = dataset.load(write_dataset())
    assert not loaded.multi_label
    assert loaded.indicators(loaded.train).tolist() == [[False, True], [True, False]]


NUMBERS = "text,text_pair,label\na,b,0.5\nc,d,-2\ne,f,1e1\n"
QUERIES = "query,text,text_pair,label\n" + "".join(f"{query},t,p,{label}\n" for query in "ab" for label in (0, 2, 1))


def test_without_label_json_labels_are_numbers(write_dataset: Write) -> None:
    loaded = dataset.load(write_dataset(train=NUMBERS, test=NUMBERS.replace("a,b", "z,b"), label=None))
    assert loaded.train["label"].tolist() == [0.5, -2.0, 10.0]
    assert (loaded.label_names, loaded.ranked, loaded.files) == ((), False, ("train.csv", "test.csv"))


def test_queries_stay_whole_wherever_documents_are_drawn(write_dataset: Write) -> None:
    rows = [(query, passage) for passage in range(5) for query in range(40)]  # not one query after the other
    train, test = (
        "query,text,text_pair,label\n"
        + "".join(f"{s}{query},{s}{query},{s}{passage},{passage % 2}\n" for query, passage in rows)
        for s in ("r", "e")
    )
    loaded = dataset.load(write_dataset(train=train, test=test, label=None))
    assert loaded.ranked
    held, calibrated = loaded.held_out(30), loaded.calibration(30)
    chosen, _ = loaded.to_choose_by(None, 30, None)
    assert len(held) == 100
    assert not set(held["query"]) & set(calibrated["query"])
    assert set(chosen["text_pair"]) == set(held["text_pair"])
    assert (chosen["query"] != chosen["query"].shift()).sum() == 20, "those of a query follow one another"
    sample = loaded.documents(12)
    assert sample.groupby("query").size().tolist() == [5, 5, 5]
    assert list(sample.index) == sorted(sample.index)
    assert loaded.documents() is loaded.test


def test_queries_that_cannot_be_ranked_are_told_and_not_judged(write_dataset: Write) -> None:
    with pytest.warns(dataset.DatasetWarning, match=r"2 of 4 queries, such as 'c', have one passage or one label"):
        dataset.load(write_dataset(train=QUERIES, test=f"{QUERIES}c,t,q,1\nd,t,q,0\nd,t,r,0\n", label=None))


@pytest.mark.filterwarnings("ignore::qbert.inputs.dataset.DatasetWarning")
@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (NUMBERS, NUMBERS.replace("-2", "two"), r"test.csv, line 3: label 'two' is no finite number"),
        (NUMBERS, NUMBERS.replace("-2", "nan"), r"test.csv, line 3: label 'nan' is no finite number"),
        (NUMBERS.replace("1e1", "1e999"), NUMBERS, r"train.csv, line 4: label '1e999' is no finite number"),
        (NUMBERS, NUMBERS.replace(",f,", ",,"), r"test.csv, line 4: text_pair is empty"),
        (NUMBERS, "text,text_pair,label\na,b,3\nc,d,3.0\n", r"test.csv: every label is 3, so nothing can be told"),
        (QUERIES, NUMBERS, r"column 'query' has to be in both"),
        (QUERIES.replace(",2", ",-2"), QUERIES, r"train.csv, line 3: label -2 of a query's passage is below 0"),
        (QUERIES, QUERIES.replace("b,", " ,"), r"test.csv, line 5: query is empty"),
        (
            QUERIES,
            QUERIES.replace("b,t,p,0", "b,t,p,1").replace("b,t,p,2", "b,t,p,1"),
            r"1 of 2 queries have passages of diff",
        ),
        ("text,labels\na,1\n", "text,labels\na,1\n", r"the column 'labels', and there is no label.json beside it"),
    ],
)
def test_bad_numbers_are_named_with_their_place(write_dataset: Write, train: str, test: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataset.load(write_dataset(train=train, test=test, label=None))


def test_a_pipe_for_a_file_is_not_waited_for(write_dataset: Write) -> None:
    folder = write_dataset(test=None)
    os.mkfifo(folder / "test.csv")
    with pytest.raises(InputError, match=r"test\.csv cannot be read \(it is a pipe or a device\)"):
        dataset.load(folder)


def test_column_order_extra_columns_blank_lines_and_a_byte_order_mark_do_not_matter(
    write_dataset: Write,
) -> None:
    loaded = dataset.load(write_dataset(train='\ufefflabel,id,text\n\n1,7,"good, film"\n0,8,bad\n'))
    assert loaded.train.to_dict("list") == {"text": ["good, film", "bad"], "label": [1, 0]}


def test_the_hash_is_of_the_contents(write_dataset: Write) -> None:
    first = dataset.load(write_dataset()).sha256
    assert dataset.load(write_dataset()).sha256 == first
    assert dataset.load(write_dataset(test="text,label\nfine film!,1\n")).sha256 != first


def test_a_sample_of_documents_is_the_same_each_time_and_in_file_order() -> None:
    loaded = dataset.load("news_mini")
    sample = loaded.documents(50)
    assert list(sample.index) == sorted(set(sample.index)) == list(loaded.documents(50).index)
    assert loaded.documents(10_000) is loaded.test


def test_rows_in_both_splits_are_counted_in_a_warning(write_dataset: Write) -> None:
    folder = write_dataset(test="text,label\ngood film,1\ngood film,1\nfine film,1\n")
    with pytest.warns(dataset.DatasetWarning, match="2 of 3 test rows are in train.csv"):
        dataset.load(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"test": None}, "test.csv cannot be read"),
        ({"label": None}, "test.csv: every label is 1, so nothing can be told"),
        ({"train": "text\ngood\n"}, "train.csv: one column 'label' or 'labels' is needed"),
        ({"train": ""}, "train.csv: one column 'text' is needed"),
        ({"train": "text,text,label\na,b,1\n"}, "one column 'text' is needed"),
        ({"train": "text,label\n"}, "train.csv has no rows"),
        ({"train": "text,label\ngood,1\n  ,0\n"}, "train.csv, line 3: text is empty"),
        ({"train": 'text,label\n"two\nlines",1\n,0\n'}, "train.csv, line 4: text is empty"),
        ({"train": "text,label\ngood,\n"}, "train.csv, line 2: label is empty"),
        ({"train": "text,label\ngood,1\nbad,7\n"}, "train.csv, line 3: label '7' is not in label.json"),
        (
            {"train": "text,label\ngood,positive\nbad,awful\n", "test": "text,label\nx,positive\n"},
            "label 'awful'",
        ),
        ({"train": "text,label\ngood, film,1\n"}, "line 2: 3 fields where the first line has 2"),
        ({"train": "text,label\ngood\n"}, "line 2: 1 fields"),
        ({"train": 'text,label\n"good" film,1\n'}, "line 2: broken CSV"),
        ({"train": 'text,label\ngood,1\n"bad,0\n'}, "line 3: broken CSV"),
        ({"train": "text,label\ngood,1\n坏,0\n".encode("gbk")}, "train.csv, line 3: not UTF-8"),
        ({"train": "text,label\ngood,1\n"}, "'negative', of which train.csv has no row"),
        ({"train": "text,text_pair,label\na,b,1\n"}, "'text_pair' has to be in both"),
        ({"train": "text,labels\na,1\n"}, "'labels' has to be in both"),
        ({"train": "text,label,labels\na,1,1\n"}, "one column 'label' or 'labels' is needed"),
        (
            {"train": "text,labels\na,\nb,1|7\n", "test": "text,labels\na,1\n"},
            "train.csv, line 3: label '7' is not in label.json",
        ),
        ({"train": "text,labels\na,1|\n", "test": "text,labels\na,1\n"}, "train.csv, line 2: label ''"),
        ({"train": "text,labels\na,1\n", "test": "text,labels\nb,0|1\n"}, "'negative', of which train.csv has no row"),
        (
            {"train": "text,text_pair,label\na,,1\n", "test": "text,text_pair,label\na,b,1\n"},
            "line 2: text_pair is empty",
        ),
        ({"label": "{"}, "label.json cannot be used (Input data was truncated): it maps each label's name to its id"),
        ({"label": "[1]"}, "label.json cannot be used (Expected `object`, got `array`)"),
        ({"label": "[" * 100_000}, "label.json cannot be used"),
        ({"label": '{"a": "0", "b": 1}'}, "label.json cannot be used (Expected `int`, got `str`"),
        ({"label": '{"a": true, "b": 0}'}, "label.json cannot be used (Expected `int`, got `bool`"),
        ({"label": '{"a": 0, "b": 2}'}, "has the ids [0, 2]"),
        ({"label": '{"a": 0}'}, "at least two"),
    ],
)
def test_bad_input_is_named_with_its_place(write_dataset: Write, files: dict[str, str], message: str) -> None:
    files = {"test": "text,label\nfine film,0\n"} | files if message.startswith("'negative'") else files
    folder = write_dataset(**files)
    for name in (name for name, content in files.items() if content is None):
        (folder / f"{name}.json").unlink(missing_ok=True)
    with pytest.raises(InputError) as error:
        dataset.load(folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        dataset.load(tmp_path / "missing")


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).filter(
    lambda text: bool(text.strip())
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(texts, min_size=2, max_size=8, unique=True))
def test_any_text_that_was_written_as_csv_is_read_back(write_dataset: Write, written: list[str]) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerows([("text", "label"), *((text, row % 2) for row, text in enumerate(written))])
    folder = write_dataset(train=file.getvalue(), test="text,label\n\ue000 only in test,1\n")
    assert list(dataset.load(folder).train["text"]) == written


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real datasets are not here")
@pytest.mark.parametrize(
    ("name", "rows"),
    [("sougou", (370, 125)), ("thucnews_titles", (8000, 2000)), ("sst2", (6920, 872)), ("mrpc", (3680, 400))],
)
@pytest.mark.filterwarnings("ignore::qbert.inputs.dataset.DatasetWarning")
def test_real_datasets_load(name: str, rows: tuple[int, int]) -> None:
    loaded = dataset.load(SHARED / name)
    assert (len(loaded.train), len(loaded.test)) == rows


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("lines.txt", "one\n\n  \ntwo, too\n", [("one",), ("two, too",)]),
        ("rows.csv", 'id,text\n1,"a, b"\n2,\n3,c\n', [("a, b",), ("c",)]),
        ("pairs.csv", "text,text_pair\na,b\nc,\n", [("a", "b")]),
        ("mark.csv", "\ufefftext\na\n", [("a",)]),
    ],
)
def test_traffic_is_lines_or_a_column_without_blank_ones(
    tmp_path: Path, name: str, content: str, rows: list[tuple[str, ...]]
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert dataset.traffic(tmp_path / name) == rows


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b"\n \n", "holds no text"),
        ("empty.csv", b"", r"the column 'text' is needed, its first line has \[\]"),
        ("other.csv", b"message\nhello\n", r"the column 'text' is needed, its first line has \['message'\]"),
        ("header.csv", b"text\n", "holds no text"),
        ("broken.csv", b'text\n"a\n', "broken CSV"),
        ("latin.txt", b"na\xefve\n", "line 1: not UTF-8"),
        (
            "comma.csv",
            b"text\nfine\nGood film, but long\n",
            "line 3: more or fewer fields than the 1",
        ),
        ("short.csv", b"id,text\n5\n", "line 2: more or fewer fields than the 2"),
    ],
)
def test_traffic_that_cannot_be_served_is_a_sentence(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=told):
        dataset.traffic(tmp_path / name)
    with pytest.raises(InputError, match=r"nowhere\.txt cannot be read"):
        dataset.traffic(tmp_path / "nowhere.txt")
