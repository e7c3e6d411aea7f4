"""The built-in data set data/news_mini is reproducible and behaves like real news."""

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

DATA = Path(__file__).resolve().parents[1] / "data"
SCRIPT = DATA / "make_news_mini.py"
SHA256 = {
    "train.csv": "89aa5fbcc27848282a8390c083dd1f4d3fdb2c9bfced8b5433d4b4117b2c6d9d",
    "test.csv": "1787a3a6893f02659276d4803da823abad0cebf5ad17579c46598281fdf902e8",
    "label.json": "acce8abd0ac5e696068f723187bf74b033922b12dd4060f1820c91fa388a722b",
}
SIZES = {"train": 300, "test": 100}

spec = importlib.util.spec_from_file_location("make_news_mini", SCRIPT)
make_news_mini = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_news_mini)


@pytest.fixture(scope="module")
def frames():
    return {split: pd.read_csv(DATA / "news_mini" / f"{split}.csv") for split in SIZES}


@pytest.fixture(scope="module")
def documents():
    return make_news_mini.make_documents()


def test_script_reproduces_the_committed_files(tmp_path):
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], check=True)
    for name, digest in SHA256.items():
        made = (tmp_path / name).read_bytes()
        assert made == (DATA / "news_mini" / name).read_bytes()
        assert hashlib.sha256(made).hexdigest() == digest


def test_labels_are_the_five_topics():
    labels = json.loads((DATA / "news_mini" / "label.json").read_text(encoding="utf-8"))
    assert labels == {"体育": 0, "健康": 1, "军事": 2, "教育": 3, "汽车": 4}


@pytest.mark.parametrize("split", SIZES)
def test_topics_are_balanced(frames, split):
    assert list(frames[split].columns) == ["text", "label"]
    assert Counter(frames[split].label) == dict.fromkeys(range(5), SIZES[split])


def test_no_document_occurs_twice(frames):
    texts = pd.concat(frames.values()).text
    assert texts.is_unique


@pytest.mark.parametrize("split", SIZES)
def test_lengths_have_a_long_tail(frames, split):
    lengths = frames[split].text.str.len()
    assert (lengths > 384).mean() >= 0.6
    assert 500 <= lengths.median() <= 700
    assert lengths.quantile(0.99) >= 3 * lengths.median()
    assert lengths.min() < 150


@pytest.mark.parametrize("split", SIZES)
def test_no_slot_is_left_and_no_punctuation_doubled(frames, split):
    assert not [text for text in frames[split].text if re.search("[{}]|[，。、；：！？]{2}", text)]


@pytest.mark.parametrize("split", SIZES)
def test_committed_documents_are_the_composed_ones(frames, documents, split):
    assert [document.text for document in documents[split]] == list(frames[split].text)
    topics = list(make_news_mini.TOPICS)
    assert [topics.index(document.topic) for document in documents[split]] == list(frames[split].label)


def test_every_document_mixes_sources_and_its_own_topic_leads(documents):
    for document in documents["train"] + documents["test"]:
        counts = Counter(sentence.source for sentence in document.sentences)
        own = counts.pop(document.topic)
        assert counts.pop(make_news_mini.COMMON) >= 1
        assert 1 <= len(counts) <= 2
        assert max(counts.values()) < own
        # From 25 to 60 percent, give or take a sentence for rounding.
        total = len(document.sentences)
        assert 0.25 * total - 1 <= own <= 0.60 * total + 1


def test_every_source_has_sentences_of_one_split_only(documents):
    templates = {
        split: {(s.source, s.template) for document in documents[split] for s in document.sentences} for split in SIZES
    }
    for source in [*make_news_mini.TOPICS, make_news_mini.COMMON]:
        train = {template for name, template in templates["train"] if name == source}
        test = {template for name, template in templates["test"] if name == source}
        assert len(test - train) >= 0.24 * len(train | test)
        assert len(train - test) >= 0.24 * len(train | test)


def test_more_text_tells_more_but_never_everything(frames):
    train, test = frames["train"], frames["test"]
    scores = []
    for length in (128, 256, 384):
        vectorizer = CountVectorizer(analyzer="char")
        features = vectorizer.fit_transform(train.text.str[:length]).log1p()
        model = LogisticRegression(max_iter=2000).fit(features, train.label)
        predicted = model.predict(vectorizer.transform(test.text.str[:length]).log1p())
        scores.append(f1_score(test.label, predicted, average="weighted"))
    assert min(scores) >= 0.90
    assert max(scores) <= 0.985
    assert np.all(np.diff(scores) > 0)
