"""Write a BERT checkpoint with the same answers as another, where int8 costs some products the answers.

    python tools/fragile.py CHECKPOINT FOLDER --factor 300 --layers 0,2

Some channels of each value are made larger by a factor, and the weights that read them, in the attention's output,
smaller by the same. In float that cancels out. In int8 it does not: a few large channels, as large models have them,
leave too few steps for the others (of each token's activations), and most large ones too few for the rest's weights.
"""

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

WEIGHTS = "model.safetensors"


def write(checkpoint: Path, folder: Path, factor: float, layers: Iterable[int] = (0,), share: float = 15 / 16) -> Path:
    """Fill `folder`; the last `share` of each 16 channels is made `factor` times as large in `layers`."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    tensors = load_file(folder / WEIGHTS)
    for layer in layers:
        attention = f"bert.encoder.layer.{layer}.attention"
        outputs = tensors[f"{attention}.output.dense.weight"]
        large = np.arange(outputs.shape[1]) % 16 >= round(16 * (1 - share))
        outputs[:, large] /= np.float32(factor)
        for part in ("weight", "bias"):
            tensors[f"{attention}.self.value.{part}"][large] *= np.float32(factor)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--factor", type=float, default=300)
    parser.add_argument("--layers", default="0", help="comma-separated numbers")
    parser.add_argument("--share", type=float, default=15 / 16, help="of the channels; 0.0625 makes a few large")
    given = parser.parse_args()
    print(write(given.checkpoint, given.folder, given.factor, map(int, given.layers.split(",")), given.share))


if __name__ == "__main__":
    main()
