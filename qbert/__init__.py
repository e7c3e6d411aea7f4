"""How much faster a quantized BERT text classifier is on this processor, and what it costs in F1."""

__version__ = "0.1.0"

CONFIDENCE = 0.95
"""Of every interval that is reported."""


class InputError(Exception):
    """What a person gave cannot be used; the message is one sentence: where, the value found, the remedy."""
