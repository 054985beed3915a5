"""The report of a run: one HTML file that says what was found, how sure that is, and how to get it again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdsearch.runs.run import Run

__all__ = ["write"]


def write(run: Run, path: Path | None = None) -> Path:
    """Write the report of a run, wherever it stands, and give its path: the run's own `report.html` without one.

    The file appears whole or not at all.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    from kdsearch.runs.report.page import page

    target = path or run.place.report
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(page(run), encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target
