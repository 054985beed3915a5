"""KD-Zero's evolution as an Optuna sampler, for any define-by-run objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from kdsearch.searchers.evolution.population import Individual, best, finished, ranked
from kdsearch.searchers.evolution.seeded import Genome, SeededSampler
from kdsearch.searchers.evolution.variation import cross, mutate
from kdsearch.searchers.kdzero import KDZero
from kdsearch.searchers.kdzero.shrinkage import Dropped, dropped
from kdsearch.searchers.mcts.domain import Domain


class KDZeroSampler(SeededSampler):
    """Children of the better half of a population that deletes its worst; each competes with a fresh individual.

    The first `population` finished trials are random and found the population. From then on, a child has one parent or
    two from the best `parents` of it, and is mutated or not. Deleting the worst after every birth leaves the best
    `population` trials so far. A trial that was pruned without a value is a rejected one: it is worth less than all
    others. Choices that only ever did badly are drawn neither at random nor by mutation (see `shrinkage`).

    The published diversity rule scores a child and a fresh random individual and keeps the better. A sampler cannot
    score before it proposes, so that there are two ways to follow it, and one to leave it:

    - `pair`: the rule itself, both scored as trials. Of trials 2j and 2j + 1 the even one is a child, the odd one
      random, and only the better one may join the population. Half of the trials are random.
    - `seldom`: ours. One trial in `population` is random, and every trial may join.
    - `none`: children only.

    Args:
        options: as declared by `KDZero`.
        seed: of the draws; None draws one.

    Source: Li et al., KD-Zero: evolving knowledge distiller for any teacher-student pairs, NeurIPS 2023. How the
    decisions of different branches are crossed is ours (see `kdsearch.searchers.evolution.variation`).
    """

    def __init__(self, options: KDZero, *, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self.options = options

    def recall(self, study: Study) -> tuple[list[Individual], Dropped]:
        everyone = ranked(finished(study), study.directions)
        return everyone, dropped(everyone, self.options.shrink_after)

    def propose(self, study: Study, number: int) -> Genome:
        options, rng = self.options, self.rng(number)
        everyone, gone = self.recalled(study, number)
        if len(everyone) < options.population or self._is_random(number):
            return {}
        members = self._members(everyone)
        parents = members[: max(1, math.ceil(options.parents * len(members)))]
        child = rng.choice(parents).genome
        if rng.random() < options.crossover:
            child = cross(child, rng.choice(parents).genome, rng)
        if rng.random() < options.mutation:
            alleles = sum(rng.random() < options.allele for _ in child)
            child = mutate(child, alleles, lambda name, gene, rng: _draw(gene.distribution, gone.get(name), rng), rng)
        return child

    def draw(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        _, gone = self.recalled(study, trial.number)
        return _draw(distribution, gone.get(name), self.rng(trial.number, name))

    def _is_random(self, number: int) -> bool:
        if self.options.diversity == "pair":
            return number % 2 == 1
        return self.options.diversity == "seldom" and number % self.options.population == 0

    def _members(self, everyone: Sequence[Individual]) -> list[Individual]:
        """The population, best first."""
        if self.options.diversity != "pair":
            return best(everyone, self.options.population)
        founders, later = everyone[: self.options.population], everyone[self.options.population :]
        winners: dict[int, Individual] = {}
        for one in later:
            pair = one.trial.number // 2
            winners[pair] = best([one, winners[pair]], 1)[0] if pair in winners else one
        return best([*founders, *winners.values()], self.options.population)


def _draw(distribution: BaseDistribution, gone: frozenset[float] | None, rng: Random) -> Any:
    """A uniform draw from what has not been dropped."""
    domain = Domain(distribution)
    kept = [value for value in domain.values() if value not in gone] if gone else []
    return distribution.to_external_repr(rng.choice(kept) if kept else domain.draw(rng))
