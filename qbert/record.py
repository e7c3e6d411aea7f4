"""The file that says what made a folder of ours, checkpoint or artefact: beside that folder's own files."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

RECORD = "qbert.json"

Rows = Annotated[int, Meta(ge=1, le=1 << 24)]
"""How many of something a model has, such as tokens of a text; the bound keeps memory from being asked for."""


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write what made `folder` into it."""
    text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
    (folder / RECORD).write_text(text + os.linesep, encoding="utf-8")
