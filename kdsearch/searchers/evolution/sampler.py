"""Regularised evolution as an Optuna sampler, for any define-by-run objective."""

from __future__ import annotations

from random import Random
from typing import Any

from optuna.study import Study

from kdsearch.searchers.evolution import Evolution
from kdsearch.searchers.evolution.population import best, finished, ranked, tournament
from kdsearch.searchers.evolution.seeded import Gene, Genome, SeededSampler
from kdsearch.searchers.evolution.variation import another, cross, mutate


class EvolutionSampler(SeededSampler):
    """The best of a few random members is copied with some of its decisions taken anew.

    The population is a function of the study's finished trials: the youngest `population` of them (`survival=oldest`,
    aging), or the best so far (`survival=worst`). A trial's age is its number. Until there are that many, trials are
    drawn at random. Running trials have no part in it, so that any number of workers may ask at once.

    Args:
        options: as declared by `Evolution`.
        seed: of the draws; None draws one.

    Source: Real et al., Regularized evolution for image classifier architecture search, AAAI 2019, algorithm 1. Numeric
    decisions, crossover and conditional decisions are not in the paper: those rules are ours.
    """

    def __init__(self, options: Evolution, *, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self.options = options

    def propose(self, study: Study, number: int) -> Genome:
        options = self.options
        trials = finished(study)
        if len(trials) < options.population:
            return {}
        if options.survival == "oldest":
            members = ranked(trials[-options.population :], study.directions)
        else:
            members = best(ranked(trials, study.directions), options.population)
        rng = self.rng(number)
        child = tournament(members, options.tournament, rng).genome
        if rng.random() < options.crossover:
            child = cross(child, tournament(members, options.tournament, rng).genome, rng)
        return mutate(child, options.mutations, self._redraw, rng)

    def _redraw(self, name: str, gene: Gene, rng: Random) -> Any:
        return another(gene, rng, self.options.spread if self.options.numbers == "local" else None)
