"""Where a run's study lives: its address, and the same without the password."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kdsearch.errors import UserError
from kdsearch.runs.config import RunConfig


def storage_url(config: RunConfig, folder: Path) -> str:
    """Where the study lives: SQLite in the run's folder unless the config or KDSEARCH_STORAGE says otherwise.

    A password that was left out of the stored config is taken from the environment when the run is resumed.
    """
    url = config.study.storage
    if url is None:
        return f"sqlite:///{folder / 'study.db'}"
    if "***" in url:
        url = os.environ.get("KDSEARCH_STORAGE", url)
        if "***" in url:
            raise UserError("study.storage: its password is not stored; set KDSEARCH_STORAGE to the whole URL")
    return url


def without_password(text: str) -> str:
    """A text that may be shown: passwords in URLs become `***`."""
    text = re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s]+", r"\1***", text)
