"""What config.json asks for and the variants that know an encoder's parts do not compute is refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from qbert.inputs.checkpoint import Checkpoint
from qbert.inputs.configuration import OUTPUTS
from qbert.system.errors import CannotRunError
from qbert.variants import families, native
from qbert.variants.native.encoder import WEIGHTS, header

CHANGES = {"is_decoder", "add_cross_attention"}
"""Fields of today's classes that change the logits and that no variant here computes."""
READ_BESIDE = {
    *("_attn_implementation", "_experts_implementation", "name_or_path", "attribute_map"),  # properties
    *("base_model_ep_plan", "base_model_fsdp_plan", "base_model_pp_plan", "base_model_tp_plan"),  # of several devices
    *("gradient_checkpointing", "num_labels", "output_attentions", "output_cross_attentions", "use_cache"),
    *("vision_aspect_ratio", "vision_feature_layer", "vision_feature_select_strategy"),  # arguments of other models
}
"""What transformers reads of every configuration beside the declared fields, without a change of the logits."""


def configuration(family: str) -> Any:
    shape = {"vocab_size": 60, "max_position_embeddings": 66, "pad_token_id": 1}
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    if family == "distilbert":
        size = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
    return transformers.AutoConfig.for_model(family, **shape, **size)


@pytest.fixture(params=families.FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of a family; a checkpoint of it is in the test's folder."""
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(configuration(request.param))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) / (parameter.shape[-1] ** 0.5 if parameter.ndim == 2 else 10)
    model.save_pretrained(tmp_path)
    return str(request.param)


def changed(folder: Path, **keys: Any) -> Checkpoint:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return Checkpoint(folder)


def other(field: str, value: Any) -> Any:
    """Another value of the same type, which a careless person might have left there."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if isinstance(value, int) else 0.25
    if value is None:
        return 0.25 if "dropout" in field else 2
    return {"first": "mean", "gelu": "relu"}.get(value, value)


def logits(checkpoint: Checkpoint) -> np.ndarray:
    ids = torch.arange(2, 22)[None]
    with torch.inference_mode():
        found = checkpoint.load()(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True)
    return np.asarray(found.logits)


def test_every_field_of_a_family_is_known_to_change_the_logits_or_not(family: str) -> None:
    declared = families.defaults(family).keys()
    assert declared - families.READ - families.HARMLESS - CHANGES == set()


def test_a_field_at_another_value_is_refused_or_changes_no_logits(family: str, tmp_path: Path) -> None:
    usual = families.defaults(family)
    before, original = logits(Checkpoint(tmp_path)), (tmp_path / "config.json").read_text()
    skipped = families.READ | CHANGES | {"transformers_version", "architectures", "dtype"} | OUTPUTS.keys()
    for field in usual.keys() - skipped:
        checkpoint = changed(tmp_path, **{field: other(field, usual[field])})
        families.of(checkpoint, "int8-native")
        assert vars(checkpoint.config).get(field, other(field, usual[field])) == other(field, usual[field])
        np.testing.assert_allclose(logits(checkpoint), before, atol=1e-5, err_msg=field)
        (tmp_path / "config.json").write_text(original)


@pytest.mark.parametrize("field", ["is_decoder", "is_causal"])
def test_what_changes_the_logits_and_is_not_computed_is_refused_by_name(
    family: str, tmp_path: Path, field: str
) -> None:
    if family == "distilbert" and field == "is_decoder":
        pytest.skip("its class declares no such field, and nothing reads it")
    before = logits(Checkpoint(tmp_path))
    checkpoint = changed(tmp_path, **{field: True})
    assert np.abs(logits(checkpoint) - before).max() > 1e-3
    for variant in ("int8-native", "trimming"):
        with pytest.raises(CannotRunError, match=rf"config\.json has {field} True, which {variant} does not know"):
            families.of(checkpoint, variant)
    families.of(changed(tmp_path, **{field: False}), "int8-native")


def test_a_field_that_a_later_release_declares_is_refused_unless_at_its_default(
    family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = changed(tmp_path, hyphae=3)
    assert checkpoint.config.model_type == family
    families.of(checkpoint, "int8-native")  # a note of somebody's, which nothing reads
    usual = families.defaults(family)
    monkeypatch.setattr(families, "defaults", lambda _: usual | {"hyphae": 2})
    with pytest.raises(CannotRunError, match=r"has hyphae 3, which int8-native does not know: leave the variant out"):
        families.of(checkpoint, "int8-native")
    families.of(changed(tmp_path, hyphae=2), "int8-native")


def test_transformers_reads_no_other_keys_than_those_that_are_known(family: str) -> None:
    config, read = configuration(family), set()
    with torch.device("meta"):
        model = type(transformers.AutoModelForSequenceClassification.from_config(config))

    class Recording(type(config)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> object:
            read.add(name)
            return super().__getattribute__(name)

    config.__class__ = Recording
    ids = torch.ones((1, 8), dtype=torch.long)
    model(config).eval()(input_ids=ids, attention_mask=ids)
    read = {name for name in read if not name.startswith("__")}
    assert "hidden_dropout_prob" in read or "dropout" in read
    declared = {*vars(configuration(family)), *type(config).attribute_map}
    assert read - declared - families.UNDECLARED - READ_BESIDE == set()


@pytest.mark.skipif(bool(native.unsupported()), reason=native.unsupported() or "it runs here")
@pytest.mark.parametrize("family", ["bert", "distilbert"], indirect=True)
def test_a_key_of_another_family_that_nothing_reads_is_not_taken_for_a_field(family: str, tmp_path: Path) -> None:
    other_family = {"bert": {"activation": "relu", "n_heads": 4, "dim": 8}, "distilbert": {
        "hidden_act": "relu", "layer_norm_eps": 0.1, "type_vocab_size": 7}}[family]  # fmt: skip
    native.export(Checkpoint(tmp_path), tmp_path)
    before = header(tmp_path / WEIGHTS)[0].values()
    native.export(changed(tmp_path, **other_family), tmp_path)
    assert header(tmp_path / WEIGHTS)[0].values() == before
