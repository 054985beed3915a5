"""What the trials of another run say of single decisions: a value to begin with, and weights of choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from kdsearch.searchers.mcts.domain import Domain, key
from kdsearch.searchers.mcts.rewards import points, standing

DOUBT = 2.0
"""A choice's mean rank counts as if so many more trials of average rank had taken it (our choice)."""
FAVOUR = 4.0
"""How much likelier a choice is that always won than an average one; one that always lost is as much less so (ours)."""
PIECES = 4
"""A number's range is looked at in so many pieces, equally wide on its own scale (ours)."""

Defaults = dict[str, Any]
Weights = dict[Any, float] | list[float]
"""Of choices by name, or of the pieces of a number's range in order."""
Priors = dict[str, Weights]


def ranks(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[float]:
    """Each trial's rank among all, in [0, 1]; scales play no part, so that ranks carry over to another world."""
    width = 1 + len(directions)
    rows = np.array([standing(trial, directions) for trial in trials], dtype=np.float64).reshape(len(trials), width)
    worth, scale = points(rows)
    return [float(value) / scale for value in worth]


def hints(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> tuple[Defaults, Priors]:
    """Defaults: of each decision the answer of the best trial that took it. Priors: of each decision the weights of its
    choices (of the pieces of its range), FAVOUR^(2 (m - c)), where m is the choice's mean rank, drawn towards the mean
    c of all trials that took the decision; a choice that nobody took weighs 1.
    """
    worth = ranks(trials, directions)
    order = sorted(range(len(trials)), key=lambda k: (-worth[k], trials[k].number))
    defaults: Defaults = {}
    taken: dict[str, tuple[BaseDistribution, list[tuple[int, float]]]] = {}
    for k in order:
        for name, value in trials[k].params.items():
            defaults.setdefault(name, value)
            distribution = trials[k].distributions[name]
            taken.setdefault(name, (distribution, []))[1].append((_part(distribution, value), worth[k]))
    priors: Priors = {}
    for name, (distribution, answers) in taken.items():
        centre = sum(rank for _, rank in answers) / len(answers)
        choices = getattr(distribution, "choices", None)
        weights = [_weight(k, answers, centre) for k in range(PIECES if choices is None else len(choices))]
        priors[name] = weights if choices is None else dict(zip(choices, weights, strict=True))
    return defaults, priors


def _part(distribution: BaseDistribution, value: Any) -> int:
    """The index of a choice, or of the piece of its range in which a number lies."""
    domain = Domain(distribution)
    number = key(distribution, value)
    return int(number) if domain.categorical else min(int(domain.place(number) * PIECES), PIECES - 1)


def _weight(choice: int, answers: Sequence[tuple[int, float]], centre: float) -> float:
    own = [rank - centre for value, rank in answers if value == choice]
    return float(round(FAVOUR ** (2 * sum(own) / (len(own) + DOUBT)), 6))


def combined(base: Mapping[str, Weights], learned: Mapping[str, Weights]) -> Priors:
    """Weights of both, multiplied; a choice that one of them leaves out weighs 1 there, and a range's are the learned
    ones.
    """
    found: Priors = {**base, **learned}
    for name, weights in learned.items():
        own = base.get(name, {})
        if isinstance(weights, dict) and isinstance(own, dict):
            found[name] = {choice: own.get(choice, 1.0) * weights.get(choice, 1.0) for choice in {**own, **weights}}
    return found
