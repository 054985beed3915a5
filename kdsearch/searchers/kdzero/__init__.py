"""KD-Zero's evolution: its entry in the table. `sampler` is the search, `shrinkage` what is no longer drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.parameters import Choice, Float, Int
from kdsearch.searchers.catalogue import Searcher, register

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@register
class KDZero(Searcher):
    """Elitist evolution with crossover, mutation, fresh individuals for diversity, and a space that shrinks.

    Population, shares and rates are those of code that the authors released for a successor; the paper's own, and its
    shrinkage rule, could not be found: `shrink_after` and its rule are ours.
    """

    name = "kdzero"
    title = "Evolution as in KD-Zero"
    source = "Li et al., KD-Zero, NeurIPS 2023; rates from the released code of Auto-DAS, ECCV 2024"
    models = "every value of the parents' branches; choices that only ever did badly are no longer drawn"

    population: int = Int(10, low=10, high=50, domain=(2, 1e6), doc="trials in the population; the first are random")
    parents: float = Float(0.5, low=0.2, high=0.5, domain=(1e-6, 1), doc="share of the population that has children")
    crossover: float = Float(0.5, low=0.0, high=1.0, domain=(0, 1), doc="chance of a child to have two parents")
    mutation: float = Float(0.5, low=0.1, high=1.0, domain=(0, 1), doc="chance of a child to be mutated")
    allele: float = Float(0.5, low=0.1, high=0.5, domain=(0, 1), doc="chance of each decision to be re-drawn then")
    diversity: str = Choice("pair", ("pair", "seldom", "none"), doc="how fresh individuals compete with children")
    shrink_after: int = Int(6, low=4, high=20, doc="trials below the median that drop a choice; 0: keep all")

    def build(self, seed: int | None) -> BaseSampler:  # type: ignore[override]
        from kdsearch.searchers.kdzero.sampler import KDZeroSampler

        return KDZeroSampler(self, seed=seed)
