"""An earlier search, opened to be read and never written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from kdsearch.errors import UserError
from kdsearch.runs.address import storage_url, without_password
from kdsearch.runs.config import WarmStartConfig
from kdsearch.runs.folder import RunFolder
from kdsearch.runs.ledger import RUNG, open_storage, quiet
from kdsearch.search_space.recipe import Recipe

WORLD = "world"
"""Attribute of a search study: what its scores depend on (`identity`)."""


@dataclass(frozen=True)
class Past:
    """What an earlier search left.

    Attributes:
        name: of the run's folder, or of the study.
        trials: all of its search, by number.
        finals: of its finals, by the recipe's hash: the metrics of each seed.
        world: what its scores depend on.
    """

    name: str
    trials: list[FrozenTrial]
    finals: Mapping[str, list[Mapping[str, Any]]]
    world: Mapping[str, Any]

    def confirmed(self, metric: str) -> dict[str, tuple[int, float]]:
        """Of the recipes of the finals, by hash: how many seeds, and their mean."""
        scores = {key: [row.get(metric) for row in rows] for key, rows in self.finals.items()}
        known = {key: [score for score in found if score is not None] for key, found in scores.items()}
        return {key: (len(found), fmean(found)) for key, found in known.items() if found}


def open_past(settings: WarmStartConfig, here: Path) -> Past:
    """The run or study that a config names. `here` is the folder of the run that asks.

    Raises:
        UserError: nothing there, damaged, or it does not say what its scores depend on.
    """
    if settings.run is not None:
        place = RunFolder(Path(settings.run).expanduser())
        if place.path == here:
            raise UserError(f"warm_start.run: {settings.run!r} is this run's own folder; name an earlier one")
        try:
            config = place.read()
            name, study, url = place.path.name, config.study.name, storage_url(config, place.path)
        except UserError as error:
            raise UserError(f"warm_start.run: {error}") from None
        where = f"warm_start.run: {settings.run!r}"
    else:
        name = study = settings.study
        url = str(settings.storage)
        where = f"warm_start.storage: study {study!r} of {without_password(url)!r}"
    try:
        storage = open_storage(url, read_only=True)
        search = quiet(optuna.load_study)(study_name=study, storage=storage)
        trials, world = search.get_trials(deepcopy=False), search.user_attrs.get(WORLD)
        finals = _finals(study, storage)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except KeyError:
        raise UserError(f"{where} holds no search: there is no study {study!r}") from None
    except Exception as error:
        line = str(error.__cause__ or error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{where} is damaged or no study of kdsearch: {line}") from None
    if world is None:
        again = f"; `kdsearch resume {settings.run}` adds it" if settings.run is not None else ""
        raise UserError(f"{where} does not say on what data and by which teacher it was scored{again}")
    return Past(name, trials, finals, world)


def _finals(study: str, storage: optuna.storages.BaseStorage) -> dict[str, list[Mapping[str, Any]]]:
    name = f"{study}.finals"
    if name not in {known.study_name for known in storage.get_all_studies()}:
        return {}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for trial in quiet(optuna.load_study)(study_name=name, storage=storage).get_trials(deepcopy=False):
        if trial.state == TrialState.COMPLETE and RUNG + "final" in trial.user_attrs:
            with suppress(ValueError):  # a method that is gone
                # A method may have gained a hyper-parameter since, and its recipes another hash.
                name = Recipe.from_dict(trial.user_attrs["recipe"]).hash
                found.setdefault(name, []).append(trial.user_attrs[RUNG + "final"]["metrics"])
    return found
