"""Rows of a long measurement, kept in a file line by line as they come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def kept(path: Path) -> list[dict[str, Any]]:
    """The rows that are there; none without a file. A last line that was cut short by a kill is taken off the file."""
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]
