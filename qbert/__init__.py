"""How much faster a quantized BERT text classifier is on this processor, and what it costs in F1."""

__version__ = "0.1.0"

CONFIDENCE = 0.95
"""Of every interval that is reported."""


class InputError(Exception):
    """What a person gave cannot be used; the message is one sentence: where, the value found, the remedy."""


def reason(error: BaseException, line: int = 0) -> str:
    """Return one line of an error's message, without what it says around it; the error's name where it says nothing."""
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    return lines[line] if lines else type(error).__name__
