"""Small seeded datasets and checkpoints of several families, made once a session."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import settings

from qbert import dataset as datasets
from qbert import training
from qbert.checkpoint import Checkpoint
from qbert.dataset import Dataset

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

LONGEST_S = 900
"""A test that takes longer hangs: it is ended, and fails."""
FAMILIES = ("bert", "roberta", "distilbert", "electra", "modernbert")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(LONGEST_S))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests out of the user's cache, and off the network."""
    os.environ["QBERT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HOME"] = str(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def processes() -> Callable[[str], list[str]]:
    """Find the running processes that have `NAME=VALUE` in their environment, by their numbers."""

    def find(variable: str) -> list[str]:
        found = []
        for file in Path("/proc").glob("[0-9]*/environ"):
            try:
                if variable.encode() in file.read_bytes().split(b"\0"):
                    found.append(file.parent.name)
            except OSError:  # it has ended
                continue
        return found

    return find


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Wait until something holds, 5 s unless told."""

    def wait(holds: Callable[[], object], seconds: float = 5) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.05)

    return wait


@pytest.fixture
def write_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Write a dataset folder; each file can be given as text or bytes, or None to leave it out."""

    def write(**files: str | bytes | None) -> Path:
        folder = tmp_path / "dataset"
        folder.mkdir(exist_ok=True)
        contents: dict[str, str | bytes | None] = {
            "train": "text,label\ngood film,1\nbad film,0\n",
            "test": "text,label\nfine film,1\n",
            "label": '{"negative": 0, "positive": 1}',
        }
        for name, content in (contents | files).items():
            if content is not None:
                path = folder / (f"{name}.json" if name == "label" else f"{name}.csv")
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    return write


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Give a folder with the module `outside`, which adds the variant `mine`."""
    (tmp_path / "outside.py").write_text("""
from qbert.variants import Variant, eager, register
register(Variant("mine", "PyTorch eager", "fp32", eager.load))
""")
    return tmp_path


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Give a folder with the module `few`, after which there are fp32, a variant of int8, and one that cannot run."""
    (tmp_path / "few.py").write_text("""
from dataclasses import replace
from qbert.variants import VARIANTS, Variant, register

def load(folder):
    raise RuntimeError("no such operator")

kept = [VARIANTS["fp32"], replace(VARIANTS["int8-dynamic-onednn"], default=True)]
VARIANTS.clear()
for row in (*kept, Variant("broken", "none", "fp32", load)):
    register(row)
""")
    return tmp_path


@pytest.fixture(scope="session")
def news(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A sample of the built-in dataset that trains in seconds."""
    built_in = datasets.load("news_mini")
    folder = tmp_path_factory.mktemp("data") / "news"
    folder.mkdir()
    for split, rows in (("train", built_in.train), ("test", built_in.test)):
        sample = pd.concat([group.head(40 if split == "train" else 12) for _, group in rows.groupby("label")])
        sample.to_csv(folder / f"{split}.csv", index=False)
    (folder / "label.json").write_text(json.dumps({name: label for label, name in enumerate(built_in.label_names)}))
    return datasets.load(folder)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory, news: Dataset) -> Dataset:
    """Sentence pairs: whether two texts are of one topic."""
    folder = tmp_path_factory.mktemp("data") / "pairs"
    folder.mkdir()
    for split, rows in (("train", news.train), ("test", news.test)):
        short = rows.assign(text=rows["text"].str[:80])
        other = short.sample(frac=1, random_state=1)
        same = (rows["label"].to_numpy() == other["label"].to_numpy()).astype(int)
        pd.DataFrame({"text": rows["text"], "text_pair": other["text"].to_numpy(), "label": same}).to_csv(
            folder / f"{split}.csv", index=False
        )
    (folder / "label.json").write_text('{"other": 0, "same": 1}')
    return datasets.load(folder)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, news: Dataset) -> Checkpoint:
    """BERT-tiny after one epoch on the sample."""
    recipe = training.Recipe(epochs=1, learning_rate=1e-3, batch_size=16, warmup=0.1, masked=0.15, shortest=0.25)
    return training.train(news, "bert-tiny", tmp_path_factory.mktemp("model") / "tiny", max_length=64, recipe=recipe)


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory, news: Dataset) -> Dataset:
    """Texts of any number of labels: every third has none, every third that of its neighbour as well."""
    folder = tmp_path_factory.mktemp("data") / "several"
    folder.mkdir()
    for split, rows in (("train", news.train), ("test", news.test)):
        own, next_one = rows["label"].to_numpy(), rows["label"].sample(frac=1, random_state=2).to_numpy()
        names = [(news.label_names[one], news.label_names[two]) for one, two in zip(own, next_one, strict=True)]
        labels = ["|".join(sorted(set(pair[: row % 3]))) for row, pair in enumerate(names)]
        pd.DataFrame({"text": rows["text"], "labels": labels}).to_csv(folder / f"{split}.csv", index=False)
    (folder / "label.json").write_text((news.folder / "label.json").read_text())
    return datasets.load(folder)


@pytest.fixture(scope="session")
def multi(tmp_path_factory: pytest.TempPathFactory, several: Dataset) -> Checkpoint:
    """BERT-tiny after one epoch on texts of any number of labels."""
    recipe = training.Recipe(epochs=1, learning_rate=1e-3, batch_size=16, warmup=0.1, masked=0.15, shortest=0.25)
    return training.train(
        several, "bert-tiny", tmp_path_factory.mktemp("model") / "multi", max_length=32, recipe=recipe
    )


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, news: Dataset) -> Checkpoint:
    """A small seeded classifier of each architecture, for the dataset's five labels."""
    import transformers

    tokenizer = training.learn_vocabulary(news.train["text"])
    shape = {"vocab_size": len(tokenizer), "num_labels": 5, "pad_token_id": tokenizer.pad_token_id}
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    name = request.param
    configuration = {
        "bert": lambda: transformers.BertConfig(**shape, **size),
        "roberta": lambda: transformers.RobertaConfig(**shape, **size, max_position_embeddings=514),
        "distilbert": lambda: transformers.DistilBertConfig(**shape, dim=64, n_layers=2, n_heads=2, hidden_dim=128),
        "electra": lambda: transformers.ElectraConfig(**shape, **size, embedding_size=32),
        "modernbert": lambda: transformers.ModernBertConfig(
            **shape, **size, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3
        ),
    }[name]()
    folder = tmp_path_factory.mktemp("family") / name
    transformers.set_seed(0)
    transformers.AutoModelForSequenceClassification.from_config(configuration).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Checkpoint.open(folder)
