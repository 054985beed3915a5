"""Monte-Carlo tree search as an Optuna sampler, for any define-by-run objective."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from kdsearch.searchers.mcts import MCTS
from kdsearch.searchers.mcts.ahead import promises
from kdsearch.searchers.mcts.domain import Domain, key
from kdsearch.searchers.mcts.evidence import State
from kdsearch.searchers.mcts.fitting import fit
from kdsearch.searchers.mcts.history import FINISHED, Decision, History, Tree, decisions
from kdsearch.searchers.mcts.local import Variation, variation
from kdsearch.searchers.mcts.model import Model
from kdsearch.searchers.mcts.priors import Prior
from kdsearch.searchers.mcts.selection import Question, choose

TURNS = 64
"""Trials that are asked at the same time; a turn of a long study holds some megabytes."""


class MCTSSampler(BaseSampler):
    """Proposes values by tree search over suggest calls.

    A node is the prefix of decisions that a trial has taken so far; its statistics are a function of the study's
    trials alone, so that resuming, several workers and warm starts need no state of their own. A proposal is a
    function of the study (as it stood when the trial began to suggest), the seed, the trial's number and the
    decision's name.

    A trial is worth its place among all (see `rewards`); failed ones do not count. By default most trials judge a value
    by a model of all trials (see `model`): the effect of the decision, its effect beside each decision before it, and
    what is known of this very path; `estimate` "prior" and "rave" judge it by counts at the node and elsewhere (see
    `selection`).
    A share `local` of the trials goes the way of one of the best again and takes one decision of it anew. Running
    trials count as a little disappointing along the prefix they have reached. A path that a trial has walked to its end
    is not proposed again until nothing else is left: the objective is taken as a function of its parameters.

    Args:
        seed: of the draws; None draws one.
        defaults: decision name -> value to try before any other that nobody has tried.
        priors: decision name -> {value: weight}, choices that are left out weighing 1 and numbers spreading around the
            values named; or, for a number, a list of weights of equally wide pieces of its range.
        options: as declared by `MCTS`, with its defaults.

    Raises:
        ValueError: an option is unknown or outside its domain, or a weight is negative.

    Source: as named by `MCTS.source` and at each of the functions.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        defaults: Mapping[str, Any] | None = None,
        priors: Mapping[str, Mapping[Any, float] | Sequence[float]] | None = None,
        **options: Any,
    ) -> None:
        self.options = MCTS(**options)
        self.seed = secrets.randbits(63) if seed is None else seed
        self._defaults = _mapping("defaults", defaults)
        self._priors = {name: Prior(name, weights) for name, weights in _mapping("priors", priors).items()}
        self._forget()

    def _forget(self) -> None:
        self._tree = Tree()
        self._seen: dict[int, FrozenTrial] = {}  # by id: those that the tree holds
        self._turns: dict[int, _Turn] = {}  # by trial number
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_tree", "_seen", "_turns", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def reseed_rng(self) -> None:
        """Nothing to do: draws are seeded by the trial's number, which no two workers share."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        with self._lock:
            self._turns.pop(trial.number, None)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        with self._lock:
            self._turns.pop(trial.number, None)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        with self._lock:
            turn = self._turns.get(trial.number)
            if turn is None:
                turn = self._begin(self._recall(study, trial.number), trial.number)
                self._turns[trial.number] = turn
                while len(self._turns) > TURNS:
                    del self._turns[next(iter(self._turns))]
            elif turn.history.size != len(self._tree.trials):  # others have ended meanwhile: the tree is larger
                turn = replace(turn, history=self._recall(study, trial.number))
                self._turns[trial.number] = turn
            prefix = [(name, value) for name, value, _ in decisions(trial)]
            value = self._decide(turn, trial.number, prefix, param_name, param_distribution)
        return param_distribution.to_external_repr(value)

    def _begin(self, history: History, number: int) -> _Turn:
        """What a trial knows and means to do when it takes its first decision."""
        options, rng = self.options, self._rng(number, "")
        optimism = options.optimism * rng.expovariate(1.0)
        locally, counted = rng.random() < options.local, rng.random() < options.counted
        # Counts need no assumption: with them every branch is looked at again and again.
        by_model = options.estimate == "model" and (locally or not counted)
        model = fit(history) if by_model else None
        varied = variation(history, model, optimism, rng) if locally else None
        return _Turn(history, model, optimism, varied)

    def _decide(
        self, turn: _Turn, number: int, prefix: list[Decision], name: str, distribution: BaseDistribution
    ) -> float:
        history, options, rng = turn.history, self.options, self._rng(number, name)
        domain = Domain(distribution)
        here = history.arms(prefix, name)
        varied = turn.varied
        if varied is not None and name in varied.repeated:
            value = varied.repeated[name]
            if domain.contains(value) and (value not in here or here[value].state == State.OPEN):
                return value
        anywhere = history.evidence([], name, 0)
        borrows = turn.model is not None or options.sharing > 0
        near = history.evidence(prefix, name, options.nearby if borrows else 0)
        posterior = ahead = None
        if turn.model is not None:
            known = history.known(prefix, name)
            posterior = partial(turn.model.posterior, prefix, history.way(prefix), known, name, domain)
            ahead = partial(promises, history, turn.model, prefix, name, optimism=turn.optimism, rng=rng)
        prior = self._priors.get(name)
        question = Question(
            domain=domain,
            here=here,
            near=near,
            anywhere=anywhere if borrows else near,
            first=self._default(name, distribution),
            belief=prior.on(distribution, domain, options.spread) if prior is not None else None,
            posterior=posterior,
            ahead=ahead,
            added=turn.optimism,
            avoided=varied.value if varied is not None and name == varied.name else None,
        )
        return choose(question, options, rng)

    def _recall(self, study: Study, number: int) -> History:
        """The study's history. Trials that were taken in before stay; a finished trial never changes."""
        trials = study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
        unknown = [trial for trial in trials if id(trial) not in self._seen]
        if len(trials) - len(unknown) < len(self._seen):
            unknown = trials
            self._review([trial for trial in trials if trial.state in FINISHED])
        running = []
        for trial in unknown:
            if trial.state == TrialState.RUNNING:
                running.append(trial)
            elif id(trial) not in self._seen:
                self._seen[id(trial)] = trial
                self._tree.add(trial, study.directions)
        others = [trial for trial in running if trial.number != number]
        return History(self._tree, others, self.options)

    def _review(self, finished: list[FrozenTrial]) -> None:
        """Trials have gone: another study, a part of this one, or a storage that hands out copies of the same."""
        by_number = {trial.number: trial for trial in finished}
        if all(n in by_number and _same(trial, by_number[n]) for n, trial in self._tree.trials.items()):
            self._seen = {id(by_number[n]): by_number[n] for n in self._tree.trials}
        else:
            self._tree, self._seen = Tree(), {}

    def _rng(self, number: int, name: str) -> Random:
        digest = hashlib.blake2b(f"{self.seed}/{number}/{name}".encode(), digest_size=8).digest()
        return Random(int.from_bytes(digest, "big"))

    def _default(self, name: str, distribution: BaseDistribution) -> float | None:
        if name not in self._defaults:
            return None
        try:
            return key(distribution, self._defaults[name])
        except (ValueError, TypeError):  # a choice that this space leaves out
            return None


@dataclass(frozen=True)
class _Turn:
    """One trial's view: the study, what was made of it when the trial began to suggest, and the trial's own draws."""

    history: History
    model: Model | None
    optimism: float
    varied: Variation | None


def _mapping(what: str, value: object) -> dict[Any, Any]:
    if value is None or isinstance(value, Mapping):
        return dict(value or {})
    raise ValueError(f"{what} must be a mapping, not {value!r}")


def _same(a: FrozenTrial, b: FrozenTrial) -> bool:
    return a is b or (a.datetime_complete == b.datetime_complete and a.params == b.params and a.state == b.state)
