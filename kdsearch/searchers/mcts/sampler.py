"""Monte-Carlo tree search as an Optuna sampler, for any define-by-run objective."""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
from collections.abc import Mapping
from random import Random
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from kdsearch.searchers.mcts import MCTS
from kdsearch.searchers.mcts.domain import Domain, key
from kdsearch.searchers.mcts.history import FINISHED, History, Tree, decisions
from kdsearch.searchers.mcts.selection import Question, choose, listed


class MCTSSampler(BaseSampler):
    """Proposes values by UCT in the tree of suggest calls.

    A node is the prefix of decisions that a trial has taken so far; its statistics are a function of the study's
    trials alone, so that resuming, several workers and warm starts need no state of their own. A proposal is a
    function of the study (as it stood when the trial began to suggest), the seed, the trial's number and the
    decision's name.

    Trials are worth their rank (see `rewards`). Running trials count as virtual losses along the prefix they have
    reached; failed ones do not count. Choices are all there from the start, untried ones first. Numbers with many
    values are widened: after n visits c · n^growth values compete, new ones drawn from the range or near good ones. A
    young node borrows from what a value did elsewhere in the tree. A path that a trial has walked to its end is not
    proposed again until nothing else is left: the objective is taken as a function of its parameters.

    Args:
        seed: of the draws; None draws one.
        defaults: decision name -> value to try before any other that nobody has tried.
        priors: name of a categorical decision -> {choice: weight}; the chance of a choice to be the next untried one.
            Choices that are left out weigh 1.
        options: as declared by `MCTS`, with its defaults.

    Raises:
        ValueError: an option is unknown or outside its domain, or a weight is negative.

    Source: Kocsis and Szepesvári, Bandit based Monte-Carlo planning, ECML 2006; Couëtoux et al., Continuous upper
    confidence trees, LION 2011.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        defaults: Mapping[str, Any] | None = None,
        priors: Mapping[str, Mapping[Any, float]] | None = None,
        **options: Any,
    ) -> None:
        self.options = MCTS(**options)
        self.seed = secrets.randbits(63) if seed is None else seed
        self._defaults = _mapping("defaults", defaults)
        self._priors = {name: _mapping(f"priors[{name!r}]", w) for name, w in _mapping("priors", priors).items()}
        for name, weights in self._priors.items():
            for weight in weights.values():
                if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                    raise ValueError(f"priors[{name!r}]: a weight must be a finite number from 0, not {weight!r}")
        self._forget()

    def _forget(self) -> None:
        self._tree = Tree()
        self._seen: dict[int, FrozenTrial] = {}  # by id: those that the tree holds
        self._history: History | None = None
        self._asking: int | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_tree", "_seen", "_history", "_asking", "_lock")}

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
            self._asking = None

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        with self._lock:
            if self._history is None or self._asking != trial.number:
                self._history = self._recall(study, trial.number)
                self._asking = trial.number
            history = self._history
            prefix = [(name, value) for name, value, _ in decisions(trial)]
            domain = Domain(param_distribution)
            borrows = self.options.sharing > 0
            near = history.evidence(prefix, param_name, self.options.nearby if borrows else 0)
            question = Question(
                domain=domain,
                here=history.arms(prefix, param_name),
                near=near,
                anywhere=history.evidence([], param_name, 0) if borrows and listed(domain, self.options) else near,
                first=self._default(param_name, param_distribution),
                weight=self._weight(param_name, param_distribution),
            )
        value = choose(question, self.options, self._rng(trial.number, param_name))
        return param_distribution.to_external_repr(value)

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
        return History(self._tree, others, self.options.virtual_loss)

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

    def _weight(self, name: str, distribution: BaseDistribution) -> Any:
        weights = self._priors.get(name)
        if weights is None or not isinstance(distribution, CategoricalDistribution):
            return None
        return lambda value: weights.get(distribution.choices[int(value)], 1.0)


def _mapping(what: str, value: object) -> dict[Any, Any]:
    if value is None or isinstance(value, Mapping):
        return dict(value or {})
    raise ValueError(f"{what} must be a mapping, not {value!r}")


def _same(a: FrozenTrial, b: FrozenTrial) -> bool:
    return a is b or (a.datetime_complete == b.datetime_complete and a.params == b.params and a.state == b.state)
