"""Error messages: each is one sentence with the place, the value found and the remedy."""

import sys
from collections.abc import Iterable
from pathlib import Path

DISTRIBUTION = "pytest-qbert"
"""The name of this package on PyPI, where qbert is another project."""

EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "onnx": "quantize",
    "nncf": "quantize",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "torchao": "torchao",
}
"""The extra of this project that installs each package that a variant may need."""

TRACEBACK = "QBERT_TRACEBACK"
"""The environment variable that makes errors show their traceback, for developers."""


class InputError(Exception):
    """The user's input cannot be used; the message is one sentence: the place, the value found, the remedy."""


class CannotRunError(InputError):
    """A variant cannot run a model, though others may; the message says why."""


def sentence(error: BaseException) -> str:
    """Return the message for `error`: a mistake in the input, an unusable file, or a bug of this project."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used ({error.strerror}): name another file or folder"
    if isinstance(error, UnicodeEncodeError) and error.reason.startswith("surrogates"):
        around = error.object[max(0, error.start - 40) : error.end + 40]
        return f"{around!r} has bytes that are no UTF-8, as a file's name may: rename the file, or mend the text"
    return (
        f"{' '.join(sys.argv[1:])}: {type(error).__name__}: {reason(error)}: qbert did not expect this; "
        f"please report it with this line ({TRACEBACK}=1 shows where it happened)"
    )


def reason(error: BaseException, line: int = 0) -> str:
    """Return the non-blank line at index `line` of the error's message; the error's class where there is none."""
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    if lines and lines[line].endswith(":"):  # the next line says what
        return " ".join(lines[line:][:2])
    return lines[line] if lines else type(error).__name__


def lacking(error: ModuleNotFoundError, what: str, extra: str) -> InputError:
    """Return the error that says how to install the package that `what` lacks: `extra` has all that it needs."""
    package = (error.name or "").partition(".")[0]
    if package == __package__.partition(".")[0]:  # a missing module of qbert is a bug
        raise error
    return InputError(f"{what} needs the package {package}, which is not installed: {pip_install(extra)}")


def untrained(model: object) -> InputError:
    """Return the error of who asks `model`, whose head was never trained, for labels."""
    return InputError(f"{model} has no trained classification head, so its labels would be random: train it first")


def pip_install(*extras: str) -> str:
    """Return the command that installs this package with `extras`: from this clone, or from PyPI."""
    clone = Path(__file__).resolve().parents[2]
    if not (clone / "pyproject.toml").is_file():
        return pip_install_released(*extras)
    return f"pip install -e '{'.' if clone == Path.cwd() else clone}{_brackets(extras)}'"


def pip_install_released(*extras: str) -> str:
    """Return the command that installs this package with `extras` from PyPI, on any machine."""
    return f"pip install '{DISTRIBUTION}{_brackets(extras)}'"


def _brackets(extras: Iterable[str]) -> str:
    listed = ",".join(extras)
    return f"[{listed}]" if listed else ""
