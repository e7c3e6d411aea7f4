"""qbert's own int8: a scale for each token's activations and for each output's weights.

`convert` writes the quantized weights, `rounding` fits them to calibration texts where that is asked for, `ranges`
tells whether 16-bit floats hold what lies between products, `encoder` runs them, `compiler` compiles the C++ sources
here. Each header explains its own part; docs/native.md lists them.
"""

from qbert.variants.native.compiler import made_by, unsupported
from qbert.variants.native.convert import export, export_calibrated
from qbert.variants.native.encoder import load, pack, unread
from qbert.variants.native.targets import KERNELS

KERNEL_NAMES = tuple(kernel.name for kernel in KERNELS)

__all__ = ["KERNEL_NAMES", "export", "export_calibrated", "load", "made_by", "pack", "unread", "unsupported"]
