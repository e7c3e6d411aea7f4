"""The names of an encoder's parts: ours, and what each architecture calls them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qbert.errors import CannotRunError

if TYPE_CHECKING:
    from qbert.checkpoint import Checkpoint

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


def of(checkpoint: "Checkpoint", variant: str) -> Family:
    """Return the family of `checkpoint`.

    Raises:
        CannotRunError: `variant` does not run its architecture.
    """
    name = checkpoint.config.model_type
    if name not in FAMILIES:
        raise CannotRunError(f"{variant} runs {', '.join(FAMILIES)}, and {checkpoint.folder} is a {name}: leave it out")
    return FAMILIES[name]


def activation(config: Any) -> str:  # noqa: ANN401  transformers has one class an architecture
    """Return the name of the function between the two feed-forward products."""
    return str(getattr(config, "hidden_act", None) or config.activation)
