"""The last comparison: the best recipes beside the baselines at full fidelity, several seeds each, then test once.

Everything is chosen by the validation split. Test is touched after the winner is known, for the winner and the
baselines alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from optuna.trial import Trial, TrialState

from kdsearch.runs import deploy, models
from kdsearch.runs.config import RunConfig
from kdsearch.runs.driver import RETRIES
from kdsearch.runs.engines import Engine
from kdsearch.runs.folder import RunFolder
from kdsearch.runs.front import front
from kdsearch.runs.jobs import FINAL, Failure, Job, RungResult
from kdsearch.runs.ledger import RUNG, Ledger
from kdsearch.runs.metrics import evaluate
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe

Entry = tuple[Recipe, str, int | None]  # a recipe, its role, the search trial it comes from


@dataclass
class Standing:
    """One recipe of the finals: its role, and its scores seed by seed."""

    recipe: Recipe
    role: str
    validation: list[float]
    test: list[float]
    source: int | None = None

    @property
    def mean(self) -> float:
        return fmean(self.validation)

    def spread(self, scores: list[float]) -> float:
        return stdev(scores) if len(scores) > 1 else 0.0


class Finals:
    """Runs and reads the finals of a run. Jobs that are done already are not done again."""

    def __init__(self, config: RunConfig, place: RunFolder, search: Ledger, ledger: Ledger, default: Recipe) -> None:
        self.config, self.place, self.search, self.ledger = config, place, search, ledger
        self.default = default
        self.changed: Callable[[str], None] = lambda text: None
        self._attempts: dict[tuple[str, int], int] = {}
        self._trials: dict[int, Trial] = {}
        self._queue: list[tuple[Recipe, str, int | None, int]] = []

    def run(self, engine: Engine) -> list[Standing]:
        """Train finalists and baselines under every seed; then the winner's own student under both baselines."""
        self.ledger.close_zombies()  # jobs are planned by what is finished, so that these are simply done again
        settings = self.config.finals
        baselines: list[Entry] = [
            (self.default.without_distillation(), "baseline:none", None),
            (self.default.plain_kd(), "baseline:kd", None),
        ]
        candidates: list[Entry] = [(recipe, "finalist", number) for recipe, number in self.finalists()]
        if len(candidates) > settings.recipes:
            first = min(settings.first, settings.seeds)
            self._train(candidates, engine, first)
            means = self._means(first)
            known = [entry for entry in candidates if entry[0].hash in means]
            known.sort(key=lambda entry: means[entry[0].hash], reverse=self.ledger.primary == "maximize")
            candidates = known[: settings.recipes]
        self._train([*baselines, *candidates], engine, settings.seeds)
        winner = self.winner()
        if winner is not None:
            own = [
                (winner.recipe.without_distillation(), "paired:none", None),
                (winner.recipe.plain_kd(), "paired:kd", None),
            ]
            there = {s.recipe for s in self.standings() if not s.role.startswith("paired")}
            self._train([entry for entry in own if entry[0] not in there], engine, settings.seeds)
        return self.standings()

    def _means(self, first: int) -> dict[str, float]:
        """Each recipe's mean over the first seeds alone, by hash: a resumed run has more of those it once chose."""
        scores: dict[str, list[float]] = {}
        for trial in self.ledger.trials(TrialState.COMPLETE):
            if trial.user_attrs["seed"] < first:
                scores.setdefault(trial.user_attrs["hash"], []).append(trial.values[0])
        return {key: fmean(found) for key, found in scores.items()}

    def finalists(self) -> list[tuple[Recipe, int]]:
        """The best distinct recipes of the search, best first, baselines left out: the candidates.

        With several objectives those on the Pareto front come before all others.
        """
        leading = {trial.number for trial in front(self.search)}
        done = [t for t in self.search.trials(TrialState.COMPLETE) if "duplicate_of" not in t.user_attrs]
        sign = -1 if self.search.primary == "maximize" else 1
        ranked = sorted(done, key=lambda t: (t.number not in leading, sign * t.values[0]))
        found: list[tuple[Recipe, int]] = []
        for trial in ranked:
            recipe = Recipe.from_dict(trial.user_attrs["recipe"])
            baseline = recipe in (self.default.without_distillation(), self.default.plain_kd())
            if recipe.distils and not baseline and all(recipe != other for other, _ in found):
                found.append((recipe, trial.number))
        settings = self.config.finals
        return found[: settings.candidates or 2 * settings.recipes]

    def _train(self, wanted: Iterable[Entry], engine: Engine, seeds: int) -> None:
        done = {
            (t.user_attrs["hash"], t.user_attrs["seed"])
            for t in self.ledger.trials()
            if t.state == TrialState.COMPLETE or ("failure" in t.user_attrs and t.state == TrialState.PRUNED)
        }
        self._queue = [
            (recipe, role, source, k)
            for k in range(seeds)
            for recipe, role, source in wanted
            if (recipe.hash, k) not in done
        ]
        if self._queue:
            engine.serve(self)

    def propose(self) -> Job | None:
        if not self._queue:
            return None
        recipe, role, source, k = self._queue.pop(0)
        trial = self.ledger.study.ask()
        self.ledger.note(
            trial, recipe=recipe.to_dict(), hash=recipe.hash, equation=recipe.equation(), role=role, seed=k
        )
        if source is not None:
            self.ledger.note(trial, source=source)
        self._trials[trial.number] = trial
        return Job(FINAL, trial.number, recipe.to_dict(), k, protected=True)

    def record(self, job: Job, result: RungResult) -> bool:
        trial = self._trials.pop(job.number)
        self.ledger.record(trial, result)
        self.ledger.complete(trial, [result.score])
        self.changed(f"finals: seed {job.seed} scores {result.score:.4g} in {result.seconds:.1f} s")
        return False

    def finish(self, job: Job, failure: Failure) -> None:
        trial = self._trials.pop(job.number)
        self.ledger.fail(trial, failure)
        attempts = self._attempts[trial.user_attrs["hash"], job.seed] = (
            self._attempts.get((trial.user_attrs["hash"], job.seed), 0) + 1
        )
        if not failure.deterministic and attempts < RETRIES:
            recipe = Recipe.from_dict(job.recipe)
            self._queue.append((recipe, trial.user_attrs["role"], trial.user_attrs.get("source"), job.seed))

    def standings(self) -> list[Standing]:
        """Every recipe of the finals with its scores, best mean first."""
        table: dict[str, Standing] = {}
        tested = self.ledger.study.user_attrs.get("test", {})
        for trial in sorted(self.ledger.trials(TrialState.COMPLETE), key=lambda t: t.user_attrs["seed"]):
            attributes = trial.user_attrs
            name = attributes["hash"]
            if name not in table:
                recipe = Recipe.from_dict(attributes["recipe"])
                table[name] = Standing(recipe, attributes["role"], [], [], attributes.get("source"))
            table[name].validation.append(trial.values[0])
            if str(trial.number) in tested:
                table[name].test.append(tested[str(trial.number)][self.config.metric])
        return sorted(table.values(), key=lambda s: s.mean, reverse=self.ledger.primary == "maximize")

    def winner(self) -> Standing | None:
        """The distilled recipe with the best mean on validation, plain KD among them; None before any has finished."""
        confirmed = [s for s in self.standings() if not s.role.endswith(":none")]
        most = max((len(s.validation) for s in confirmed), default=0)
        return next((s for s in confirmed if len(s.validation) == most), None)

    def test(self, world: World) -> None:
        """Evaluate winner and baselines on the test split, once; a later call counts how often test has been seen."""
        winner = self.winner()
        chosen = {winner.recipe.hash} if winner else set()
        tested: dict[str, dict[str, float]] = dict(self.ledger.study.user_attrs.get("test", {}))
        before = len(tested)
        for trial in self.ledger.trials(TrialState.COMPLETE):
            attributes = trial.user_attrs
            passed_over = attributes["role"] == "finalist" and attributes["hash"] not in chosen
            if passed_over or str(trial.number) in tested:
                continue
            recipe = Recipe.from_dict(attributes["recipe"])
            module = self.student(world, recipe, attributes[RUNG + "final"]["weights"])
            side = models.input_shape(recipe, world.data)[-1]
            network = models.network(module, world.data, world.settings, side=side)
            tested[str(trial.number)] = evaluate(network, world.data.test, None, world.reference("test"))
        if len(tested) > before:
            times = int(self.ledger.study.user_attrs.get("test_seen", 0))
            self.ledger.study.set_user_attr("test", tested)
            self.ledger.study.set_user_attr("test_seen", times + 1)

    def student(self, world: World, recipe: Recipe, weights: str) -> Any:
        """A finalist's trained student."""
        path, data = self.place.path / weights, world.data
        shape, module = models.input_shape(recipe, data), models.student(recipe, data)
        module = deploy.deployed(recipe, module, shape, data.classes, deploy.joined(path))
        models.load(module, path)
        return module
