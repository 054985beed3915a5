"""A search that begins with what an earlier one found: its trials as history, or as hints where they are of another
world.

History re-creates the old trials in the new study under the new space's distributions. They cost no budget, are no
finalists, and no report counts them (`Ledger.trials` leaves them out); searchers and pruners see them. That is sound
only where the scores are comparable: same data, teachers and full training. The trials of a search share one seed, so
that those of another are shifted as a whole: they are history on request only, and pruners do not see them. Under the
same seed a recipe whose result is known takes it when it is proposed.

Scores of another data set or teacher say nothing beside new ones. Their ranks do, of single decisions (`hints`), and
the best recipes are tried first. What was found is noted on the new study, so that resuming needs no old run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.samplers import BaseGASampler
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from kdsearch.errors import UserError
from kdsearch.runs.config import RunConfig
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.hints import combined, hints, ranks
from kdsearch.runs.identity import differences, matching, same_seed
from kdsearch.runs.ledger import COMPARABLE, KNOWN, PROPOSED, RECREATED, RUNG, SHIFTED, Ledger
from kdsearch.runs.past import Past, open_past
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace

NOTE = "warm_start"
"""Attribute of the new study: what came of the warm start. There once it is done."""

Fits = Callable[[Recipe], str | None]


class LeftOut(Exception):
    """Why an old trial is of no use here, in a few words."""


def source(config: RunConfig, ledger: Ledger, here: Path) -> Past | None:
    """The earlier run, where one is asked for and has not been read already.

    Raises:
        UserError: it is not there, or damaged.
    """
    if not config.warm_start.given or NOTE in ledger.study.user_attrs:
        return None
    return open_past(config.warm_start, here)


def begin(
    config: RunConfig, ledger: Ledger, space: SearchSpace, past: Past, world: Mapping[str, Any], fits: Fits
) -> str:
    """Take over what an earlier run found; one line on what that was. A call that was cut short is made good by the
    next one.

    Args:
        space: what the searcher will be asked about.
        world: the new run's identity.
        fits: why a recipe cannot be trained here, None where it can.

    Raises:
        UserError: no trial is of use, or they are to be history and are of another world.
    """
    use, differ = config.warm_start.use, differences(past.world, world)
    same = not differ and same_seed(past.world, world)
    if differ and use in ("history", "both"):
        raise UserError(
            f"warm_start.use = {use!r}: {past.name} was scored with other {' and '.join(differ)}, so its scores "
            "cannot stand beside new ones; use priors (or auto), which reads their ranks alone"
        )
    if use == "auto":
        use = "history" if same else "priors"
    steps = {name: k for k, name in enumerate(past.world["rungs"], 1)}
    names = {name: name for name in steps}
    if use != "priors":
        names = matching(past.world, world)
        steps = {name: ledger.steps[new] for name, new in names.items()}
    taking = _Taking(config, ledger, space, past, fits, steps, names, same=same)
    found, reasons = taking.all()
    if not found:
        raise UserError(f"warm_start: no trial of {past.name} is of use here: {_listed(reasons) or 'it has none'}")
    if use in ("history", "both"):
        _add(ledger, found)
    best = _best(config, past, found, ledger)
    note: dict[str, Any] = {"run": past.name, "use": use, "trials": len(found), "left_out": dict(reasons)}
    note["first"] = [{"recipe": t.user_attrs["recipe"], "source": t.user_attrs["source"]} for t in best]
    if use in ("priors", "both"):
        defaults, priors = hints(found, ledger.study.directions)
        note["defaults"] = defaults
        # As pairs: the names of a JSON object are strings, and choices may be numbers.
        note["priors"] = {name: [*map(list, w.items())] if isinstance(w, dict) else w for name, w in priors.items()}
    kind = {"history": "history", "priors": "priors", "both": "history and priors"}[use]
    why = "" if same else f" (other {' and '.join(differ or ['seed'])})"
    left = f"; left out: {_listed(reasons)}" if reasons else ""
    note["line"] = f"warm start: {len(found)} trials of {past.name} as {kind}{why}, the best {len(best)} first{left}"
    ledger.study.set_user_attr(NOTE, note)
    return str(note["line"])


def first(ledger: Ledger) -> list[tuple[Recipe, dict[str, Any]]]:
    """The recipes to try first, each with the trial it is from."""
    noted = ledger.study.user_attrs.get(NOTE, {}).get("first", [])
    return [(Recipe.from_dict(entry["recipe"]), dict(entry["source"])) for entry in noted]


def state(ledger: Ledger) -> dict[str, Any]:
    """What `kdsearch status` prints of it; empty for a run that began with nothing."""
    note = ledger.study.user_attrs.get(NOTE)
    return {} if note is None else {"began": note["line"].removeprefix("warm start: ")}


def informed(ledger: Ledger, knowledge: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What a searcher may know, with what the warm start adds: its defaults go first, weights multiply."""
    note = ledger.study.user_attrs.get(NOTE, {})
    noted: dict[str, Any] = note.get("priors", {})
    learned = {name: dict(w) if w and isinstance(w[0], list) else w for name, w in noted.items()}
    return {
        **knowledge,
        "defaults": {**knowledge["defaults"], **note.get("defaults", {})},
        "priors": combined(knowledge["priors"], learned),
    }


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())


@dataclass
class _Taking:
    """Old trials as the new study would hold them.

    Attributes:
        steps: of each old rung that counts: the step under which its score is reported.
        names: of each old rung that counts: what it is called here.
        same: the new run's trials would find the same scores.
    """

    config: RunConfig
    ledger: Ledger
    space: SearchSpace
    past: Past
    fits: Fits
    steps: Mapping[str, int]
    names: Mapping[str, str]
    same: bool

    def all(self) -> tuple[list[FrozenTrial], Counter[str]]:
        """Each recipe once, and how many trials were left out for what reason."""
        found: dict[str, FrozenTrial] = {}
        reasons: Counter[str] = Counter()
        for trial in self.past.trials:
            if "duplicate_of" in trial.user_attrs or trial.state == TrialState.WAITING:
                continue
            try:
                made = self._made(trial)
            except LeftOut as reason:
                reasons[str(reason)] += 1
            else:
                found.setdefault(made.user_attrs["hash"], made)
        return list(found.values()), reasons

    def _made(self, trial: FrozenTrial) -> FrozenTrial:
        attributes = trial.user_attrs
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED) or "recipe" not in attributes:
            raise LeftOut("not finished")
        failure = attributes.get("failure", {})
        if failure.get("reason") == "invalid":  # costs nothing to be found out again
            raise LeftOut("invalid")
        recipe, answers = self._answers(attributes)
        rungs = {n: self._told(n, attributes[RUNG + n]) for n in self.steps if RUNG + n in attributes}
        scores = {name: found.get("judged", found["score"]) for name, found in rungs.items()}
        values = None
        if trial.state == TrialState.COMPLETE:
            values = self._values(list(self.past.world["rungs"])[-1], rungs)
        elif not failure and not any(score is not None for score in scores.values()):
            raise LeftOut("stopped before any rung of this run")
        kind = self._kind(trial)
        single = len(self.ledger.study.directions) == 1
        reported = {self.steps[n]: float(s) for n, s in scores.items() if s is not None} if single else {}
        if values is None and reported:  # as Optuna has it for what was stopped
            values = [reported[max(reported)]]
        return create_trial(
            state=trial.state,
            values=values,
            params=answers.params,
            distributions=answers.distributions,
            # Of complete trials pruners alone read these.
            intermediate_values={} if kind == SHIFTED and trial.state == TrialState.COMPLETE else reported,
            user_attrs={
                **{key: attributes[key] for key in ("failure", "pruned_at", RUNG + "proxies") if key in attributes},
                **{RUNG + self.names[name]: found for name, found in rungs.items()},
                "recipe": recipe.to_dict(),
                "hash": recipe.hash,
                "equation": recipe.equation(),
                "origin": "warm_start",
                "free": True,
                RECREATED: kind,
                "source": {"run": self.past.name, "trial": trial.number, "origin": _origin(trial)},
            },
            system_attrs={} if kind == SHIFTED else self._noted(trial, reported),
        )

    def _kind(self, trial: FrozenTrial) -> str:
        """What the trial's result is to this run, at least as far off as it was to the run it is taken from."""
        before = trial.user_attrs.get(RECREATED, KNOWN)
        if not self.same or before == SHIFTED:
            return SHIFTED
        # A stopped trial would have been stopped again only where the rungs are the same.
        ladder = len(self.names) == len(self.past.world["rungs"]) == len(self.ledger.steps)
        return str(before) if ladder or trial.state == TrialState.COMPLETE else COMPARABLE

    def _answers(self, attributes: Mapping[str, Any]) -> tuple[Recipe, FixedTrial]:
        """The recipe, and its decisions in the new space, with the new distributions, in the order of the new walk."""
        try:
            recipe = Recipe.from_dict(attributes["recipe"])
            answers = FixedTrial(self.space.params_of(recipe))
        except ValueError:
            raise LeftOut("outside the space") from None
        if self.fits(recipe) is not None:
            raise LeftOut("of a student that does not fit")
        return self.space.suggest(answers), answers

    def _told(self, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
        """An old rung's record as this run would have written it: scores follow the metric, and so its direction."""
        metrics = {key: value for key, value in found["metrics"].items() if value is not None}
        score = metrics.get(self.config.metric, math.nan)
        rung = Fidelity(name, **self.past.world["rungs"][name])
        told = {"score": score}
        if rung.judge != "metric":
            told["judged"] = rung.judged(score, metrics, maximise=self.ledger.primary == "maximize")
        return {**found, **{key: None if math.isnan(value) else value for key, value in told.items()}}

    def _values(self, top: str, rungs: Mapping[str, Mapping[str, Any]]) -> list[float]:
        """The objectives of this run, read off what the top rung recorded."""
        found = rungs.get(top, {})
        known = {self.config.metric: found.get("metrics", {}).get(self.config.metric), **found.get("size", {})}
        values = [known.get(name) for name in (self.config.metric, *self.config.minimise)]
        numbers = [float(value) for value in values if value is not None]
        if len(numbers) < len(values):
            raise LeftOut(f"without {' and '.join((self.config.metric, *self.config.minimise))}")
        return numbers

    def _noted(self, trial: FrozenTrial, reported: Mapping[int, float]) -> dict[str, Any]:
        """What successive halving compares: the score at each rung where the trial might have been stopped."""
        last = max(self.ledger.steps.values())
        rungs = enumerate(self.ledger.steps.values())
        if _origin(trial) not in PROPOSED:
            return {}
        return {f"completed_rung_{k}": reported[step] for k, step in rungs if step in reported and step != last}


def _origin(trial: FrozenTrial) -> str:
    """Who proposed a trial, in the run that evaluated it."""
    attributes = trial.user_attrs
    return str(attributes["source"]["origin"] if RECREATED in attributes else attributes.get("origin", "search"))


def _add(ledger: Ledger, trials: Sequence[FrozenTrial]) -> None:
    """Put trials into the study, those that an interrupted call has put there already left alone."""
    there = {trial.user_attrs["source"]["trial"] for trial in ledger.inherited()}
    sampler = ledger.study.sampler
    for trial in trials:
        if trial.user_attrs["source"]["trial"] in there:
            continue
        if isinstance(sampler, BaseGASampler) and trial.state == TrialState.COMPLETE:
            # Genetic samplers know their parents by this alone: the old trials are the first generation.
            trial.system_attrs = {**trial.system_attrs, sampler._get_generation_key(): 0}
        ledger.study.add_trial(trial)


def _best(config: RunConfig, past: Past, trials: Sequence[FrozenTrial], ledger: Ledger) -> list[FrozenTrial]:
    """The best complete trials that distil: those that the old finals confirmed before all others, by their mean.

    Baselines are left out; the new run has its own.
    """
    confirmed = past.confirmed(config.metric)
    sign = 1 if ledger.primary == "maximize" else -1
    worth = ranks(trials, ledger.study.directions)

    def order(k: int) -> tuple[int, float, float, int]:
        seeds, mean = confirmed.get(trials[k].user_attrs["hash"], (0, 0.0))
        return -seeds, -sign * mean, -worth[k], k

    done = [
        k
        for k, t in enumerate(trials)
        if t.state == TrialState.COMPLETE
        and Recipe.from_dict(t.user_attrs["recipe"]).distils
        and not str(t.user_attrs["source"]["origin"]).startswith("baseline:")
    ]
    return [trials[k] for k in sorted(done, key=order)[: config.warm_start.trials]]
