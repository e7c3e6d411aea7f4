"""Which folders are checkpoints, and what is read off them."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qbert import variants
from qbert.inputs.checkpoint import Checkpoint, locate
from qbert.inputs.dataset import Dataset
from qbert.measure.cells import Suite
from qbert.system.errors import InputError
from qbert.variants.artefact import Artefact


@pytest.fixture
def copy(trained: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.folder, tmp_path / "copy"))


Tensors = dict[str, np.ndarray]
EMBEDDING = "bert.embeddings.word_embeddings.weight"


OUTPUTS = [
    *(("output_attentions", True), ("output_hidden_states", True), ("chunk_size_feed_forward", 7)),
    *(("return_dict", False), ("return_dict", None)),
]


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def configure(folder: Path, file: str = "config.json", **changes: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_head(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if "classifier" not in name}


def test_every_family_is_read_and_fills_any_length(family: Checkpoint, news: Dataset) -> None:
    assert family.trained
    assert family.num_labels == 5
    for max_length in (3, 4, 17, 128):
        encoding = family.encoder.fill(news, max_length)
        assert {array.shape for array in encoding.values()} == {(1, max_length)}
        assert np.isfinite(family.load()(**_tensors(encoding)).logits.detach().numpy()).all()


def test_roberta_counts_positions_from_the_padding_token_on(family: Checkpoint) -> None:
    known = {"roberta": 514 - (family.config.pad_token_id + 1), "modernbert": 8192}
    assert family.positions == known.get(family.config.model_type, 512)


def test_sentence_pairs_fill_the_length_with_both_texts(trained: Checkpoint, pairs: Dataset) -> None:
    encoding = trained.encoder.fill(pairs, 64)
    assert encoding["input_ids"].shape == (1, 64)
    assert 20 < encoding["token_type_ids"].sum() < 44


def test_text_is_cut_off_and_never_padded(trained: Checkpoint) -> None:
    assert trained.encoder("体育", max_length=64)["input_ids"].shape == (1, 4)
    assert trained.encoder("体育" * 100, max_length=64)["input_ids"].shape == (1, 64)


def test_the_hash_changes_with_weights_tokenizer_and_configuration(copy: Path, trained: Checkpoint) -> None:
    assert Checkpoint(copy).sha256 == trained.sha256
    before = {trained.sha256}
    configure(copy, hidden_dropout_prob=0.2)
    before.add(Checkpoint(copy).sha256)
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + " ")
    before.add(Checkpoint(copy).sha256)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    before.add(Checkpoint(copy).sha256)
    assert len(before) == 4


def test_a_checkpoint_without_weights_for_the_head_is_untrained(copy: Path) -> None:
    rewrite(copy, without_head)
    assert not Checkpoint.open(copy).trained


def test_a_folder_that_is_not_there_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no checkpoint, it has no config\.json"):
        Checkpoint.open(tmp_path / "missing")


def changed(file: str = "config.json", **changes: object) -> Callable[[Path], None]:
    return lambda folder: configure(folder, file, **changes)


def one_is(name: str, value: float) -> Callable[[Path], None]:
    def damage(tensors: Tensors) -> Tensors:
        tensors[name].flat[-1] = value
        return tensors

    return lambda folder: rewrite(folder, damage)


def of_one_layer_and_no_head(folder: Path) -> None:
    configure(folder, num_hidden_layers=1)
    rewrite(folder, without_head)


def of_fewer_tokens(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors | {EMBEDDING: tensors[EMBEDDING][:100]})
    configure(folder, vocab_size=100)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *(
            (lambda folder, file=file: (folder / file).unlink(), f"is no checkpoint, it has no {file}")
            for file in ("config.json", "model.safetensors", "tokenizer.json")
        ),
        *(
            (lambda folder, file=file: (folder / file).write_bytes((folder / file).read_bytes()[:50]), file)
            for file in ("config.json", "model.safetensors")
        ),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), r"the tokenizer in .* cannot be read"),
        (of_fewer_tokens, r"the tokenizer has \d+ tokens and the model 100"),
        (changed(num_hidden_layers=3), r"the weights lack bert\.encoder\.layer\.2"),
        (changed(intermediate_size=256), r"weights and config\.json do not fit \(bert.*\(512,\) and \(256,\)\)"),
        (changed(num_hidden_layers=1), r"the weights have bert\.encoder\.layer\.1\..*, which config\.json lacks"),
        (of_one_layer_and_no_head, r"which config\.json lacks"),
        (
            lambda folder: rewrite(folder, lambda tensors: tensors | {"adapter.weight": np.ones(3, np.float32)}),
            r"the weights have adapter\.weight, which config\.json lacks",
        ),
        *(
            (one_is(name, value), f"{name} has weights that are nan or infinite")
            for name in ("bert.encoder.layer.1.output.dense.weight", "classifier.bias")
            for value in (np.nan, np.inf, -np.inf)
        ),
        (changed(model_type="vit"), "no text classifier"),
        *(
            (changed("qbert.json", **change), r"qbert\.json cannot be used")
            for change in ({"max_length": "64"}, {"max_length": 0}, {"untrained": 1}, {"metrics": []})
        ),
        (changed("qbert.json", max_length=513), "max_length 513 is beyond"),
    ],
    ids=map(str, itertools.count()),
)
def test_what_is_missing_damaged_or_does_not_fit_is_named(
    copy: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copy)
    with pytest.raises(InputError, match=message):
        Checkpoint.open(copy).load()


@pytest.mark.parametrize(("name", "value"), OUTPUTS)
def test_what_config_says_of_the_form_of_outputs_is_set_as_needed(
    copy: Path, trained: Checkpoint, news: Dataset, name: str, value: object
) -> None:
    configure(copy, **{name: value})
    tensors = _tensors(trained.encoder.fill(news, 16))
    answer = Checkpoint.open(copy).load()(**tensors)
    assert list(answer) == ["logits"]
    assert answer.logits.equal(trained.load()(**tensors).logits)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["fp32-onnxruntime", "fp32-openvino", "int8-dynamic-onednn", "fp32"])
def test_an_artefact_answers_whatever_config_said_of_outputs(
    copy: Path, trained: Checkpoint, tmp_path: Path, variant: str
) -> None:
    configure(copy, **dict(OUTPUTS))
    encoding = trained.encoder("体育新闻", max_length=64)
    for number, checkpoint in enumerate((Checkpoint.open(copy), trained)):
        variants.write_artefact(variants.get(variant), checkpoint, tmp_path / str(number))
    one, other = (Artefact.open(tmp_path / str(number)).load()(encoding) for number in range(2))
    assert np.array_equal(one, other)


def test_python_without_docstrings_is_told_to_be_the_reason(trained: Checkpoint) -> None:
    code = "import sys; from qbert.inputs.checkpoint import *; Checkpoint.open(Path(sys.argv[1]))"
    command = [sys.executable, "-OO", "-c", code, str(trained.folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "InputError: transformers needs docstrings, which Python leaves out here" in done.stderr
    assert "config.json" not in done.stderr.splitlines()[-1]


def test_names_of_labels_that_are_no_texts_are_read_as_transformers_prints_them(copy: Path) -> None:
    configure(copy, id2label={"0": False, "1": True, "2": 2, "3": 0.5, "4": "None"}, label2id=None)
    assert Checkpoint.open(copy).labels == ("False", "True", "2", "0.5", "None")


@pytest.mark.parametrize(
    "head", ["TokenClassification", "QuestionAnswering", "MultipleChoice", "NextSentencePrediction"]
)
def test_a_head_that_tells_no_labels_of_a_text_is_refused_by_name(copy: Path, head: str) -> None:
    architecture = f"BertFor{head}"
    configure(copy, architectures=[architecture])
    with pytest.raises(InputError, match=f"is a {architecture}: qbert judges text classifiers"):
        Checkpoint.open(copy)
    assert Checkpoint.open(copy, as_base=True)


@pytest.mark.parametrize("architecture", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_a_body_without_a_head_can_be_timed_and_is_untrained(copy: Path, architecture: str) -> None:
    rewrite(copy, without_head)
    configure(copy, architectures=[architecture])
    body = Checkpoint.open(copy)
    assert not body.trained
    assert body.load().num_labels == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "regression"}, "has 5 labels and problem_type regression: one output"),
        ({"id2label": None, "num_labels": 1}, "has 1 label and problem_type single_label_classification: one output"),
        (
            {"id2label": None, "num_labels": None, "problem_type": "regression"},
            "has 2 labels and problem_type regression",
        ),
        ({"problem_type": "ranking"}, "Invalid enum value 'ranking'"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label has the ids 0, 2"),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label has the ids 0, 1 and 1 names"),
        ({"id2label": {"zero": "a", "1": "b"}}, "config.json cannot be used"),
        ({"id2label": ["a", "b"]}, "config.json cannot be used"),
        ({"num_labels": 3}, "every id from 0 to the number of labels"),
        ({"id2label": None, "num_labels": 10**9}, "config.json cannot be used"),
        *(({"hidden_size": size}, "config.json cannot be used") for size in (0, -1, "128", 1.5, 10**9, 10**30)),
        *(({"num_hidden_layers": count}, "config.json cannot be used") for count in (0, -1, "2", 10**9)),
        ({"vocab_size": 1 << 24}, "weights and config.json do not fit"),
        ({"hidden_act": "swoosh"}, "no text classifier can be made of it"),
        ({"pad_token_id": "none"}, "Field 'pad_token_id' expected int"),
        ({"layer_norm_eps": float("nan")}, "config.json cannot be used"),
        ({"quantization_config": {"quant_method": "gptq"}}, "the weights are quantized already"),
        ({"_attn_implementation": "kernels-community/flash-attn"}, "asks for the attention 'kernels-community/"),
        ({"attn_implementation": "flash_attention_2"}, "asks for the attention 'flash_attention_2'"),
        ({"architectures": "BertModel"}, "config.json cannot be used"),
        ({"model_type": None}, "config.json cannot be used"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_sentence(copy: Path, changes: dict[str, object], message: str) -> None:
    configure(copy, **changes)
    with pytest.raises(InputError, match=message) as error:
        Checkpoint.open(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json", "qbert.json"])
@pytest.mark.parametrize("content", ["", "[]", "null", "[" * 100_000, '{"a": ' * 100_000])
def test_json_of_another_kind_is_one_sentence(copy: Path, file: str, content: str) -> None:
    if "index" in file:
        (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    (copy / file).write_text(content)
    with pytest.raises(InputError, match=file) as error:
        Checkpoint.open(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shard", ["../copy/other.safetensors", "/etc/hostname", "missing.safetensors"])
def test_an_index_names_only_files_beside_it(copy: Path, shard: str) -> None:
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"classifier.bias": shard}}))
    with pytest.raises(InputError, match=f"names '{shard}', which is no file beside it"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "qbert.json"])
def test_a_pipe_is_not_waited_for(copy: Path, file: str) -> None:
    (copy / file).unlink()
    os.mkfifo(copy / file)
    with pytest.raises(InputError, match=f"{file} is a pipe or a device"):
        Checkpoint.open(copy)


def test_parts_of_the_body_that_a_classifier_leaves_out_may_be_there(family: Checkpoint, tmp_path: Path) -> None:
    from transformers import AutoModel

    copied = Path(shutil.copytree(family.folder, tmp_path / "copied"))
    body, prefix = AutoModel.from_config(family.config).state_dict(), family.skeleton.base_model_prefix
    whole = {f"{prefix}.{name}": tensor.numpy() for name, tensor in body.items()}  # with RoBERTa's pooler
    rewrite(copied, lambda tensors: whole | tensors)
    assert Checkpoint.open(copied).load()


def test_several_labels_need_a_multi_label_model(
    trained: Checkpoint, multi: Checkpoint, news: Dataset, several: Dataset
) -> None:
    with pytest.raises(
        InputError, match=r"gives a text one label and the dataset several any number .column 'labels'."
    ):
        trained.label_order(several)
    for dataset in (several, news):
        assert multi.label_order(dataset) == (0, 1, 2, 3, 4)


def test_a_length_without_room_for_text_is_refused(trained: Checkpoint) -> None:
    with pytest.raises(InputError, match="max_length 2 holds no text beside 2 special tokens"):
        trained.check_length(2)


def test_built_in_models_are_held_to_their_positions(news: Dataset) -> None:
    for model in ("bert-tiny", "bert-base"):
        with pytest.raises(InputError, match="max_length 513 is beyond"):
            Suite(news, [model], max_lengths=[128, 513])


def test_a_folder_that_is_called_like_a_built_in_model_is_the_folder(
    trained: Checkpoint, news: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.folder, tmp_path / "bert-base")
    monkeypatch.chdir(tmp_path)
    suite = Suite(news, ["./bert-base", "bert-base"], max_lengths=[16])
    models = {name: model.trained for name, model in suite.models.items()}
    assert models == {"bert-base": True, "bert-base-copy1": False}
    assert suite.checkpoint(suite.models["bert-base"], 16).folder == tmp_path / "bert-base"


def test_an_unknown_architecture_is_refused_and_its_code_not_run(copy: Path) -> None:
    marker = copy / "ran"
    (copy / "configuration_own.py").write_text(f"open({str(marker)!r}, 'w')\n")
    configure(copy, model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    with pytest.raises(InputError, match=r"config\.json"):
        Checkpoint.open(copy)
    assert not marker.exists()


def test_labels_that_are_not_the_datasets_are_refused(
    copy: Path, trained: Checkpoint, news: Dataset, pairs: Dataset
) -> None:
    assert trained.label_order(news) == (0, 1, 2, 3, 4)
    with pytest.raises(InputError, match="tells 5 labels apart and the dataset pairs has 2"):
        Suite(pairs, [str(trained.folder)], max_lengths=[64])
    names = dict(enumerate("abcde"))
    configure(copy, id2label=names, label2id={name: label for label, name in names.items()})
    with pytest.raises(InputError, match=r"has the labels a, b, c, d, e and the dataset news has .*: give them the"):
        Suite(news, [str(copy)], max_lengths=[64])


@pytest.mark.parametrize("spelling", ["{}", " {} ", "{}\u3000"])
def test_labels_in_another_order_are_judged_by_their_names(
    copy: Path, trained: Checkpoint, news: Dataset, capsys: pytest.CaptureFixture[str], spelling: str
) -> None:
    order = [3, 0, 4, 1, 2]
    names = {own: spelling.format(news.label_names[label]) for own, label in enumerate(order)}
    configure(copy, id2label=names, label2id={name: label for label, name in names.items()})
    rewrite(copy, lambda tensors: tensors | {name: tensors[name][order] for name in tensors if "classifier" in name})
    suite = Suite(news, [str(trained.folder), str(copy)], max_lengths=[64])
    assert f"its labels are read as the dataset news's: {names[0]} is {news.label_names[3]}" in capsys.readouterr().err
    rows, seen = news.documents(20), []
    for model in suite.models:
        cell = suite.cell(model, 64, "fp32")
        logits = np.stack([cell.text_classifier()(text)[0] for text in rows["text"]])
        kept = cell.answers(rows, logits)
        true = [kept["label_names"][int(label)] for label in kept["labels"].split()]
        changed = cell.metric.flipped(cell.dataset, rows, logits, -logits)
        seen.append((cell.judge(rows, logits)[0].score, true, [(flip["label"], flip["variant"]) for flip in changed]))
    assert seen[0] == seen[1]


def test_a_length_beyond_the_positions_is_refused(trained: Checkpoint, news: Dataset) -> None:
    with pytest.raises(InputError, match=r"max_length 513 is beyond .* 512 positions"):
        Suite(news, [str(trained.folder)], max_lengths=[128, 513])


@pytest.mark.parametrize(
    "source", ["bert-base-chinese", "nobody/nothing", "./missing", "/missing", "a/b/c", "not a name"]
)
def test_a_model_that_is_nowhere_is_named(source: str) -> None:
    with pytest.raises(InputError) as error:
        locate(source)
    assert f"model {source!r} is no folder here" in str(error.value)
    assert "\n" not in str(error.value)


def _tensors(encoding: dict[str, np.ndarray]) -> dict[str, object]:
    import torch

    return {name: torch.from_numpy(array) for name, array in encoding.items()}
