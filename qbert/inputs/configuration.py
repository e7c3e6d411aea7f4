"""The config.json of a checkpoint: what is checked before transformers reads it, and what it may not ask for."""

from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from qbert.inputs.labels import ACTIVATIONS, IDENTITY, MULTI_LABEL, REGRESSION, SINGLE_LABEL, ProblemType
from qbert.system.errors import InputError, reason
from qbert.system.parse import read_json
from qbert.system.record import Rows
from qbert.system.terminal import counted, quiet_transformers

CLASSIFIER = "ForSequenceClassification"
"""How the names of architectures for text classification end."""
BODIES = ("Model", "ForMaskedLM", "ForPreTraining", "ForCausalLM", "ForConditionalGeneration")
"""How the names of architectures end that can be timed and fine-tuned, with a head of random weights."""
OUTPUTS = {"output_attentions": False, "output_hidden_states": False, "return_dict": True, "chunk_size_feed_forward": 0}
"""What config.json may say of the form of a model's outputs, and of how it saves memory, as it is needed here.

No answer depends on it.
"""
ATTENTIONS = (None, "eager", "sdpa")  # for others transformers may fetch kernels from the hub


SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
"""Where newer releases of sentence-transformers name a cross-encoder's activation."""


ACTIVATION_KEYS = ("sentence_transformers", "sbert_ce_default_activation_function")
"""The keys of config.json that name it: of release 4 on, and before."""


class SentenceTransformers(Struct):
    """What sentence-transformers writes of a cross-encoder, beside config.json or in it."""

    activation_fn: str | None = None


Depth = Annotated[int, Meta(ge=1, le=1 << 10)]
Width = Annotated[int, Meta(ge=1, le=1 << 17)]


class Configuration(Struct):
    """The keys of config.json that are checked before transformers reads it; bounds prevent models that take hours."""

    model_type: str
    architectures: list[str] | None = None
    problem_type: ProblemType | None = None
    num_labels: Width | None = None
    id2label: dict[int, str | int | float | bool] | None = None
    hidden_size: Width | None = None
    embedding_size: Width | None = None
    dim: Width | None = None
    d_model: Width | None = None
    intermediate_size: Rows | None = None
    hidden_dim: Rows | None = None
    d_ff: Rows | None = None
    num_hidden_layers: Depth | None = None
    num_hidden_groups: Depth | None = None
    inner_group_num: Depth | None = None
    num_layers: Depth | None = None
    n_layers: Depth | None = None
    num_attention_heads: Depth | None = None
    n_heads: Depth | None = None
    vocab_size: Rows | None = None
    max_position_embeddings: Rows | None = None
    quantization_config: Any = None
    sentence_transformers: SentenceTransformers | None = None
    sbert_ce_default_activation_function: str | None = None

    def check_head(self, folder: Path) -> None:
        """Raise InputError where the head of the checkpoint in `folder` is not one for text classification."""
        names = self.architectures or [CLASSIFIER]
        if not any(name.endswith(CLASSIFIER) for name in names) and not all(name.endswith(BODIES) for name in names):
            raise InputError(
                f"{folder} is a {', '.join(names)}: qbert judges text classifiers (...{CLASSIFIER}), and can time "
                f"or fine-tune bodies without a head ({', '.join('...' + name for name in BODIES)})"
            )
        named = {label: str(name) for label, name in (self.id2label or {}).items()}
        count = self.num_labels or len(named)
        different = len(set(named.values()))
        if named and (sorted(named) != list(range(count)) or different < count):
            raise InputError(
                f"{folder / 'config.json'}: id2label has the ids {', '.join(map(str, sorted(named)))} and {different} "
                "names: every id from 0 to the number of labels needs a name of its own"
            )
        outputs = count or 2  # transformers' default
        if self.problem_type not in {None, *([REGRESSION] if outputs == 1 else [SINGLE_LABEL, MULTI_LABEL])}:
            raise InputError(
                f"{folder / 'config.json'} has {counted(outputs, 'label')} and problem_type {self.problem_type}: one "
                f"output is of {REGRESSION}, and no other number is"
            )


def read(folder: Path) -> Configuration:
    """Return the checked keys of the config.json in `folder`.

    Raises:
        InputError: it is damaged, of no classifier's size, or of weights that are quantized already.
    """
    path = folder / "config.json"
    configuration = read_json(path, Configuration, "correct that value, if it is a BERT-like model's")
    if configuration.quantization_config is not None:
        raise InputError(f"{path}: the weights are quantized already: give the checkpoint that they were made of")
    return configuration


def activation_of(folder: Path, configuration: Configuration) -> str:
    """Return what makes the one output of the cross-encoder in `folder` of its logit: a key of labels.ACTIVATIONS.

    It is read where sentence-transformers reads it. Where nothing is named, the logit is the output.

    Raises:
        InputError: it is another function.
    """
    beside = folder / SENTENCE_TRANSFORMERS
    places: dict[str, SentenceTransformers | None] = {"config.json": configuration.sentence_transformers}
    if beside.exists():
        places = {beside.name: read_json(beside, SentenceTransformers, "copy it again, or remove it"), **places}
    named = [(name, it.activation_fn) for name, it in places.items() if it and it.activation_fn]
    if former := configuration.sbert_ce_default_activation_function:
        named.append(("config.json", former))
    if not named:
        return IDENTITY
    name, function = named[0]
    module, _, activation = function.rpartition(".")
    if module.partition(".")[0] != "torch" or activation.lower() not in ACTIVATIONS:
        known = ", ".join(f"torch.nn.{one.capitalize()}" for one in ACTIVATIONS)
        raise InputError(
            f"{folder / name} names the activation {function}, and qbert applies {known}: name one of these"
        )
    return activation.lower()


def read_whole(folder: Path) -> Any:  # noqa: ANN401  transformers has one class an architecture
    """Return the configuration in `folder`, which was checked, as transformers reads it; no code there is run.

    Raises:
        InputError: transformers refuses it, or it asks for code from elsewhere.
    """
    path = folder / "config.json"
    with quiet_transformers():
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **OUTPUTS)
        except Exception as error:  # what transformers raises depends on the value
            raise InputError(f"{path} cannot be used ({reason(error)}): is it a BERT-like model's?") from error
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if (attention := getattr(part, "_attn_implementation", None)) not in ATTENTIONS:
            raise InputError(f"{path} asks for the attention {attention!r}: change it to 'sdpa' or 'eager'")
    return config
