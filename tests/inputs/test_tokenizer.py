"""Pairs go only to models that take them, and an artefact's tokenizer encodes as the checkpoint's does."""

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

import qbert
from qbert import variants
from qbert.cli import main
from qbert.inputs import models, training
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.inputs.tokenizer import Encoder, TokenizerWarning
from qbert.system.errors import InputError
from qbert.variants import VARIANTS
from qbert.variants.artefact import Artefact
from qbert.variants.serving import TextClassifier

DEFAULT = [
    pytest.param(row.name, marks=[pytest.mark.slow] * row.calibrated)
    for row in VARIANTS.values()
    if row.default and not row.missing()
]
PLAIN = "int8-dynamic-onednn"
NO_PAIRS = (
    r"takes no pairs of texts, since its model has one token type \(type_vocab_size in config.json\): give single"
)
SIZE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def with_keys(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | keys), encoding="utf-8")


@pytest.fixture(scope="module")
def one_type(trained: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """`trained` without a token type for second texts."""
    folder = shutil.copytree(trained.folder, tmp_path_factory.mktemp("one") / "type")
    with_keys(folder / "config.json", type_vocab_size=1)
    tensors = load_file(folder / "model.safetensors")
    name = "bert.embeddings.token_type_embeddings.weight"
    tensors[name] = tensors[name][:1].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint.open(folder)


@pytest.mark.parametrize("name", DEFAULT)
def test_a_pair_for_a_model_of_one_token_type_is_the_same_sentence_in_every_variant(
    name: str, one_type: Checkpoint, news: Dataset, tmp_path: Path
) -> None:
    variants.write_artefact(VARIANTS[name], one_type, tmp_path, news)
    classifier = qbert.load(tmp_path)
    assert classifier("体育").label in one_type.labels
    with pytest.raises(InputError, match=NO_PAIRS):
        classifier("体育", "健康")
    with pytest.raises(InputError, match=rf"^text 2 \(from 0\): .* {NO_PAIRS}"):
        classifier.many(["体育", "健康", ("体育", "健康")])


def test_a_checkpoints_classifier_says_the_same(one_type: Checkpoint) -> None:
    classifier = TextClassifier.of(one_type, "fp32", variants.build(VARIANTS["fp32"], one_type))
    with pytest.raises(InputError, match=NO_PAIRS):
        classifier("体育", "健康")


def test_a_dataset_of_pairs_is_refused_before_anything_runs(
    one_type: Checkpoint, pairs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "load", lambda *_, **__: pytest.fail("the weights were read"))
    for fine_tune in (False, True):
        with pytest.raises(InputError, match=NO_PAIRS):
            models.find(str(one_type.folder), pairs, [32], fine_tune=fine_tune)
    with pytest.raises(InputError, match=NO_PAIRS):
        training.train(pairs, str(one_type.folder), tmp_path / "tuned", max_length=32)


@pytest.mark.parametrize(
    ("kind", "keys", "takes"),
    [
        ("electra", {"type_vocab_size": 1}, False),
        ("electra", {"type_vocab_size": 3}, True),
        ("deberta-v2", {"type_vocab_size": 0}, True),  # it has no embedding of types
        ("xlnet", {}, True),  # its types are relative
        ("distilbert", {}, True),
    ],
)
def test_pairs_are_refused_where_a_type_is_beyond_the_models(
    kind: str, keys: dict[str, int], takes: object, trained: Checkpoint, tmp_path: Path
) -> None:
    tokenizer = trained.encoder.tokenizer
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), num_labels=2, **keys)
    config.pad_token_id = tokenizer.pad_token_id
    config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert Checkpoint(tmp_path).encoder.takes_pairs is takes


def test_a_tokenizer_that_gives_no_types_gives_pairs_to_any_model(one_type: Checkpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(one_type.folder, tmp_path / "checkpoint")
    with_keys(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    checkpoint = Checkpoint.open(folder)
    variants.write_artefact(VARIANTS[PLAIN], checkpoint, tmp_path / "artefact")
    assert qbert.load(tmp_path / "artefact")("体育", "健康").label in checkpoint.labels


def checkpoint_with(tokenizer: Any, folder: Path) -> Checkpoint:
    config = transformers.BertConfig(vocab_size=len(tokenizer), num_labels=2, pad_token_id=0, **SIZE)
    transformers.set_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Checkpoint.open(folder)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "sep", "SEP", "w1", "w2", "##x", "é", "É", "e", "##e"]


def splitting() -> Any:
    return transformers.BertTokenizer({word: row for row, word in enumerate(WORDS)}, split_special_tokens=True)


def with_added_tokens() -> Any:
    tokenizer = transformers.BertTokenizer({word: row for row, word in enumerate(WORDS)}, do_lower_case=False)
    tokenizer.add_tokens([AddedToken("@user", lstrip=True), AddedToken("w1 w2", single_word=True)])
    tokenizer.truncation_side = "left"
    return tokenizer


def of_bytes() -> Any:
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "w", "1", "2", "Ġ", "Ã", "©", "e", "E", "x", "Ġw", "w1"]
    merges = [("Ġ", "w"), ("w", "1")]
    return transformers.RobertaTokenizer(vocab={word: row for row, word in enumerate(words)}, merges=merges)


@pytest.fixture(scope="module", params=[splitting, with_added_tokens, of_bytes], ids=lambda make: make.__name__)
def encoders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Artefact]:
    place = tmp_path_factory.mktemp("encoders")
    checkpoint = checkpoint_with(request.param(), place / "checkpoint")
    variants.write_artefact(VARIANTS[PLAIN], checkpoint, place / "artefact")
    return checkpoint.encoder, Artefact.open(place / "artefact")


PIECES = [*WORDS, "</s>", "<mask>", "@user", " ", "  ", "\n", "w1 w2", "x" * 120, "Éé", "体育", "😀", "\u0301", "a"]
some_text = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=9).map("".join)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=some_text, other=st.none() | some_text, length=st.integers(6, 40))
def test_an_artefact_encodes_any_text_as_the_checkpoint_does(
    text: str, other: str | None, length: int, encoders: tuple[Encoder, Artefact]
) -> None:
    own, kept = (encoder(text, other, max_length=length) for encoder in (encoders[0], encoders[1].encoder))
    assert {name: array.tolist() for name, array in own.items()} == {name: kept[name].tolist() for name in own}


def test_special_tokens_in_a_text_that_are_split_stay_split_and_the_readme_says_how(tmp_path: Path) -> None:
    checkpoint = checkpoint_with(splitting(), tmp_path / "checkpoint")
    variants.write_artefact(VARIANTS["fp32-onnxruntime"], checkpoint, tmp_path / "artefact")
    ids = Artefact.open(tmp_path / "artefact").encoder("w1 [SEP] w2", max_length=16)["input_ids"]
    words = ["[CLS]", "w1", "[", "sep", "]", "w2", "[SEP]"]
    assert ids.tolist() == [[WORDS.index(word) for word in words]]
    assert "encode_special_tokens = True" in (tmp_path / "artefact" / "README.md").read_text()


@pytest.mark.filterwarnings("ignore::qbert.inputs.tokenizer.TokenizerWarning")  # its types are withheld too
def test_a_tokenizer_that_has_no_file_of_its_own_is_refused_when_the_artefact_is_made(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*WORDS, "体", "育"]))
    tokenizer = transformers.BertJapaneseTokenizer(str(vocabulary), word_tokenizer_type="basic")
    checkpoint = checkpoint_with(tokenizer, tmp_path / "checkpoint")
    assert np.isfinite(variants.build(VARIANTS["fp32"], checkpoint)(checkpoint.encoder("体育", max_length=8))).all()
    with pytest.raises(
        InputError, match=r"tokenizer.json is not written, so it cannot keep this BertJapaneseTokenizer:"
    ):
        variants.write_artefact(VARIANTS[PLAIN], checkpoint, tmp_path / "artefact")


class Shouting(transformers.BertTokenizer):
    """One that changes a text before its file's rules do."""

    def __call__(self, text: str, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(text.upper(), *args, **kwargs)


def test_a_tokenizer_that_encodes_otherwise_than_its_file_is_refused(tmp_path: Path) -> None:
    tokenizer = Shouting({word: row for row, word in enumerate(WORDS)}, do_lower_case=False)
    tokenizer.save_pretrained(tmp_path)
    encoder = Encoder(tmp_path, tokenizer, ("input_ids",), takes_pairs=True)
    with pytest.raises(
        InputError, match=r"library tokenizers, which encodes .* otherwise, so it cannot keep this Shout"
    ):
        encoder.check_kept(tmp_path)


@pytest.fixture
def withholding(trained: Checkpoint, tmp_path: Path) -> Path:
    folder = shutil.copytree(trained.folder, tmp_path / "checkpoint")
    with_keys(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return folder


def test_token_types_that_the_named_class_withholds_are_told_and_the_remedy_helps(withholding: Path) -> None:
    with pytest.warns(TokenizerWarning, match=r"knows a token type for second texts, and its class .* withholds it"):
        Checkpoint.open(withholding)
    told = CliRunner().invoke(main, ["predict", "--model", str(withholding), "体育"], catch_exceptions=False).stderr
    remedy = json.loads("{" + re.findall(r'"model_input_names": \[.*?\]', told.replace("\n", " "))[0] + "}")
    with_keys(withholding / "tokenizer_config.json", **remedy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 1 in Checkpoint.open(withholding).encoder("体育", "健康", max_length=32)["token_type_ids"]


def test_nothing_is_told_where_no_type_is_withheld(
    trained: Checkpoint, family: Checkpoint, one_type: Checkpoint
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for checkpoint in (trained, family, one_type):
            Checkpoint.open(checkpoint.folder)


@pytest.mark.filterwarnings("ignore::qbert.inputs.tokenizer.TokenizerWarning")
def test_a_base_without_a_padding_token_is_refused_before_it_is_trained(
    trained: Checkpoint, news: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "base")
    with_keys(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", pad_token=None)
    assert Checkpoint.open(folder).encoder.tokenizer.pad_token is None  # it classifies all the same
    monkeypatch.setattr(Checkpoint, "load", lambda *_, **__: pytest.fail("the weights were read"))
    with pytest.raises(InputError, match=r"has no padding token, which training needs: name one \(pad_token\)"):
        training.train(news, str(folder), tmp_path / "tuned", max_length=32)
