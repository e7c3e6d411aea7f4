"""The names of an encoder's parts: ours, and what each architecture calls them."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from qbert.system.errors import CannotRunError

if TYPE_CHECKING:
    from qbert.inputs.checkpoint import Checkpoint

BERT = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "embeddings.project": "embeddings_project",
    "layers": "encoder.layer",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}
DISTILBERT = BERT | {
    "layers": "transformer.layer",
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "norm": "output_layer_norm",
}
POOLED = {"head.dense": "bert.pooler.dense", "head.labels": "classifier"}
SEPARATE = {"head.dense": "classifier.dense", "head.labels": "classifier.out_proj"}


@dataclass(frozen=True)
class Family:
    """The names of one architecture's modules."""

    body: dict[str, str]
    """Modules of the base model by our names; those of a layer are relative to the layer."""
    head: dict[str, str]
    """The two layers of the classification head."""
    head_activation: str
    """The function between the head's two layers."""


FAMILIES = {
    "bert": Family(BERT, POOLED, "tanh"),
    "camembert": Family(BERT, SEPARATE, "tanh"),
    "distilbert": Family(DISTILBERT, {"head.dense": "pre_classifier", "head.labels": "classifier"}, "relu"),
    "electra": Family(BERT, SEPARATE, "gelu"),
    "roberta": Family(BERT, SEPARATE, "tanh"),
    "xlm-roberta": Family(BERT, SEPARATE, "tanh"),
}
"""By `model_type`; in all of them the head reads the first token alone."""

READ = frozenset({
    *("activation", "dim", "embedding_size", "hidden_act", "hidden_dim", "hidden_size", "id2label", "label2id"),
    *("intermediate_size", "layer_norm_eps", "max_position_embeddings", "n_heads", "n_layers", "num_attention_heads"),
    *("num_hidden_layers", "pad_token_id", "problem_type", "type_vocab_size", "vocab_size"),
})  # fmt: skip
"""Fields of a configuration that are taken into account: from the configuration, or by the shapes of the weights."""
HARMLESS = frozenset({
    *("architectures", "transformers_version", "dtype"),  # Checkpoint.load says which type
    *("output_attentions", "output_hidden_states", "return_dict", "use_cache"),  # what is returned beside the logits
    *("attention_dropout", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "hidden_dropout_prob"),
    *("qa_dropout", "seq_classif_dropout", "initializer_range", "sinusoidal_pos_embds"),  # in training alone
    *("summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj"),  # of another head
    *("bos_token_id", "eos_token_id", "is_encoder_decoder", "tie_word_embeddings"),  # of decoders
    "chunk_size_feed_forward",  # the same sums, by parts
})  # fmt: skip
"""Fields that change no logits of a classifier, whatever their value."""
UNDECLARED = frozenset({"is_causal"})
"""Keys that no class declares and transformers reads all the same; where one is missing, it is false."""


def of(checkpoint: "Checkpoint", variant: str) -> Family:
    """Return the family of `checkpoint`.

    Raises:
        CannotRunError: `variant` does not run its architecture, or does not know what its configuration asks for.
    """
    config = checkpoint.config
    name = config.model_type
    if name not in FAMILIES:
        raise CannotRunError(f"{variant} runs {', '.join(FAMILIES)}, and {checkpoint.folder} is a {name}: leave it out")
    values, usual = vars(config), {**dict.fromkeys(UNDECLARED, False), **defaults(config.model_type)}
    for field in sorted(usual.keys() & values.keys() - READ - HARMLESS):
        if values[field] != usual[field]:
            raise CannotRunError(
                f"{checkpoint.folder / 'config.json'} has {field} {values[field]!r}, which {variant} does not know: "
                "leave the variant out"
            )
    return FAMILIES[name]


@cache
def defaults(model_type: str) -> dict[str, Any]:
    """Return the fields that an architecture's configuration declares, and their defaults."""
    from transformers import AutoConfig

    return {name: value for name, value in vars(AutoConfig.for_model(model_type)).items() if not name.startswith("_")}


def activation(config: Any) -> str:  # noqa: ANN401  transformers has one class an architecture
    """Return the name of the function between the two feed-forward products."""
    return str(config.hidden_act if "hidden_act" in defaults(config.model_type) else config.activation)


def epsilon(config: Any) -> float:  # noqa: ANN401
    """Return what normalization adds to the variance; DistilBERT has no field for it."""
    return float(config.layer_norm_eps if "layer_norm_eps" in defaults(config.model_type) else 1e-12)
