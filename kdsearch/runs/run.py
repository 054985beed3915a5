"""A run from config to report: claim the folder, prepare data and teacher, search, confirm, test once, write it all
down.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial
from sqlalchemy.exc import OperationalError
from torch import nn

from kdsearch.errors import TrialFailure, UserError
from kdsearch.kd_methods import ModelSpec
from kdsearch.runs import assemble, teacher, warm_start
from kdsearch.runs.config import BudgetConfig, RunConfig
from kdsearch.runs.data import Data
from kdsearch.runs.driver import Driver, Tally
from kdsearch.runs.engines import Engine
from kdsearch.runs.engines.local import LocalEngine
from kdsearch.runs.export.files import write_best
from kdsearch.runs.finals import Finals, Standing
from kdsearch.runs.fitting import Fitting, fitting
from kdsearch.runs.folder import RunFolder
from kdsearch.runs.front import front
from kdsearch.runs.identity import departures, identity
from kdsearch.runs.ledger import Ledger
from kdsearch.runs.past import WORLD, Past
from kdsearch.runs.progress import Progress
from kdsearch.runs.settings import pick_device
from kdsearch.runs.sizes import Sizes
from kdsearch.runs.trial import Runner
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace
from kdsearch.search_space.validity import problem


class Run:
    """One search and what it found. `Run(folder)` opens an existing one to look at.

    Attributes:
        path: the run's folder.
        config: what it was told.
    """

    def __init__(self, folder: str | Path, config: RunConfig | None = None) -> None:
        self.place = RunFolder(folder)
        self.config = config or self.place.read()
        self._new = False

    @property
    def path(self) -> Path:
        return self.place.path

    @cached_property
    def search_ledger(self) -> Ledger:
        ledger = Ledger.open(self.config, self.path)
        self._inform(ledger)
        return ledger

    def _inform(self, ledger: Ledger) -> None:
        ledger.inform(self.config, warm_start.informed(ledger, assemble.knowledge(self._space(ledger))))

    @cached_property
    def finals_ledger(self) -> Ledger:
        return Ledger.open_finals(self.config, self.path)

    @property
    def space(self) -> SearchSpace:
        """The config's space; once the students within its limits are known, what they leave of it."""
        return self._space(self.search_ledger)

    def _space(self, ledger: Ledger) -> SearchSpace:
        whole, found = SearchSpace.from_dict(self.config.space), self._fitting(ledger)
        return whole if found is None else found.within(whole)

    @staticmethod
    def _fitting(ledger: Ledger) -> Fitting | None:
        found = ledger.study.user_attrs.get("students")
        return None if found is None else Fitting(**found)

    @property
    def study(self) -> Any:
        """The Optuna study of the search."""
        return self.search_ledger.study

    @property
    def finals(self) -> Finals:
        return Finals(self.config, self.place, self.search_ledger, self.finals_ledger, self.space.default())

    @property
    def front(self) -> list[FrozenTrial]:
        """The trials on the Pareto front of a search with several objectives, best metric first."""
        return front(self.search_ledger)

    @property
    def standings(self) -> list[Standing]:
        """The finals' table, best first."""
        return self.finals.standings()

    @property
    def best(self) -> Recipe | None:
        """The winning recipe; before the finals, the best trial's."""
        winner = self.finals.winner()
        if winner is not None:
            return winner.recipe
        found = self.finals.finalists()
        return found[0][0] if found else None

    def execute(
        self,
        progress: Progress | None = None,
        *,
        teacher_module: nn.Module | None = None,
        data: Data | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Run:
        """Search, confirm, test, report; whatever is done already is not done again. The folder must be claimed.

        Raises:
            UserError: what the user can mend.
            KeyboardInterrupt: passed on, after everything that is finished has been kept.
        """
        try:
            return self._execute(progress or Progress(), teacher_module, data, stop)
        except UserError:
            if self._new:
                self._let_go()
            raise
        except (OperationalError, StorageInternalError) as error:
            line = str(error.__cause__ or error).splitlines()[0]
            raise UserError(
                f"study: cannot be written: {line}; what was finished before is kept. "
                f"Go on with: kdsearch resume {self.path}"
            ) from error

    def _let_go(self) -> None:
        """Leave a folder in which nothing has been measured to a corrected config, without the study begun in it."""
        try:
            ledger = self.search_ledger
        except UserError:  # a study that this run can do nothing with
            self.place.abandon()
            return
        if ledger.trials() or ledger.inherited():
            return
        self.place.abandon()
        if self.config.study.storage is None:  # in a shared one, another run may be at the same study
            for name in (self.config.study.name, f"{self.config.study.name}.finals"):
                with suppress(KeyError):
                    optuna.delete_study(study_name=name, storage=ledger.study._storage)

    def _execute(
        self, say: Progress, teacher_module: nn.Module | None, data: Data | None, stop: Callable[[], bool]
    ) -> Run:
        phases: dict[str, float] = dict(self.search_ledger.study.user_attrs.get("phases", {}))
        clock = _Clock(phases)
        past = warm_start.source(self.config, self.search_ledger, self.path)
        say.phase("data and teacher")
        with clock("teacher"):
            here = self._world(say, teacher_module, data)
        assert here.teacher is not None
        for name in ("accuracy", self.config.metric):
            if name in here.teacher.metrics:
                self.search_ledger.study.set_user_attr(f"teacher_{name}", here.teacher.metrics[name])
        score = here.teacher.metrics.get(self.config.metric)
        say.line(f"teacher {here.teacher.name}: {here.teacher.spec.parameters:,} parameters"
                 + (f", validation {self.config.metric} {score:.4f}" if score is not None else ""))  # fmt: skip
        given = teacher_module is not None or data is not None
        if given and self.config.engine.name != "local":
            say.line("objects of your own stay in this process: trials run here, not on Ray")
        engine: Engine = (
            LocalEngine(Runner(here, assemble.ladder(self.config), self.path))
            if given
            else assemble.engine(self.config, self.place, here)
        )
        try:
            say.phase("search")
            with clock("search"):
                self._search(engine, here, say, stop, past)
            self._warn_weak_teacher(here, say)
            if not stop():
                say.phase("finals")
                with clock("finals"):
                    finals = self.finals
                    finals.changed = say.line
                    finals.run(engine)
                    finals.test(here)
        finally:
            engine.close()
            self.search_ledger.study.set_user_attr("phases", phases)
        self._write(here, say)
        return self

    def _world(self, say: Progress, module: nn.Module | None, data: Data | None) -> World:
        device = pick_device(self.config.engine.device)
        how, cache = assemble.settings(self.config), assemble.cache(self.config, self.path)
        loaded = data or assemble.data(self.config, device)
        assemble.space(self.space, None, loaded.classes, partly=loaded.partly)  # said before anything is trained
        self._fit(loaded, cache, say)
        if module is None:
            model = teacher.prepare(self.config, loaded, how, cache, say.training)
        else:
            model = teacher.adopt(module.to(loaded.device), type(module).__name__, self.config, loaded, how)
        others = teacher.further(self.config, loaded, how, cache, say.training)
        for name, other in others.items():
            score = other.metrics.get(self.config.metric, float("nan"))
            say.line(f"{name} {other.name}: {other.spec.parameters:,} parameters, validation {score:.4f}")
        if not others and "ensemble" in self.space.options["teaching"] and self.config.space.get("teaching"):
            say.line("warning: teaching=ensemble with one teacher is plain teaching; name others under `teachers`")
        return World(loaded, model, how, cache, self.config.metric, self.config.seed, others=others)

    def _fit(self, data: Data, cache: Path, say: Progress) -> None:
        """Constrain the space by the limits. Done once in a run, before the teacher is trained."""
        ledger = self.search_ledger
        if not self.config.limits.given():
            return
        if self._fitting(ledger) is None and not ledger.trials():
            found = fitting(self.space, assemble.sizes(self.config, data, None, cache))
            ledger.study.set_user_attr("students", found.to_dict())
            self._inform(ledger)
        known = self._fitting(ledger)
        if known is not None:
            say.line(known.describe())

    def _search(self, engine: Engine, here: World, say: Progress, stop: Callable[[], bool], past: Past | None) -> None:
        assert here.teacher is not None
        found = self._fitting(self.search_ledger)
        space = assemble.space(self.space, here.teacher.spec, here.data.classes, partly=here.data.partly)
        sizes = assemble.sizes(self.config, here.data, here.teacher.spec, here.cache)
        made_of = identity(here, (rung.fidelity() for rung in self.config.fidelity.rungs))
        known = self.study.user_attrs.get(WORLD)
        if known is None or not self.search_ledger.trials():
            self.study.set_user_attr(WORLD, made_of)
        elif other := departures(known, made_of):
            raise UserError(
                f"study: its trials were scored with other {' and '.join(other)}; go on with what the run began with "
                "(objects of your own: kdsearch.resume(RUN).execute(teacher_module=..., data=...)), or begin a new run"
            )
        if past is not None:
            teaches, classes = here.teacher.spec, here.data.classes
            fits = partial(_unfit, teacher=teaches, classes=classes, sizes=sizes)
            say.line(warm_start.begin(self.config, self.search_ledger, space, past, made_of, fits))
            self._inform(self.search_ledger)
        driver = Driver(
            self.config,
            space,
            self.search_ledger,
            here.teacher.spec,
            here.data.classes,
            sizes=sizes,
            share=found.share if found is not None else 1.0,
            stop=stop,
        )

        def changed(tally: Tally) -> None:
            say.search(tally, driver.elapsed)

        driver.changed = changed
        engine.serve(driver)
        if driver.exhausted:
            say.line(f"the space is exhausted: {driver.patience:.0f} proposals in a row were known or invalid")

    def _warn_weak_teacher(self, here: World, say: Progress) -> None:
        """A teacher that is not above the student it is to teach deserves a word."""
        assert here.teacher is not None
        score = here.teacher.metrics.get(self.config.metric)
        alone = [
            t.values[0]
            for t in self.search_ledger.trials()
            if t.user_attrs.get("origin") == "baseline:none" and t.values
        ]
        if score is not None and alone and not self.search_ledger.better(score, alone[0]):
            text = f"warning: the teacher ({score:.4f}) is not above the student trained alone ({alone[0]:.4f})"
            self.search_ledger.study.set_user_attr("warning", text)
            say.line(text)

    def _write(self, here: World, say: Progress) -> None:
        finals = self.finals
        winner = finals.winner()
        if winner is None:
            say.line("no trial has finished: there is no best recipe yet")
        else:
            write_best(self, winner, finals, here)
        from kdsearch.runs.report import write as write_report

        say.phase("report")
        write_report(self)

    def claim(self, *, new: bool) -> Run:
        """Take the folder's lock: for a new run, or to go on with an old one."""
        self._new = new
        if new:
            self.place.create(self.config)
        else:
            stored = self.place.open()
            if self.config.budget != stored.budget:
                self.place.write(self.config)  # the next resume goes on to the same end
        return self

    def state(self) -> dict[str, Any]:
        """Counts, best and phases, read off the study: what `kdsearch status` prints."""
        ledger = self.search_ledger
        states: dict[str, int] = {}
        for trial in ledger.trials():
            key = "free" if trial.user_attrs.get("free") else trial.state.name.lower()
            states[key] = states.get(key, 0) + 1
        best = self.best
        state: dict[str, Any] = {
            "run": str(self.path),
            "trials": states,
            "budget": self.config.budget.trials,
            "elapsed": ledger.study.user_attrs.get("elapsed", 0.0),
            "best": best.equation() if best else None,
            "front": [{"trial": t.number, "values": t.values, "recipe": t.user_attrs["equation"]} for t in self.front],
            "finals": len(self.finals_ledger.trials()),
            "report": str(self.place.report) if self.place.report.exists() else None,
        }
        return state | warm_start.state(ledger)


def _unfit(recipe: Recipe, teacher: ModelSpec, classes: int, sizes: Sizes) -> str | None:
    """Why a recipe cannot be trained in this run; None where it can."""
    try:
        return problem(recipe, teacher, classes) or sizes.over(recipe)
    except TrialFailure as failure:
        return str(failure)


class _Clock:
    """Adds up wall time by phase."""

    def __init__(self, phases: dict[str, float]) -> None:
        self.phases = phases
        self._name, self._began = "", 0.0

    def __call__(self, name: str) -> _Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.phases[self._name] = self.phases.get(self._name, 0.0) + time.perf_counter() - self._began


def resume(folder: str | Path, *, trials: int | None = None, seconds: float | None = None) -> Run:
    """Open a run to go on with it, also with more trials or time than it was first given.

    Either budget takes the place of the one that the run had: the one that is not named lifts.

    Raises:
        UserError: no run there, or in use.
    """
    run = Run(folder)
    if trials is not None or seconds is not None:
        budget = BudgetConfig(trials=trials, seconds=seconds)
        run = Run(folder, run.config.model_copy(update={"budget": budget}))
    return run.claim(new=False)
