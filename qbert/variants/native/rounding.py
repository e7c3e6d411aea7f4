"""Round weights by least squares: so that their products with the rows of calibration texts change least."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbert.inputs.tokenizer import Encoding

if TYPE_CHECKING:
    from qbert.inputs.checkpoint import Checkpoint

Array = npt.NDArray[Any]

BATCH = 32  # texts at once: one by one, adding up BERT-base's squares takes a minute
BLOCK = 128  # inputs whose errors move on to the others at once: GPTQ's own
DAMPING = 0.01  # of the mean of the squares, added to each: GPTQ's own


def squares_of(
    checkpoint: "Checkpoint", modules: Mapping[str, str], calibration: Sequence[Encoding]
) -> dict[str, Array]:
    """Return for each product the sum of x x^T over the rows x that it reads, `(inputs, inputs)`, in fp32.

    `modules` are the names of the products in the checkpoint by ours.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    model, padding = checkpoint.load(), checkpoint.config.pad_token_id or 0
    parts = {name: model.get_submodule(module) for name, module in modules.items()}
    sums = {name: torch.zeros(part.in_features, part.in_features) for name, part in parts.items()}
    last = list(modules)[-1].rpartition(".")[0]
    real = torch.ones(0, dtype=torch.bool)

    def add(name: str, _: object, inputs: tuple[torch.Tensor]) -> None:
        # In the last layer the encoder computes keys and values alone of other tokens than the first.
        first_token = name.startswith(f"{last}.") and not name.endswith((".key", ".value"))
        rows = inputs[0][:, 0] if first_token else inputs[0][real]
        sums[name].addmm_(rows.T, rows)

    for name, part in parts.items():
        part.register_forward_pre_hook(partial(add, name))
    with torch.inference_mode():
        for start in range(0, len(calibration), BATCH):
            texts = [
                {name: torch.from_numpy(ids[0]) for name, ids in encoding.items()}
                for encoding in calibration[start : start + BATCH]
            ]
            batch = {
                name: pad_sequence([text[name] for text in texts], batch_first=True, padding_value=value)
                for name, value in {**dict.fromkeys(texts[0], 0), "input_ids": padding}.items()
            }
            real = pad_sequence(
                [torch.ones_like(text["input_ids"], dtype=torch.bool) for text in texts], batch_first=True
            )
            model(**batch | {"attention_mask": real.long()})
    return {name: total.numpy() for name, total in sums.items()}


def least_squares(weight: Array, step: Array, squares: Array, greatest: int = 127) -> Array:
    """Return `weight`, `(outputs, inputs)`, in whole steps up to `greatest` whose products differ least from its own.

    Inputs are rounded one after the other, those with the greatest squares first; each one's error is made up for by
    those that are still to be rounded. Outputs that come nearer with the nearest steps keep those. `step` is the size
    of a step, `(outputs, 1)` or for each weight, and `squares` is what squares_of returns.

    Source: Frantar et al. (2023), "GPTQ", algorithm 1; the order is its published code's `act-order`.
    """
    from scipy.linalg import lapack  # scikit-learn brings it; who only loads an artefact may lack it

    nearest = np.clip(np.rint(weight / step), -greatest, greatest)
    order = np.argsort(-squares.diagonal(), kind="stable")
    damped = squares[np.ix_(order, order)].astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * damped.diagonal().mean() or 1.0
    # The upper factor of the inverse of a matrix is the inverse of that of the matrix, from the last row to the first.
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    inverse = lapack.dtrtri(lower, lower=1)[0][::-1, ::-1].astype(np.float32)
    left, sizes = np.ascontiguousarray(weight.T[order]), np.broadcast_to(step, weight.shape).T[order]
    rounded = np.empty_like(left)
    for start in range(0, len(order), BLOCK):
        stop = min(start + BLOCK, len(order))
        errors = np.empty_like(left[start:stop])
        for k in range(start, stop):
            rounded[k] = np.clip(np.rint(left[k] / sizes[k]), -greatest, greatest)
            errors[k - start] = (left[k] - rounded[k] * sizes[k]) / inverse[k, k]
            left[k + 1 : stop] -= np.outer(inverse[k, k + 1 : stop], errors[k - start])
        left[stop:] -= inverse[start:stop, stop:].T @ errors
    found = rounded[np.argsort(order)].T

    def errors_of(steps: Array) -> Array:
        change = steps * step - weight
        return np.asarray(np.einsum("oi,oi->o", change @ squares, change))

    return np.where((errors_of(found) < errors_of(nearest))[:, None], found, nearest)
