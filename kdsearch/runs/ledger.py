"""The study as the run's only ledger: what is proposed, what each rung found, how each trial ended."""

from __future__ import annotations

import math
import sqlite3
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from kdsearch import searchers
from kdsearch.errors import UserError
from kdsearch.runs import pruning
from kdsearch.runs.address import storage_url, without_password
from kdsearch.runs.config import RunConfig
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.jobs import Failure, RungResult
from kdsearch.runs.metrics import DIRECTIONS, Direction

RUNG = "rung:"
T = TypeVar("T")
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
PROPOSED = ("search", "warm_start")
"""Origins of trials that may be stopped: what the searcher proposes, and what was best in an earlier run."""
RECREATED = "recreated"
"""Attribute of a trial that an earlier run has evaluated and not this one (`warm_start`): one of the next three."""
KNOWN, COMPARABLE, SHIFTED = "known", "comparable", "other seed"
"""This run would find the very same; the same as far as its rungs go; or its trials share another seed's luck."""


def open_storage(url: str, *, read_only: bool = False) -> optuna.storages.BaseStorage:
    """An Optuna storage, opened here so that a damaged or unreachable one is one clear line.

    Args:
        read_only: an SQLite file is not written, and has to be there.

    Raises:
        UserError: the storage cannot be opened.
    """
    try:
        if url.startswith("sqlite:///"):
            path = Path(url.removeprefix("sqlite:///"))
            if path.exists() and path.stat().st_size and path.read_bytes()[:15] != b"SQLite format 3":
                raise UserError(f"study: {str(path)!r} is damaged: it is not an SQLite file; restore it from a copy")
            if read_only and not path.exists():
                raise UserError(f"study: there is no file {str(path)!r}")
            path.parent.mkdir(parents=True, exist_ok=True)
            connect = partial(_look, str(path)) if read_only else partial(_connect, str(path))
            return optuna.storages.RDBStorage(url, engine_kwargs={"creator": connect})
        return optuna.storages.get_storage(url)
    except UserError:
        raise
    except Exception as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(without_password(f"study.storage: {url} cannot be opened: {line}")) from None


def _connect(path: str) -> sqlite3.Connection:
    """A connection whose commits survive a killed process at a millisecond each (40 with the default journal)."""
    connection = sqlite3.connect(path, timeout=60)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _look(path: str) -> sqlite3.Connection:
    """A connection that cannot write."""
    return sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, timeout=60)


def quiet(function: Callable[..., T]) -> Callable[..., T]:
    """A call during which Optuna reports no everyday news, such as a study being created."""

    def call(*args: Any, **kwargs: Any) -> T:
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            return function(*args, **kwargs)
        finally:
            optuna.logging.set_verbosity(before)

    return call


class Ledger:
    """One study of a run. Every write to it in the whole run goes through one process."""

    def __init__(
        self,
        study: optuna.Study,
        metric: str,
        steps: Mapping[str, int],
        primary: Direction,
        minimise: Sequence[str] = (),
        rungs: Sequence[Fidelity] = (),
    ) -> None:
        self.rungs = {rung.name: rung for rung in rungs}
        self.study, self.metric, self.steps = study, metric, dict(steps)
        self.primary, self.minimise = primary, tuple(minimise)

    @staticmethod
    def open(config: RunConfig, folder: Path) -> Ledger:
        """Create or load the search study.

        Raises:
            UserError: the storage cannot be opened or holds something else under this name.
        """
        sampler = searchers.create(config.searcher.name, seed=config.seed, **config.searcher.options)
        primary = DIRECTIONS[config.metric]
        directions: list[Direction] = [primary]
        directions += ["minimize"] * len(config.minimise)
        study = _study(config, folder, config.study.name, directions, sampler)
        study.pruner = pruning.pruner(config)
        rungs = [rung.fidelity() for rung in config.fidelity.rungs]
        return Ledger(study, config.metric, pruning.steps(config), primary, config.minimise, rungs)

    def inform(self, config: RunConfig, knowledge: Mapping[str, Any]) -> None:
        """Give the searcher what it may know of the space, as far as it takes it: defaults and priors.

        What the config says of a decision stands in front of what is known of it.
        """
        options = dict(config.searcher.options)
        for key, known in searchers.asked(config.searcher.name, knowledge).items():
            options[key] = {**known, **(options.get(key) or {})}
        self.study.sampler = searchers.create(config.searcher.name, seed=config.seed, **options)

    @staticmethod
    def open_finals(config: RunConfig, folder: Path) -> Ledger:
        """The study of the finalists: one trial per recipe and seed."""
        primary = DIRECTIONS[config.metric]
        study = _study(config, folder, f"{config.study.name}.finals", [primary], optuna.samplers.RandomSampler(seed=0))
        return Ledger(study, config.metric, {}, primary)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The run's own trials. What it took over from an earlier run is `inherited`."""
        found = self.study.get_trials(deepcopy=False, states=states or None)
        return [trial for trial in found if RECREATED not in trial.user_attrs]

    def inherited(self) -> list[FrozenTrial]:
        """Trials of an earlier run, re-created here for the searcher and the pruner."""
        return [t for t in self.study.get_trials(deepcopy=False) if RECREATED in t.user_attrs]

    def note(self, trial: Trial, **attributes: Any) -> None:
        for key, value in attributes.items():
            trial.set_user_attr(key, value)

    def record(self, trial: Trial, result: RungResult) -> None:
        """Keep what a rung found; a trained rung's score is also reported to Optuna, so that pruners and plots see
        it.
        """
        data = {key: value for key, value in asdict(result).items() if key != "name"}
        rung, judged = self.rungs.get(result.name), result.score
        if rung is not None and rung.judge != "metric":
            judged = rung.judged(result.score, result.metrics, maximise=self.primary == "maximize")
            data["judged"] = judged
        trial.set_user_attr(RUNG + result.name, _plain(data))
        if result.trained and result.name in self.steps and len(self.study.directions) == 1:
            trial.report(judged, self.steps[result.name])

    def prunes(self, trial: Trial, result: RungResult) -> bool:
        """Whether the study's pruner stops a trial after this rung.

        With several objectives the first one decides, among trials whose students cost no more: a small student is not
        stopped for being worse than larger ones, and so the cheap end of the front is reached, too.
        """
        if len(self.study.directions) == 1:
            return bool(trial.should_prune())
        mirror = quiet(optuna.create_study)(direction=self.primary)
        if (verdicts := self.study.user_attrs.get(pruning.CALIBRATION)) is not None:
            mirror.set_user_attr(pruning.CALIBRATION, verdicts)
        steps = self.steps
        running, own = 0, self._costs(result.size)
        for other in (*self.inherited(), *self.trials()):
            mine = other.number == trial.number
            again = {"duplicate_of", "taken_from"} & set(other.user_attrs) or other.user_attrs.get(RECREATED) == SHIFTED
            if not mine and (again or not self._comparable(other, own)):
                continue
            found = {steps[n]: judged(other, n) for n in steps if RUNG + n in other.user_attrs}
            values = {step: math.nan if told is None else told for step, told in found.items()}
            value = other.values[0] if other.state == TrialState.COMPLETE and other.values else None
            state = TrialState.COMPLETE if value is not None else TrialState.PRUNED
            if mine:
                running, state = len(mirror.get_trials(deepcopy=False)), TrialState.RUNNING
            elif state == TrialState.PRUNED and not values:
                continue
            # Successive halving compares what it has noted of each trial, not the reported values: of the trial itself
            # what lies below this rung, of trials that are never stopped nothing. It notes no NaN.
            free = not stoppable(other)
            noted = {
                f"completed_rung_{k}": values[step]
                for k, (name, step) in enumerate(steps.items())
                if not math.isnan(values.get(step, math.nan)) and (name != result.name if mine else not free)
            }
            mirror.add_trial(
                optuna.trial.create_trial(state=state, value=value, intermediate_values=values, system_attrs=noted)
            )
        return bool(self.study.pruner.prune(mirror, mirror.get_trials(deepcopy=False)[running]))

    def _costs(self, size: Mapping[str, float]) -> tuple[float, ...] | None:
        return tuple(size[name] for name in self.minimise) if all(name in size for name in self.minimise) else None

    def _comparable(self, other: FrozenTrial, own: tuple[float, ...] | None) -> bool:
        """Whether a trial's student costs no more in any objective, as far as both are known."""
        sizes = [other.user_attrs.get(RUNG + name, {}).get("size", {}) for name in self.steps]
        theirs = next((found for found in map(self._costs, sizes) if found is not None), None)
        return own is None or theirs is None or all(a <= b for a, b in zip(theirs, own, strict=True))

    def complete(self, trial: Trial, values: Sequence[float]) -> None:
        self.study.tell(trial, list(values) if len(values) > 1 else values[0])

    def prune(self, trial: Trial, at: str) -> None:
        trial.set_user_attr("pruned_at", at)
        self.study.tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: Trial, failure: Failure) -> None:
        """A deterministic failure is PRUNED without a value, so that samplers learn from it; the rest is FAIL and
        retried.
        """
        record = {"reason": failure.reason, "message": failure.message}
        if failure.trace:
            record["trace"] = failure.trace[-4000:]
        trial.set_user_attr("failure", record)
        self.study.tell(trial, state=TrialState.PRUNED if failure.deterministic else TrialState.FAIL)

    def close_zombies(self) -> list[FrozenTrial]:
        """End the trials that a dead process left running; they are the caller's to try again."""
        zombies = self.trials(TrialState.RUNNING)
        for zombie in zombies:
            self.study._storage.set_trial_user_attr(
                zombie._trial_id, "failure", {"reason": "interrupted", "message": "the process that ran it ended"}
            )
            self.study.tell(zombie.number, state=TrialState.FAIL)
        return zombies

    def better(self, a: float, b: float) -> bool:
        """Whether score a beats score b."""
        return a > b if self.primary == "maximize" else a < b


def judged(trial: FrozenTrial, rung: str) -> Any:
    """What a rung that the trial has passed told of it: its score, or what the rung is judged by instead."""
    found = trial.user_attrs[RUNG + rung]
    return found.get("judged", found["score"])


def stoppable(trial: FrozenTrial) -> bool:
    """Whether a pruner decided about a trial, here or in the run that it is from."""
    attributes = trial.user_attrs
    own = attributes.get("origin", "search")
    return str(attributes["source"]["origin"] if RECREATED in attributes else own) in PROPOSED


def _study(
    config: RunConfig, folder: Path, name: str, directions: list[Direction], sampler: optuna.samplers.BaseSampler
) -> optuna.Study:
    storage = open_storage(storage_url(config, folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            study = quiet(optuna.create_study)(
                study_name=name, storage=storage, sampler=sampler, directions=directions, load_if_exists=True
            )
            existing = [d.name.lower() for d in study.directions]
        except Exception as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"study: {name!r} cannot be opened: {line}") from None
    if existing != directions:
        raise UserError(
            f"study.name: {name!r} exists with other objectives ({', '.join(existing)}); choose another name"
        )
    return study


def _plain(value: Any) -> Any:
    """JSON without NaN and infinities: databases refuse them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
