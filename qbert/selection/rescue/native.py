"""Mixes of int8-native: one encoder with every layer in both precisions runs any."""

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from qbert.inputs.checkpoint import Checkpoint
from qbert.selection.rescue.search import Work
from qbert.variants import native
from qbert.variants.native.encoder import WEIGHTS, Encoder


class NativeMixes:
    """The mixes of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, plain: Path, kernel: str = "") -> None:
        """Export `checkpoint`, its int8 weights those of the variant's file `plain`.

        It runs on the fastest kernel here, or on that of the name.
        """
        self._checkpoint, self._plain = checkpoint, plain
        with tempfile.TemporaryDirectory() as place:
            native.export(checkpoint, Path(place), None, plain)
            self.encoder = Encoder(Path(place) / WEIGHTS, kernel)
        self._shapes = self.encoder.geometry.products()
        self.names = list(self._shapes)
        self._last = f"layers.{self.encoder.geometry.layers - 1}."
        """What names in the last block start with: most of these layers see the first token alone."""

    def groups(self) -> list[list[str]]:
        """Return the layers of one kind in all blocks, and by themselves those of the last."""
        groups: dict[tuple[str, bool], list[str]] = {}
        for name in self.names:
            groups.setdefault((name.rpartition(".")[2], name.startswith(self._last)), []).append(name)
        return list(groups.values())

    def work(self, tokens: int) -> Work:
        """Return each layer's multiplications for a text of `tokens` tokens, and its weights."""
        work = {}
        for name, (outputs, inputs) in self._shapes.items():
            of_first_token = name.startswith(self._last) and not name.endswith((".key", ".value"))
            work[name] = float(outputs * inputs * (1 if of_first_token else tokens)), float(outputs * inputs)
        return work

    def classifier(self, kept: Collection[str]) -> Encoder:
        """Return the encoder with the layers `kept` in float."""
        self.encoder.keep(kept)
        return self.encoder

    def write(self, kept: Sequence[str], folder: Path) -> None:
        """Write the weights with the layers `kept` in bf16."""
        native.export(self._checkpoint, folder, kept, self._plain)
