"""Small seeded datasets and checkpoints of several families, made once a session."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from safetensors.numpy import load_file, save_file

from qbert.inputs import dataset as datasets
from qbert.inputs import training
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.system.git import names_of_a_repository

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

LONGEST_S = 900
"""A test that takes longer hangs: it is ended, and fails."""
WORKERS = 4
"""A whole folder's tests are run by a process on each core, and by no more than these: each has torch in memory."""
SHARED = "QBERT_TESTS_SHARED"
"""The environment variable with a folder where checkpoints and their conversions stay for the next run of the tests."""
FAMILIES = ("bert", "roberta", "distilbert", "electra", "modernbert")
RECIPE = training.Recipe(epochs=1, learning_rate=1e-3, batch_size=16, warmup=0.1, masked=0.15, shortest=0.25)
Made = Callable[[str, Callable[[Path], object]], Path]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at its options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share the tests of a folder among processes, unless `-n` says how; those of a file run in this one."""
    option = config.option
    if hasattr(config, "workerinput") or not config.pluginmanager.hasplugin("xdist"):
        return
    folders = all((config.invocation_params.dir / argument).is_dir() for argument in config.args)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if folders and cores > 1 and option.numprocesses is None and option.dist == "no" and not option.usepdb:
        option.numprocesses = min(cores, WORKERS)
    if folders and option.durations is None:
        option.durations, option.durations_min = 20, 1.0
    if option.numprocesses:
        option.dist = "worksteal"  # neighbours, which share what is built, mostly stay together
        option.benchmark_disable = True  # pytest-benchmark would do so, and warn


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.get_closest_marker("exhaustive"):
            item.add_marker(pytest.mark.timeout(LONGEST_S))


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all processes that run these tests together, or where SHARED says, of several runs."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if hasattr(request.config, "workerinput") else own) / "shared"
    if given := os.environ.get(SHARED):
        folder = Path(given)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def made(shared: Path) -> Made:
    """Have a folder made by whichever process needs it first; what is in it stays as it is."""

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not folder.exists():
                stage = shared / f".{name}"
                stage.mkdir()
                make(stage)
                stage.rename(folder)
        return folder

    return make_once


@pytest.fixture(autouse=True, scope="session")
def own_cache(shared: Path) -> None:
    """Keep the tests out of the user's cache and off the network, and a pytest that a test starts out of this one."""
    os.environ["QBERT_CACHE"] = str(shared / "cache")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HOME"] = str(shared / "hub")
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST") or name in names_of_a_repository()]:
        del os.environ[name]  # so that a git of a test's is not that of the hook which runs the tests
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # these tests are a job in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # so that the processes that a test interrupts end
    torch.set_num_threads(1)  # trainings of small models: what runs beside them has the other cores


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
    """Wait until something holds, a minute unless told: a machine may be busy."""

    def wait(holds: Callable[[], object], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.05)

    return wait


@pytest.fixture(scope="session")
def serving() -> Callable[[Path], AbstractContextManager[str]]:
    """Serve an artefact as the example does, by two processes; the address."""

    @contextmanager
    def serve(artefact: Path) -> Iterator[str]:
        root = Path(__file__).parents[1]
        variables = {"QBERT_MODEL": str(artefact), "PYTHONPATH": str(root), "PORT": "0", "WORKERS": "2"}
        log = artefact.parent / "log.txt"
        command = [sys.executable, str(root / "examples" / "processes.py")]
        with (
            log.open("w") as said,
            subprocess.Popen(
                command, env=os.environ | variables, stdout=subprocess.PIPE, stderr=said, text=True
            ) as process,
        ):
            try:
                address = process.stdout.readline().strip()
                while log.read_text().count("startup complete") < 2:
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.05)
                yield address
            finally:
                process.terminate()
        assert "Traceback" not in log.read_text()

    return serve


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
def news(made: Made) -> Dataset:
    """A sample of the built-in dataset that trains in seconds."""

    def make(folder: Path) -> None:
        built_in = datasets.load("news_mini")
        for split, rows in (("train", built_in.train), ("test", built_in.test)):
            sample = pd.concat([group.head(40 if split == "train" else 12) for _, group in rows.groupby("label")])
            sample.to_csv(folder / f"{split}.csv", index=False)
        names = {name: label for label, name in enumerate(built_in.label_names)}
        (folder / "label.json").write_text(json.dumps(names))

    return datasets.load(made("news", make))


@pytest.fixture(scope="session")
def pairs(made: Made, news: Dataset) -> Dataset:
    """Sentence pairs: whether two texts are of one topic."""

    def make(folder: Path) -> None:
        for split, rows in (("train", news.train), ("test", news.test)):
            short = rows.assign(text=rows["text"].str[:80])
            other = short.sample(frac=1, random_state=1)
            same = (rows["label"].to_numpy() == other["label"].to_numpy()).astype(int)
            pd.DataFrame({"text": rows["text"], "text_pair": other["text"].to_numpy(), "label": same}).to_csv(
                folder / f"{split}.csv", index=False
            )
        (folder / "label.json").write_text('{"other": 0, "same": 1}')

    return datasets.load(made("pairs", make))


def write_numbers(folder: Path, news: Dataset, *, ranked: bool) -> None:
    """Write pairs of texts with a number: 2 of one topic, 1 of neighbouring ones, else 0; four passages a query."""
    for split, rows in (("train", news.train), ("test", news.test)):
        texts, topics = rows["text"].str[:60].to_numpy(), rows["label"].to_numpy()
        passages = np.stack([np.random.default_rng(seed).permutation(len(rows)) for seed in range(4)], axis=1)
        chosen = [(query, passage) for query in range(0, len(rows), 3) for passage in passages[query]]
        query, passage = np.array(chosen).T
        pairs = pd.DataFrame({"query": query, "text": texts[query], "text_pair": texts[passage]})
        pairs["label"] = np.maximum(2 - np.abs(topics[query] - topics[passage]), 0)
        pairs.drop(columns=[] if ranked else ["query"]).to_csv(folder / f"{split}.csv", index=False)


@pytest.fixture(scope="session")
def grades(made: Made, news: Dataset) -> Dataset:
    """Pairs of texts, graded by how near their topics are."""
    return datasets.load(made("grades", lambda folder: write_numbers(folder, news, ranked=False)))


@pytest.fixture(scope="session")
def passages(made: Made, news: Dataset) -> Dataset:
    """The same pairs as passages of queries."""
    return datasets.load(made("passages", lambda folder: write_numbers(folder, news, ranked=True)))


@pytest.fixture(scope="session")
def ranker(made: Made, passages: Dataset) -> Checkpoint:
    """BERT-tiny after one epoch on them."""

    def make(folder: Path) -> None:
        training.train(passages, "bert-tiny", folder, max_length=48, recipe=RECIPE)

    return Checkpoint.open(made("ranker", make))


@pytest.fixture(scope="session")
def trained(made: Made, news: Dataset) -> Checkpoint:
    """BERT-tiny after one epoch on the sample."""

    def make(folder: Path) -> None:
        training.train(news, "bert-tiny", folder, max_length=64, recipe=RECIPE)

    return Checkpoint.open(made("tiny", make))


@pytest.fixture(scope="session")
def several(made: Made, news: Dataset) -> Dataset:
    """Texts of any number of labels: every third has none, every third that of its neighbour as well."""

    def make(folder: Path) -> None:
        for split, rows in (("train", news.train), ("test", news.test)):
            own, next_one = rows["label"].to_numpy(), rows["label"].sample(frac=1, random_state=2).to_numpy()
            names = [(news.label_names[one], news.label_names[two]) for one, two in zip(own, next_one, strict=True)]
            labels = ["|".join(sorted(set(pair[: row % 3]))) for row, pair in enumerate(names)]
            pd.DataFrame({"text": rows["text"], "labels": labels}).to_csv(folder / f"{split}.csv", index=False)
        (folder / "label.json").write_text((news.folder / "label.json").read_text())

    return datasets.load(made("several", make))


@pytest.fixture(scope="session")
def multi(made: Made, several: Dataset) -> Checkpoint:
    """BERT-tiny after one epoch on texts of any number of labels."""

    def make(folder: Path) -> None:
        training.train(several, "bert-tiny", folder, max_length=32, recipe=RECIPE)

    return Checkpoint.open(made("multi", make))


@pytest.fixture(scope="session")
def decided(made: Made, multi: Checkpoint, several: Dataset) -> Checkpoint:
    """`multi` with a head that gives each label to half of the test texts, as so short a training gives none."""

    def make(folder: Path) -> None:
        shutil.copytree(multi.folder, folder, dirs_exist_ok=True)
        encodings = [multi.encoder(text, max_length=32) for text in several.test["text"]]
        model = multi.load()
        with torch.inference_mode():
            arrays = [{name: torch.from_numpy(array) for name, array in one.items()} for one in encodings]
            logits = torch.cat([model(**one).logits for one in arrays]).numpy() - model.classifier.bias.numpy()
        tensors = load_file(folder / "model.safetensors")
        tensors["classifier.weight"] *= 100
        tensors["classifier.bias"] = -100 * np.median(logits, axis=0)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return Checkpoint.open(made("decided", make))


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, made: Made, news: Dataset) -> Checkpoint:
    """A small seeded classifier of each architecture, for the dataset's five labels."""
    return Checkpoint.open(made(request.param, lambda folder: write_family(request.param, news, folder)))


def write_family(name: str, news: Dataset, folder: Path) -> None:
    import transformers

    tokenizer = training.learn_vocabulary(news.train["text"])
    shape = {"vocab_size": len(tokenizer), "num_labels": 5, "pad_token_id": tokenizer.pad_token_id}
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    configuration = {
        "bert": lambda: transformers.BertConfig(**shape, **size),
        "roberta": lambda: transformers.RobertaConfig(**shape, **size, max_position_embeddings=514),
        "distilbert": lambda: transformers.DistilBertConfig(**shape, dim=64, n_layers=2, n_heads=2, hidden_dim=128),
        "electra": lambda: transformers.ElectraConfig(**shape, **size, embedding_size=32),
        "modernbert": lambda: transformers.ModernBertConfig(
            **shape, **size, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3
        ),
    }[name]()
    transformers.set_seed(0)
    transformers.AutoModelForSequenceClassification.from_config(configuration).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
