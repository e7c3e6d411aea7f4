"""Saved runs of made-up figures, as files and as a table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qbert.results import history


@pytest.fixture
def save_all(tmp_path: Path) -> Callable[..., list[str]]:
    """Write each of some runs to a file, 0.json and so on."""

    def write(*contents: dict[str, Any]) -> list[str]:
        paths = [tmp_path / f"{number}.json" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_text(json.dumps(content))
        return list(map(str, paths))

    return write


@pytest.fixture
def load(save_all: Callable[..., list[str]]) -> Callable[..., pd.DataFrame]:
    """Write some runs to files, and read them."""
    return lambda *contents: history.load(list(map(Path, save_all(*contents))))
