"""qbert's own int8: one scale for each token's activations, one for each output's weights, no calibration.

`convert` writes the quantized weights, `encoder` runs them, `compiler` makes the library of the C++ sources here, in
which each header explains its piece: vector.h, product.h, rows.h, activation.h, attention.h, encoder.h.
"""

from qbert.variants.native.compiler import unsupported
from qbert.variants.native.convert import export
from qbert.variants.native.encoder import load

__all__ = ["export", "load", "unsupported"]
