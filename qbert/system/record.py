"""The file qbert.json in a checkpoint or artefact that qbert made: how it was made."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

RECORD = "qbert.json"

Rows = Annotated[int, Meta(ge=1, le=1 << 24)]
"""A count in a model, such as tokens of a text; the bound limits the memory that a damaged file can ask for."""


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the `record` of how `folder` was made into it."""
    text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
    (folder / RECORD).write_text(text + os.linesep, encoding="utf-8")
