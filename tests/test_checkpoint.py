"""Which folders are checkpoints, and what is read off them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from qbert import InputError
from qbert.checkpoint import Checkpoint, locate
from qbert.dataset import Dataset
from qbert.suite import Suite


@pytest.fixture
def copy(trained: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.folder, tmp_path / "copy"))


def configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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
    from safetensors.numpy import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "classifier" not in name},
        copy / "model.safetensors",
    )
    assert not Checkpoint.open(copy).trained


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_no_checkpoint(copy: Path, file: str) -> None:
    (copy / file).unlink()
    with pytest.raises(InputError, match=f"is no checkpoint, it has no {file}"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_damaged_files_are_named(copy: Path, file: str) -> None:
    (copy / file).write_bytes((copy / file).read_bytes()[:50])
    with pytest.raises(InputError, match=file):
        Checkpoint.open(copy)


def test_a_damaged_tokenizer_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"the tokenizer in .* cannot be read"):
        Checkpoint.open(copy)


def test_weights_that_lack_a_layer_are_refused(copy: Path) -> None:
    configure(copy, num_hidden_layers=3)
    with pytest.raises(InputError, match=r"the weights lack bert\.encoder\.layer\.2"):
        Checkpoint.open(copy).load()


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    configure(copy, intermediate_size=256)
    with pytest.raises(InputError, match=r"weights and config\.json do not fit"):
        Checkpoint.open(copy).load()


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


def test_a_model_that_classifies_no_text_is_refused(copy: Path) -> None:
    configure(copy, model_type="vit")
    with pytest.raises(InputError, match="no text classifier"):
        Checkpoint.open(copy)


def test_labels_that_are_not_the_datasets_are_refused(
    copy: Path, trained: Checkpoint, news: Dataset, pairs: Dataset
) -> None:
    trained.check_labels(news)
    with pytest.raises(InputError, match="tells 5 labels apart and the dataset pairs has 2"):
        Suite(pairs, [str(trained.folder)], max_lengths=[64])
    names = dict(enumerate(reversed(news.label_names)))
    configure(copy, id2label=names, label2id={name: label for label, name in names.items()})
    with pytest.raises(InputError, match="number the same labels differently"):
        Suite(news, [str(copy)], max_lengths=[64])


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
