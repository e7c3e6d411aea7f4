"""What is read from a checkpoint's files by other names, and what is refused because it is not there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from qbert.inputs import training
from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.dataset import Dataset
from qbert.system.errors import InputError

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SHAPE = {"vocab_size": 60, "pad_token_id": 0, "num_labels": 3}
SPECIAL = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
CONFIGURATIONS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "bert": lambda: transformers.BertConfig(**SHAPE, **SIZE),
    "roberta": lambda: transformers.RobertaConfig(**SHAPE, **SIZE),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**SHAPE, **SIZE),
    "distilbert": lambda: transformers.DistilBertConfig(**SHAPE, dim=32, n_layers=2, n_heads=2, hidden_dim=64),
    "electra": lambda: transformers.ElectraConfig(**SHAPE, **SIZE, embedding_size=16),
    "albert": lambda: transformers.AlbertConfig(**SHAPE, **SIZE, embedding_size=16),
    "modernbert": lambda: transformers.ModernBertConfig(**SHAPE, **SIZE, **SPECIAL),
    "deberta": lambda: transformers.DebertaConfig(**SHAPE, **SIZE, relative_attention=True, pos_att_type="c2p|p2c"),
    "deberta-v2": lambda: transformers.DebertaV2Config(**SHAPE, **SIZE, relative_attention=True),
    "mpnet": lambda: transformers.MPNetConfig(**SHAPE, **SIZE),
}
HEADS = ("AutoModel", "AutoModelForMaskedLM", "AutoModelForPreTraining", "AutoModelForSequenceClassification")
SAVED = [(family, head) for family in CONFIGURATIONS for head in HEADS if (family, head) != ("modernbert", HEADS[2])]
"""ModernBERT has no model of that name."""
Tensors = dict[str, torch.Tensor]


def write(folder: Path, family: str, head: str) -> Checkpoint:
    transformers.set_seed(0)
    getattr(transformers, head).from_config(CONFIGURATIONS[family]()).save_pretrained(folder)
    return Checkpoint(folder)


def rewrite(checkpoint: Checkpoint, change: Callable[[Tensors], Tensors]) -> Checkpoint:
    path = checkpoint.folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return Checkpoint(checkpoint.folder)


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def body_of(checkpoint: Checkpoint) -> Tensors:
    """Return the weights of the body, without a pooler, as a base for training has them."""
    model = checkpoint.load(num_labels=4)
    names = {f"{model.base_model_prefix}.{name}" for name, _ in model.base_model.named_parameters()}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names and ".pooler." not in name}


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("family", "head"), SAVED)
def test_a_body_is_read_from_whatever_model_it_was_saved_in(tmp_path: Path, family: str, head: str) -> None:
    model = write(tmp_path, family, head)
    expected = {
        name: tensor
        for name, tensor in getattr(transformers, head).from_pretrained(tmp_path).base_model.state_dict().items()
        if not name.startswith("pooler.")
    }
    found = body_of(model)
    prefix = model.fit.body
    assert same({name.removeprefix(prefix): tensor for name, tensor in found.items()}, expected)
    assert not model.fit.said
    assert model.trained == (head == "AutoModelForSequenceClassification")


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.module.", "0.auto_model.", "a+b."])
@pytest.mark.parametrize(
    ("family", "head"), [case for case in SAVED if case[0] in ("bert", "distilbert", "modernbert")]
)
def test_a_prefix_of_all_names_is_left_out(tmp_path: Path, family: str, head: str, prefix: str) -> None:
    plain = write(tmp_path, family, head)
    before, trained = body_of(plain), plain.trained
    wrapped = rewrite(plain, prefixed(prefix))
    assert same(body_of(wrapped), before)
    assert wrapped.trained == trained
    if (family, prefix) != ("modernbert", "model."):  # which transformers takes for its own
        assert wrapped.fit.said == f"the prefix {prefix} of all names is left out"


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("family", CONFIGURATIONS)
def test_an_embedding_is_read_from_the_output_layer_that_it_is_tied_to(
    tmp_path: Path, family: str, prefix: str
) -> None:
    plain = write(tmp_path, family, "AutoModelForMaskedLM")
    before = body_of(plain)
    with torch.device("meta"):
        pairs = transformers.AutoModelForMaskedLM.from_config(plain.config).all_tied_weights_keys
    ((copy, name),) = ((copy, name) for copy, name in pairs.items() if name.startswith(plain.fit.body))

    def only_copy(tensors: Tensors) -> Tensors:
        return prefixed(prefix)({copy if key == name else key: tensor for key, tensor in tensors.items()})

    tied = rewrite(plain, only_copy)
    assert same(body_of(tied), before)
    assert tied.fit.said.endswith(f"{name} is read from {copy}")


@pytest.mark.parametrize("head", ["AutoModelForMaskedLM", "AutoModelForSequenceClassification"])
@pytest.mark.parametrize("family", CONFIGURATIONS)
def test_a_weight_of_the_body_that_the_file_lacks_is_named(tmp_path: Path, family: str, head: str) -> None:
    whole = write(tmp_path, family, head)
    tensors, body = load_file(tmp_path / "model.safetensors"), whole.fit.body
    needed = {name for name, _ in whole.skeleton.named_parameters() if name.startswith(body) and ".pooler." not in name}
    stored = {f"{body}{name.removeprefix(body)}": name for name in tensors}
    embedding = next(name for name in sorted(needed) if "embeddings" in name and "Norm" not in name)
    for name in (embedding, max(needed & stored.keys()), min(needed & stored.keys())):
        save_file(
            {key: tensor for key, tensor in tensors.items() if key != stored[name]}, tmp_path / "model.safetensors"
        )
        for options in ({}, {"num_labels": 4}):
            with pytest.raises(InputError, match=f"the weights lack {name}"):
                Checkpoint(tmp_path).load(**options)


def test_a_prefix_that_only_some_names_have_is_not_guessed(tmp_path: Path) -> None:
    plain = write(tmp_path, "bert", "AutoModelForMaskedLM")
    mixed = rewrite(plain, lambda tensors: prefixed("teacher.")(tensors) | {"student.loss": torch.zeros(1)})
    with pytest.raises(InputError, match=r"the weights lack bert\.embeddings\."):
        mixed.load(num_labels=4)


def test_an_embedding_that_the_configuration_does_not_tie_is_not_read_from_the_output_layer(tmp_path: Path) -> None:
    configuration = CONFIGURATIONS["bert"]()
    configuration.tie_word_embeddings = False
    transformers.AutoModelForMaskedLM.from_config(configuration).save_pretrained(tmp_path)
    name = "bert.embeddings.word_embeddings.weight"
    without = rewrite(Checkpoint(tmp_path), lambda tensors: {key: tensors[key] for key in tensors if key != name})
    assert "cls.predictions.decoder.weight" in without.stored
    with pytest.raises(InputError, match=f"the weights lack {name}"):
        without.load(num_labels=4)


def test_a_classifier_that_was_trained_needs_its_pooler_and_a_base_does_not(tmp_path: Path) -> None:
    plain = write(tmp_path, "bert", "AutoModelForSequenceClassification")
    without = rewrite(plain, lambda tensors: {name: tensors[name] for name in tensors if ".pooler." not in name})
    assert without.load(num_labels=4)
    with pytest.raises(InputError, match=r"the weights lack bert\.pooler\.dense\.bias"):
        without.load()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_of_old_files_and_shards_are_read_beside_a_prefix(tmp_path: Path, prefix: str) -> None:
    plain = write(tmp_path, "bert", "AutoModelForMaskedLM")
    before, tensors = body_of(plain), load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, name in old.items():
        tensors = {key.replace(new, name): tensor for key, tensor in tensors.items()}
    tensors = prefixed(prefix)(tensors | {"bert.embeddings.position_ids": torch.arange(512)[None]})
    names = sorted(tensors)
    index = {}
    for shard, part in (("one.safetensors", names[::2]), ("two.safetensors", names[1::2])):
        save_file({name: tensors[name] for name in part}, tmp_path / shard, metadata={"format": "pt"})
        index |= dict.fromkeys(part, shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert same(body_of(Checkpoint(tmp_path)), before)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["bert.encoder.layer.1.output.LayerNorm.gamma", "classifier.bias", ""])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_weight_that_is_stored_in_another_type_than_floats_is_named(
    tmp_path: Path, kind: torch.dtype, name: str, prefix: str
) -> None:
    plain = write(tmp_path, "bert", "AutoModelForSequenceClassification")

    def convert(tensors: Tensors) -> Tensors:
        if name.endswith("gamma"):
            tensors[name] = tensors.pop(name.replace("gamma", "weight"))
        return prefixed(prefix)({key: tensors[key].to(kind) if name in key else tensors[key] for key in tensors})

    wrong = rewrite(plain, convert)
    with pytest.raises(
        InputError, match=rf"{name.replace('gamma', 'weight')}.* is stored as [IUBF]\w+, and weights are"
    ):
        wrong.load()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_weight_may_have_any_type_of_floats_and_what_is_no_weight_any_type(tmp_path: Path, kind: torch.dtype) -> None:
    plain = write(tmp_path, "bert", "AutoModelForSequenceClassification")
    others = {"bert.embeddings.position_ids": torch.arange(512)[None], "cls.seen": torch.zeros(1, dtype=torch.int32)}
    stored = rewrite(plain, lambda tensors: {key: tensors[key].to(kind) for key in tensors} | others)
    assert stored.load(num_labels=4).dtype == torch.float32


@pytest.mark.parametrize("stored", ["bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"])
def test_a_base_that_was_wrapped_is_trained_from_its_weights_and_saved_under_plain_names(
    tmp_path: Path, news: Dataset, capsys: pytest.CaptureFixture[str], stored: str
) -> None:
    base, output = tmp_path / "base", tmp_path / "output"
    tokenizer = training.learn_vocabulary(news.train["text"])
    shape = SIZE | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = transformers.BertForMaskedLM(transformers.BertConfig(**shape))
    tensors = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    tensors[stored] = tensors.pop("bert.embeddings.word_embeddings.weight")
    model.config.save_pretrained(base)
    tokenizer.save_pretrained(base)
    save_file(prefixed("_orig_mod.module.")(tensors), base / "model.safetensors", metadata={"format": "pt"})
    still = training.Recipe(epochs=1, learning_rate=0.0, batch_size=64, warmup=0.0, masked=0.0, shortest=1.0)
    trained = training.train(news, str(base), output, max_length=16, recipe=still)
    said = capsys.readouterr().err
    assert said.count("the prefix _orig_mod.module. of all names is left out") == 1
    assert ("is read from cls.predictions.decoder.weight" in said) == ("decoder" in stored)
    found = load_file(output / "model.safetensors")
    assert not trained.fit.said
    for name, tensor in model.bert.named_parameters():
        assert found[f"bert.{name}"].equal(tensor)
