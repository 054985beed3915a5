"""The driver: proposes recipes, records what comes back, decides who goes on. Engines only carry jobs to and fro."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods import ModelSpec
from kdsearch.runs.calibration import calibrate
from kdsearch.runs.config import COMBINED, RunConfig
from kdsearch.runs.gate import PROXIES, Gate, one_student
from kdsearch.runs.jobs import SEARCH, Failure, Job, RungResult
from kdsearch.runs.ledger import FINISHED, KNOWN, PROPOSED, RECREATED, RUNG, Ledger
from kdsearch.runs.sizes import Sizes
from kdsearch.runs.warm_start import first
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace
from kdsearch.search_space.validity import problem

EXHAUSTED = 20  # free proposals in a row after which the space counts as exhausted, were all students to fit
RETRIES = 2  # attempts at a trial that failed for the machine's sake


@dataclass
class Tally:
    """Where a search stands, for progress lines and reports."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    free: int = 0
    running: int = 0
    best: float | None = None
    best_number: int | None = None
    baselines: dict[str, float] = field(default_factory=dict)
    last: str = ""

    @property
    def done(self) -> int:
        return self.complete + self.pruned + self.failed


class Driver:
    """Ask, record, decide, tell: the only writer of the search study.

    Args:
        sizes: measures students against the limits, and the latency of those that are trained; None leaves both out.
        share: of random proposals, how many have a student within the limits.
    """

    def __init__(
        self,
        config: RunConfig,
        space: SearchSpace,
        ledger: Ledger,
        teacher: ModelSpec | None,
        classes: int,
        *,
        sizes: Sizes | None = None,
        share: float = 1.0,
        stop: Callable[[], bool] = lambda: False,
        changed: Callable[[Tally], None] = lambda tally: None,
    ) -> None:
        self.config, self.space, self.ledger = config, space, ledger
        self.teacher, self.classes = teacher, classes
        self.sizes, self.patience = sizes, EXHAUSTED / share
        self.stop, self.changed = stop, changed
        self.tally = Tally()
        self.exhausted = False
        self._free = 0  # free proposals in a row
        self._trials: dict[int, Trial] = {}
        self._known: dict[str, FrozenTrial] = {}
        self._running: dict[str, int] = {}
        self.gate = Gate(config.proxies, config.fidelity.rungs[0].name, ledger.primary, alone=not config.minimise)
        self._scored = not one_student(space)
        self._last_rung = config.fidelity.rungs[-1].name
        self._began = time.monotonic()
        self._elapsed = float(ledger.study.user_attrs.get("elapsed", 0.0))
        self._remember()

    def _remember(self) -> None:
        """Rebuild the driver's view from the study alone; close and requeue what a dead process left running."""
        for zombie in self.ledger.close_zombies():
            if "recipe" in zombie.user_attrs and "duplicate_of" not in zombie.user_attrs:
                again = Recipe.from_dict(zombie.user_attrs["recipe"])
                origin = zombie.user_attrs.get("origin", "search")
                self._enqueue(dict(zombie.params), origin, retry_of=zombie.number, recipe=again)
        if all(trial.state == TrialState.WAITING for trial in self.ledger.trials()):
            self._enqueue_known_good()
        for trial in self.ledger.trials():
            self._count(trial)
            if trial.state in FINISHED and "hash" in trial.user_attrs and "duplicate_of" not in trial.user_attrs:
                self._known.setdefault(trial.user_attrs["hash"], trial)
            self.gate.remember(trial)
        for trial in self.ledger.inherited():
            if trial.user_attrs[RECREATED] == KNOWN:
                self._known.setdefault(trial.user_attrs["hash"], trial)

    def _enqueue_known_good(self) -> None:
        """First the baselines, then what was best in an earlier run, then published defaults, at most the configured
        share of the budget. What a dead process has enqueued already is not enqueued again.
        """
        waiting = [(t.user_attrs.get("origin"), t.system_attrs.get("fixed_params")) for t in self.ledger.trials()]

        def enqueue(params: dict[str, Any], origin: str, **how: Any) -> None:
            if (origin, params) not in waiting:
                self._enqueue(params, origin, **how)

        base = self.space.default()
        for name, baseline in (("none", base.without_distillation()), ("kd", base.plain_kd())):
            enqueue(self._params(baseline), f"baseline:{name}", recipe=baseline)
        for recipe, source in first(self.ledger):
            enqueue(self.space.params_of(recipe), "warm_start", recipe=recipe, source=source)
        trials = self.config.budget.trials or 100
        for recipe in self.space.published()[: int(self.config.searcher.published * trials)]:
            if recipe != base.plain_kd():
                enqueue(self.space.params_of(recipe), "published")

    def _params(self, recipe: Recipe) -> dict[str, Any]:
        """A baseline's decisions where it lies in the space; otherwise it is carried as a recipe alone."""
        try:
            return self.space.params_of(recipe)
        except ValueError:
            return {}

    def _enqueue(
        self,
        params: dict[str, Any],
        origin: str,
        *,
        retry_of: int | None = None,
        recipe: Recipe | None = None,
        attempt: int = 1,
        source: dict[str, Any] | None = None,
    ) -> None:
        attributes: dict[str, Any] = {"origin": origin, "attempt": attempt, "in_space": bool(params)}
        if recipe is not None:
            attributes["recipe"] = recipe.to_dict()
        if retry_of is not None:
            attributes["retry_of"] = retry_of
        if source is not None:
            attributes["source"] = source
        self.ledger.study.enqueue_trial(params, user_attrs=attributes)

    @property
    def elapsed(self) -> float:
        """Seconds of search, earlier processes of the same run included."""
        return self._elapsed + time.monotonic() - self._began

    def _over(self) -> bool:
        budget = self.config.budget
        if self.stop() or self.exhausted:
            return True
        if budget.trials is not None and self.tally.done + self.tally.running >= budget.trials:
            return True
        return budget.seconds is not None and self.elapsed >= budget.seconds

    def propose(self) -> Job | None:
        """The next job, or None when the budget is spent, the space exhausted or the run asked to stop."""
        while not self._over():
            if self._free >= self.patience:
                self.exhausted = True
                return None
            trial = self.ledger.study.ask()
            origin = trial.user_attrs.get("origin", "search")
            recipe = self._recipe(trial)
            self.ledger.note(
                trial, origin=origin, recipe=recipe.to_dict(), hash=recipe.hash, equation=recipe.equation()
            )
            if self._settled(trial, recipe):
                self._free += origin == "search"  # what was enqueued says nothing about how much is left
                continue
            self._trials[trial.number] = trial
            self._running[recipe.hash] = trial.number
            self.tally.running += 1
            protected = origin not in PROPOSED
            return Job(SEARCH, trial.number, recipe.to_dict(), self.config.seed, protected, self._scored)
        return None

    def _recipe(self, trial: Trial) -> Recipe:
        """What the sampler decides, or, for a baseline that lies outside the space, the recipe it was enqueued with."""
        given = trial.user_attrs.get("recipe")
        if given is not None and not trial.user_attrs.get("in_space"):
            return Recipe.from_dict(given)
        return self.space.suggest(trial)

    def _settled(self, trial: Trial, recipe: Recipe) -> bool:
        """Deal with a proposal that costs nothing: invalid, known already, or running at this moment."""
        invalid = problem(recipe, self.teacher, self.classes) or self._too_large(recipe)
        if invalid:
            self.ledger.note(trial, free=True)
            self.ledger.fail(trial, Failure("invalid", invalid, deterministic=True))
        elif recipe.hash in self._known:
            self._repeat(trial, self._known[recipe.hash])
        elif recipe.hash in self._running:
            self.ledger.note(trial, free=True, duplicate_of=self._running[recipe.hash])
            self.ledger.study.tell(trial, state=TrialState.FAIL)
        else:
            return False
        self.tally.free += 1
        return True

    def _too_large(self, recipe: Recipe) -> str | None:
        """Which limit the student breaks, measured before the trial is given to anybody."""
        try:
            return self.sizes.over(recipe) if self.sizes is not None else None
        except TrialFailure as failure:
            return str(failure)

    def _repeat(self, trial: Trial, known: FrozenTrial) -> None:
        """A duplicate takes the known result. One that an earlier run of the same world has found becomes this run's
        own with the first proposal.
        """
        taken = RECREATED in known.user_attrs
        where = {"taken_from": known.user_attrs["source"]} if taken else {"duplicate_of": known.number}
        self.ledger.note(trial, free=True, **where)
        for key, value in known.user_attrs.items():
            if key.startswith(RUNG) or key in ("failure", "pruned_at"):
                trial.set_user_attr(key, value)
        if len(self.ledger.study.directions) == 1:
            for step, value in known.intermediate_values.items():
                trial.report(value, step)
        if known.state == TrialState.COMPLETE and known.values:
            self.ledger.complete(trial, known.values)
        else:
            self.ledger.study.tell(trial, state=TrialState.PRUNED)
        if taken:
            own = self.ledger.study._storage.get_trial(trial._trial_id)
            self._known[str(trial.user_attrs["hash"])] = own
            self._count_taken(own)
            self.gate.remember(own)

    def _count_taken(self, trial: FrozenTrial) -> None:
        """A result that cost nothing may be the best all the same."""
        if trial.state == TrialState.COMPLETE and "taken_from" in trial.user_attrs:
            self._score(trial.number, str(trial.user_attrs["origin"]), trial.values[0])

    def record(self, job: Job, result: RungResult) -> bool:
        """Keep a rung's result; True to go on with the next rung."""
        trial = self._trials[job.number]
        self._free = 0
        if self.sizes is not None and result.size:
            # Workers measure what depends on the architecture alone; the time it takes is of this machine.
            timed = {"latency"} & {*self.sizes.limits, *self.config.minimise}
            result.size |= self.sizes.of(Recipe.from_dict(job.recipe), *timed) if timed else {}
        self.ledger.record(trial, result)
        found = f"{result.score:.4g}" if math.isfinite(result.score) else "passed"
        self.tally.last = f"trial {job.number} {result.name} {found} in {result.seconds:.1f} s"
        if RUNG + result.name == self.gate.first:
            self._learn(job, result)
        if not result.trained:
            go_on = result.name != PROXIES or not self._stopped_by_proxies(job, trial, result) or job.protected
        elif result.name == self._last_rung:
            self._complete(job, trial, result)
            return False
        else:
            go_on = job.protected or not self.ledger.prunes(trial, result)
        if not go_on:
            self.ledger.prune(trial, result.name)
            self.tally.pruned += 1
            self._forget(job)
        self._tell_elapsed()
        return go_on

    def _complete(self, job: Job, trial: Trial, result: RungResult) -> None:
        values = [result.score, *(result.size[name] for name in self.config.minimise)]
        self.ledger.complete(trial, values)
        self.tally.complete += 1
        self._score(trial.number, str(trial.user_attrs.get("origin", "search")), result.score)
        self._forget(job)
        self.tally.last = calibrate(self.ledger.study, self.config) or self.tally.last
        self._tell_elapsed()

    def finish(self, job: Job, failure: Failure) -> None:
        """Keep why a job ended without completing. What the machine is to blame for is tried again."""
        trial = self._trials[job.number]
        invalid = failure.reason == "invalid"
        if invalid:
            self.ledger.note(trial, free=True)
        self.ledger.fail(trial, failure)
        attempts = int(trial.user_attrs.get("attempt", 1))
        if invalid:
            self.tally.free += 1
            self._free += 1
        elif failure.deterministic:
            self.tally.failed += 1
        elif attempts < RETRIES:
            origin = str(trial.user_attrs.get("origin", "search"))
            again = Recipe.from_dict(job.recipe)
            self._enqueue(dict(trial.params), origin, retry_of=job.number, recipe=again, attempt=attempts + 1)
        else:
            self.tally.failed += 1
        self.tally.last = f"trial {job.number} {failure.reason}: {failure.message}"
        self._forget(job)
        self._tell_elapsed()

    def _forget(self, job: Job) -> None:
        trial = self._trials.pop(job.number)
        self.tally.running -= 1
        name = str(trial.user_attrs["hash"])
        self._running.pop(name, None)
        frozen = self.ledger.study._storage.get_trial(trial._trial_id)
        if frozen.state in FINISHED:
            self._known.setdefault(name, frozen)
        self.changed(self.tally)

    def _stopped_by_proxies(self, job: Job, trial: Trial, result: RungResult) -> bool:
        stops, said = self.gate.judge(result.metrics, result.score)
        self.gate.see(job.recipe, result.metrics, result.score)
        if said is not None:
            self.ledger.note(trial, combined=said)
        return stops

    def _learn(self, job: Job, result: RungResult) -> None:
        """The first trained rung is what the combiner of proxies learns from."""
        self.gate.learn(job.recipe, result.score)
        shown = self.gate.standing
        if shown is not None:
            self.ledger.study.set_user_attr(COMBINED, shown.to_dict())

    def _count(self, trial: FrozenTrial) -> None:
        if trial.user_attrs.get("free"):
            self.tally.free += 1
            self._count_taken(trial)
            return
        if trial.state == TrialState.COMPLETE:
            self.tally.complete += 1
            self._score(trial.number, trial.user_attrs.get("origin", "search"), trial.values[0])
        elif trial.state == TrialState.PRUNED:
            if "failure" in trial.user_attrs:
                self.tally.failed += 1
            else:
                self.tally.pruned += 1

    def _score(self, number: int, origin: str, score: float) -> None:
        if origin.startswith("baseline:"):
            self.tally.baselines[origin.removeprefix("baseline:")] = score
        elif self.tally.best is None or self.ledger.better(score, self.tally.best):
            self.tally.best, self.tally.best_number = score, number

    def _tell_elapsed(self) -> None:
        self.ledger.study.set_user_attr("elapsed", self.elapsed)
        self.changed(self.tally)
