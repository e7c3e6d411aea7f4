"""What a person is told when something goes wrong: one sentence with the place, the value found and the remedy."""

import sys
from collections.abc import Iterable
from pathlib import Path

DISTRIBUTION = "pytest-qbert"
"""What pip calls this package: the name qbert is another project's on PyPI."""

EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "onnx": "quantize",
    "nncf": "quantize",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "torchao": "torchao",
}
"""The extra of this project that brings each package which a variant may need."""

TRACEBACK = "QBERT_TRACEBACK"
"""The environment variable with which developers see where an error was raised."""


class InputError(Exception):
    """What a person gave cannot be used; the message is one sentence: where, the value found, the remedy."""


class CannotRunError(InputError):
    """A variant cannot run a model, and others may: in words, why."""


def sentence(error: BaseException) -> str:
    """Return what to tell a person of `error`: their mistake, an unusable file, or a fault of this project."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used ({error.strerror}): name another file or folder"
    return (
        f"{' '.join(sys.argv[1:])}: {type(error).__name__}: {reason(error)}: qbert did not expect this; "
        f"please report it with this line ({TRACEBACK}=1 shows where it happened)"
    )


def reason(error: BaseException, line: int = 0) -> str:
    """Return one line of an error's message, without what it says around it; the error's name where it says nothing."""
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    if lines and lines[line].endswith(":"):  # it says what on the next
        return " ".join(lines[line:][:2])
    return lines[line] if lines else type(error).__name__


def lacking(error: ModuleNotFoundError, what: str, extra: str) -> InputError:
    """Return what tells how pip brings the package that `what` lacks: `extra` has all that it needs."""
    package = (error.name or "").partition(".")[0]
    if package == __package__:  # a module of ours that is not there is a fault of ours
        raise error
    return InputError(f"{what} needs the package {package}, which is not installed: {pip_install(extra)}")


def pip_install(*extras: str) -> str:
    """Return the command that brings `extras`, or what is always needed, from where this was installed from.

    That is a clone, or the registry.
    """
    clone = Path(__file__).resolve().parents[1]
    if not (clone / "pyproject.toml").is_file():
        return pip_install_released(*extras)
    return f"pip install -e '{'.' if clone == Path.cwd() else clone}{_wanted(extras)}'"


def pip_install_released(*extras: str) -> str:
    """Return the command that brings `extras` on any machine: from the registry."""
    return f"pip install '{DISTRIBUTION}{_wanted(extras)}'"


def _wanted(extras: Iterable[str]) -> str:
    listed = ",".join(extras)
    return f"[{listed}]" if listed else ""
