"""Going back to a good trial: its path again, but for one decision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from optuna.trial import FrozenTrial

from kdsearch.searchers.mcts.domain import Domain
from kdsearch.searchers.mcts.history import Decision, History, decisions
from kdsearch.searchers.mcts.model import Model

GOOD, DRAWS = 4, 6
"""The trial to go back to is one of so many best; a number has so many other values to compare. Values are ours."""


@dataclass(frozen=True)
class Variation:
    """What a trial repeats, and the one decision that it takes anew, with the value it had."""

    repeated: Mapping[str, float]
    name: str
    value: float


def variation(history: History, model: Model | None, optimism: float, rng: Random) -> Variation | None:
    """A variation of one of the best trials, by the model's mean where there is one: it averages noise out.

    Which decision is taken anew is drawn by what it promises: by exp(bound of the best other value - mean of the value
    it had), in the rewards' spread. Without a model, all are equal.
    """
    trials = history.tree.trials
    if model is None:
        worth = dict(zip(trials, history.rewards.tolist(), strict=True))
    else:
        worth = dict(zip(model.numbers, model.fitted.tolist(), strict=True))
    good = sorted((n for n in worth if trials[n].params), key=lambda n: (-worth[n], n))[:GOOD]
    if not good:
        return None
    trial = trials[rng.choice(good)]
    path = [(name, value) for name, value, _ in decisions(trial)]
    promise = _promises(history, model, trial, path, optimism, rng) if model is not None else [0.0] * len(path)
    most = max(promise)
    at = rng.choices(range(len(path)), [math.exp(p - most) for p in promise])[0]
    return Variation(dict(path[:at] + path[at + 1 :]), *path[at])


def _promises(
    history: History, model: Model, trial: FrozenTrial, path: Sequence[Decision], optimism: float, rng: Random
) -> list[float]:
    way = history.way(path)
    out = []
    for depth, (name, value) in enumerate(path):
        domain = Domain(trial.distributions[name])
        if domain.categorical or domain.size <= DRAWS:
            others = domain.values()
        else:
            spread = history.options.spread
            others = [domain.near(value, spread, rng) if k % 2 else domain.draw(rng) for k in range(DRAWS)]
        others = [other for other in others if other != value]
        means, deviations = model.posterior(
            path[:depth], way[: depth + 1], history.known(path[:depth], name), name, domain, np.array([value, *others])
        )
        bounds = (means + optimism * deviations)[1:]
        out.append(float(bounds.max() - means[0]) if others else -math.inf)
    return out if max(out) > -math.inf else [0.0] * len(out)
