"""Regularised evolution: its entry in the table. `sampler` is the search, `variation` what a child is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.parameters import Choice, Float, Int
from kdsearch.searchers.catalogue import Searcher, register

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@register
class Evolution(Searcher):
    """A population of trials; the best of a random few is copied with one decision re-drawn; the oldest leaves.

    `population=512, tournament=1, mutations=2, survival=worst` is the search over ImageNet students of DisWOT.
    """

    name = "evolution"
    title = "Regularised (aging) evolution"
    source = "Real et al., AAAI 2019; over students as in DisWOT: Dong et al., CVPR 2023"
    models = "every value that the parent took, one or a few of them re-drawn; what a new branch asks is random"

    population: int = Int(36, low=10, high=64, domain=(1, 1e6), doc="trials in the population; the first are random")
    tournament: int = Int(8, low=2, high=16, domain=(1, 1e6), doc="members drawn for a parent, the best of them")
    mutations: int = Int(1, low=1, high=3, domain=(1, 1e3), doc="decisions of the parent that are re-drawn")
    crossover: float = Float(0.0, low=0.0, high=0.5, domain=(0, 1), doc="share of children with two parents")
    survival: str = Choice("oldest", ("oldest", "worst"), doc="who leaves a full population")
    numbers: str = Choice("local", ("local", "uniform"), doc="re-draw numbers near the parent's, or from their range")
    spread: float = Float(0.1, low=0.02, high=0.3, log=True, domain=(1e-6, 1), doc="of local draws, share of the range")

    def build(self, seed: int | None) -> BaseSampler:  # type: ignore[override]
        from kdsearch.searchers.evolution.sampler import EvolutionSampler

        return EvolutionSampler(self, seed=seed)
