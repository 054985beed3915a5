"""The public Python API: what the command line does, in a few lines of code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsearch.runs import config_file
from kdsearch.runs.config import RunConfig
from kdsearch.runs.export.files import read_recipe
from kdsearch.runs.folder import fresh
from kdsearch.runs.progress import Progress
from kdsearch.runs.retrain import distill, load_student
from kdsearch.runs.run import Run, resume
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace

if TYPE_CHECKING:
    from torch import nn

    from kdsearch.runs.data import Data

__all__ = ["Recipe", "Run", "SearchSpace", "distill", "load_recipe", "load_student", "resume", "search"]


def search(
    config: RunConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    run_dir: str | Path | None = None,
    teacher: nn.Module | None = None,
    data: Data | None = None,
    progress: Progress | None = None,
) -> Run:
    """Run a search to its end and give the run.

    Args:
        config: a config file, its plain data, or a `RunConfig`; without one the embedded default on digits.
        run_dir: where the run lives; a new folder under `runs/` without one.
        teacher, data: your own objects in place of what the config names; trials then run in this process.

    Raises:
        kdsearch.errors.UserError: a mistake in the config, the data or the folder.
    """
    if isinstance(config, Mapping):
        config = config_file.check(config, "config")
    elif not isinstance(config, RunConfig):
        config = config_file.read(config)
    run = Run(run_dir or fresh(), config).claim(new=True)
    try:
        return run.execute(progress, teacher_module=teacher, data=data)
    finally:
        run.place.release()


def load_recipe(path: str | Path) -> Recipe:
    """The recipe of a file that `kdsearch export` wrote, or of one written by hand.

    Raises:
        kdsearch.errors.UserError: unreadable, or not a recipe; the message names the place.
    """
    return read_recipe(path)[0]
