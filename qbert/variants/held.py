"""What exporters and optimizers make is held against PyTorch's fp32: a few texts, the same logits within tolerance."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from qbert.system.errors import CannotRunError
from qbert.variants import eager

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from qbert.inputs.checkpoint import Checkpoint
    from qbert.inputs.tokenizer import Encoding

LENGTHS = (1, 4, 12, 40, 512)
"""Of the texts, in words of the vocabulary: longer ones would cost more than all else."""
OF_SPREAD, OF_GREATEST = 1e-3, 1e-5
"""The tolerance of fp32: of how far apart a label's logits are over the texts, and of the greatest logit.

Measured over 11 architectures of random weights and a MiniLM fine-tuned on 160 pairs of MRPC, ONNX Runtime and OpenVINO
are off by less than a thirtieth of it.
"""
LESS_PRECISE = 0.1
"""The tolerance of other floats, of the greatest logit: PyTorch's bf16 is off by less than a fifth of it there."""


def hold(
    what: str,
    checkpoint: "Checkpoint",
    run: "Callable[[Encoding], npt.NDArray[np.float32]]",
    *,
    precision: str = "fp32",
    max_length: int | None = None,
) -> dict[str, float]:
    """Compare the logits that `run`, which is `what` in messages, gives to texts with those of `checkpoint` in fp32.

    The texts have at most `max_length` tokens. One to which fp32 gives nan or infinity says nothing. Returned are the
    greatest difference, and the one that is allowed.

    Raises:
        CannotRunError: a logit is farther off than is allowed in `precision`.
    """
    texts, expected = _answers(checkpoint, checkpoint.sha256, min(LENGTHS[-1], max_length or checkpoint.positions))
    if not len(expected):
        return {}
    logits = np.concatenate([run(encoding) for encoding in texts])
    greatest = float(np.abs(expected).max())
    exact = OF_SPREAD * float(np.ptp(expected, axis=0).max()) + OF_GREATEST * greatest
    tolerance = exact if precision == "fp32" else LESS_PRECISE * greatest
    off = np.abs(logits - expected)
    if not off.max() <= tolerance:  # nan is neither
        row, label = np.unravel_index(off.argmax(), off.shape)
        raise CannotRunError(
            f"{what} does not compute what PyTorch's fp32 does of {checkpoint.folder}, a "
            f"{checkpoint.config.model_type}: to {texts[row]['input_ids'].size} tokens it gives the logit "
            f"{logits[row, label]:.4g} instead of {expected[row, label]:.4g}, where {tolerance:.1g} off is allowed: "
            "leave it out"
        )
    return {"greatest": float(off.max()), "allowed": tolerance}


@lru_cache(maxsize=1)  # the variants of a model are mostly made in a row
def _answers(
    checkpoint: "Checkpoint",
    sha256: str,  # noqa: ARG001  what is kept is of these weights
    longest: int,
) -> "tuple[list[Encoding], npt.NDArray[np.float32]]":
    """Return texts of at most `longest` tokens, and the logits of `checkpoint` in fp32 where they are finite."""
    import torch

    encoder, model = checkpoint.encoder, eager.positional(checkpoint.load(), checkpoint.encoder.inputs)
    vocabulary = sorted(set(encoder.tokenizer.get_vocab().values()) - set(encoder.tokenizer.all_special_ids))
    generator = np.random.default_rng(0)

    def words(count: int) -> str:
        return str(encoder.tokenizer.decode(generator.choice(vocabulary, count).tolist()))

    texts: list[tuple[str, ...]] = [(words(count),) for count in LENGTHS]
    if encoder.takes_pairs and longest > encoder.tokenizer.num_special_tokens_to_add(pair=True) + 1:
        texts.append((words(5), words(9)))
    encodings = [encoder(*text, max_length=longest) for text in texts]
    with torch.inference_mode():
        logits = [model(*map(torch.from_numpy, encoding.values())).numpy() for encoding in encodings]
    finite = [row for row, answer in enumerate(logits) if np.isfinite(answer).all()]
    return [encodings[row] for row in finite], np.concatenate([logits[row] for row in finite] or [np.empty((0, 1))])
