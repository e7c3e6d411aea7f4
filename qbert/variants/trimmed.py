"""Graphs of one length, without what the head does not read: the same logits, a tenth faster.

The head reads the first token alone. So the last layer needs only keys and values of every token; query, attention's
output and feed-forward of the first one. With a fixed length the runtime has no shapes to compute at each call;
shorter texts are padded.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from qbert.inputs.tokenizer import Encoding
from qbert.variants import families

if TYPE_CHECKING:
    from qbert.inputs.checkpoint import Checkpoint


def trim(checkpoint: "Checkpoint", **options: Any) -> Any:  # noqa: ANN401  a torch module; options of from_pretrained
    """Return the model of `checkpoint`; its last layer is computed for the first token alone.

    Raises:
        InputError: families.py does not have its architecture.
    """
    return cut(checkpoint, checkpoint.load(**options))


def cut(checkpoint: "Checkpoint", model: Any) -> Any:  # noqa: ANN401  torch modules
    """Change the last layer of `model`, of `checkpoint`, to compute the first token alone; return it.

    Raises:
        InputError: families.py does not have its architecture.
    """
    import torch
    from transformers.activations import ACT2FN

    config, parts = checkpoint.config, families.of(checkpoint, "trimming").body
    heads, size, activation = config.num_attention_heads, config.hidden_size, ACT2FN[families.activation(config)]

    class FirstToken(torch.nn.Module):
        def __init__(self, layer: torch.nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(
            self,
            hidden_states: torch.Tensor,
            attention_mask: torch.Tensor | None = None,
            *_: object,
            **__: object,
        ) -> torch.Tensor:
            def run(part: str, rows: torch.Tensor) -> torch.Tensor:
                result: torch.Tensor = self.layer.get_submodule(parts[part])(rows)
                return result

            def by_head(rows: torch.Tensor) -> torch.Tensor:
                return rows.view(1, -1, heads, size // heads).transpose(1, 2)

            first = hidden_states[:, :1]
            keys, values = (by_head(run(part, hidden_states)) for part in ("key", "value"))
            query = by_head(run("query", first))
            scores = query @ keys.transpose(-1, -2) * (size // heads) ** -0.5
            if attention_mask is not None:
                mask = attention_mask[:, :, :1]
                scores = scores.masked_fill(~mask, -1e9) if mask.dtype == torch.bool else scores + mask
            context = (scores.softmax(-1) @ values).transpose(1, 2).reshape(1, 1, size)
            attended = run("attention_norm", run("output", context) + first)
            activated = activation(run("up", attended))
            return run("norm", run("down", activated) + attended)

    layers = model.base_model.get_submodule(parts["layers"])
    layers[-1] = FirstToken(layers[-1])
    return model


def padded(encoding: Encoding, length: int) -> Encoding:
    """Return `encoding`, padded with zeros to `length` tokens; the mask hides them.

    Raises:
        ValueError: it is longer.
    """
    tokens = encoding["input_ids"].shape[1]
    if tokens == length:
        return encoding
    if tokens > length:
        raise ValueError(f"{tokens} tokens, and this graph was made for at most {length}: make one for more")
    return {name: np.pad(array, ((0, 0), (0, length - tokens))) for name, array in encoding.items()}
