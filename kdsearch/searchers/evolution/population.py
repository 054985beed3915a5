"""Who is in the population: a study's finished trials, what they are worth, and which of them are left."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdsearch.searchers.evolution.seeded import Gene, Genome
from kdsearch.searchers.mcts.rewards import points, standing

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
"""FAIL is the machinery's fault and says nothing about a decision; PRUNED without a value is a rejected recipe."""


class Individual(NamedTuple):
    """A finished trial and its rank among those it was ranked with; larger is better, 0 for a rejected one."""

    trial: FrozenTrial
    worth: int

    @property
    def genome(self) -> Genome:
        """Its decisions, without those that leave no choice."""
        return {
            name: Gene(distribution, self.trial.params[name])
            for name, distribution in self.trial.distributions.items()
            if not distribution.single()
        }


def finished(study: Study) -> list[FrozenTrial]:
    """Finished trials by number, which is their age: it is the same for every worker and after every resume."""
    return sorted(study.get_trials(deepcopy=False, states=FINISHED), key=lambda trial: trial.number)


def ranked(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[Individual]:
    """Trials with their rank among each other, in the same order.

    Pruned trials stand below complete ones, by the step they reached and their value there; several objectives count
    dominators (see `kdsearch.searchers.mcts.rewards`).
    """
    if not trials:
        return []
    worth, _ = points(np.array([standing(trial, directions) for trial in trials], dtype=np.float64))
    return [Individual(trial, value) for trial, value in zip(trials, worth.tolist(), strict=True)]


def best(individuals: Sequence[Individual], count: int) -> list[Individual]:
    """The best of them, best first; of equals the younger."""
    return sorted(individuals, key=lambda one: (-one.worth, -one.trial.number))[:count]


def tournament(members: Sequence[Individual], size: int, rng: Random) -> Individual:
    """The best of `size` members drawn with replacement. Source: Real et al., AAAI 2019, algorithm 1."""
    return max(rng.choices(members, k=size), key=lambda one: (one.worth, one.trial.number))
