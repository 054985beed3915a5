"""Textbook UCT as an Optuna sampler, for any define-by-run objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from kdsearch.searchers.autokd import AutoKD
from kdsearch.searchers.evolution.population import finished
from kdsearch.searchers.evolution.seeded import SeededSampler
from kdsearch.searchers.mcts.domain import Domain
from kdsearch.searchers.mcts.history import decisions
from kdsearch.searchers.mcts.rewards import points, standing

Visit = tuple[list[tuple[str, float]], float]
"""What a trial decided, in order, and its reward."""


class AutoKDSampler(SeededSampler):
    """Walks down the tree of decisions by UCT, and on at random where no trial has been.

    A node is what a trial has decided so far, in order. Every finished trial is a visit to each node on its way, with
    its reward added to each. Where a value has not been tried yet, an untried one is drawn; below it everything is
    untried, which makes the rest of the trial the random rollout. Nothing is shared between nodes, a leaf may be
    visited again, and running trials are not seen: workers that ask at once may go the same way.

    Numbers with more values than `levels` are cut into that many, evenly, on a log scale where they have one. A trial
    with another value (an enqueued one) counts for the nodes above it alone.

    Args:
        options: as declared by `AutoKD`. With `reward=value` pruned trials are worth 0, and so is what is not finite.
        seed: of the draws; None draws one.

    Source: Kocsis and Szepesvári, Bandit based Monte-Carlo planning, ECML 2006; for whole distillers: Li et al.,
    Auto-KD, ICCV 2023.
    """

    def __init__(self, options: AutoKD, *, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self.options = options

    def recall(self, study: Study) -> list[Visit]:
        trials = finished(study)
        return [(_way(trial), reward) for trial, reward in zip(trials, self._rewards(study, trials), strict=True)]

    def draw(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        way = _way(trial)
        depth = len(way)
        visits = self.recalled(study, trial.number)
        visits[:] = [visit for visit in visits if visit[0][:depth] == way]  # the way only gets longer
        rewards: dict[float, list[float]] = {}
        for decided, reward in visits:
            if len(decided) > depth and decided[depth][0] == name:
                rewards.setdefault(decided[depth][1], []).append(reward)
        values = levels(distribution, self.options.levels)
        value = uct(values, rewards, len(visits), self.options.exploration, self.rng(trial.number, name))
        return distribution.to_external_repr(value)

    def _rewards(self, study: Study, trials: Sequence[FrozenTrial]) -> list[float]:
        if self.options.reward == "value" and len(study.directions) > 1:
            raise ValueError("searcher 'autokd': reward='value' takes one objective; multi-objective needs 'rank'")
        rows = np.array([standing(trial, study.directions) for trial in trials], dtype=np.float64)
        if self.options.reward == "value":
            steps, values = rows.reshape(len(trials), 2).T
            scored = np.isposinf(steps) & np.isfinite(values)
            # Refused and stopped trials are no better than the worst: 0 would be, where a metric is minimised.
            return np.where(scored, values, values[scored].min() if scored.any() else 0.0).tolist()
        worth, scale = points(rows.reshape(len(trials), 1 + len(study.directions)))
        return (worth / scale).tolist()


def _way(trial: FrozenTrial) -> list[tuple[str, float]]:
    return [(name, value) for name, value, _ in decisions(trial)]


def uct(
    values: Sequence[float], rewards: Mapping[float, Sequence[float]], parent: int, exploration: float, rng: Random
) -> float:
    """An untried value at random; else the largest Q / n + exploration · √(ln N / n), equals told apart by chance.

    Args:
        values: all there are.
        rewards: of each tried value, one per visit; their sum is Q, their number n.
        parent: N, visits to the node.
    """
    untried = [value for value in values if value not in rewards]
    if untried:
        return rng.choice(untried)

    def score(value: float) -> float:
        visits = len(rewards[value])
        return sum(rewards[value]) / visits + exploration * math.sqrt(math.log(parent) / visits)

    return max(values, key=lambda value: (score(value), rng.random()))


def levels(distribution: BaseDistribution, count: int) -> list[float]:
    """The values a decision is cut into: all choices; all numbers where there are no more than `count`."""
    domain = Domain(distribution)
    if domain.categorical or domain.size <= count:
        return domain.values()
    first, last = domain.place(domain.low), domain.place(domain.high)
    shares = [0.5] if count == 1 else [k / (count - 1) for k in range(count)]
    return list(dict.fromkeys(domain.at(first + share * (last - first)) for share in shares))
