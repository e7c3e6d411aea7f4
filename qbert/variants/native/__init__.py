"""qbert's own int8: a scale for each token's activations and for each output's weights, without calibration.

`convert` writes the quantized weights, `encoder` runs them, `compiler` compiles the C++ sources here. Each header
explains its own part; docs/native.md lists them.
"""

from qbert.variants.native.compiler import unsupported
from qbert.variants.native.convert import export
from qbert.variants.native.encoder import load

__all__ = ["export", "load", "unsupported"]
