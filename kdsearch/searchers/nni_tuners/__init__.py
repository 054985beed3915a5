"""NNI's tuners behind Optuna's interface: their entry in the table. `sampler` asks them, `space` is what they know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.parameters import Choice, Int
from kdsearch.searchers.catalogue import Searcher, register

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@register
class NNI(Searcher):
    """A tuner of Microsoft's NNI, told of the study's trials, proposes the next one.

    NNI wants the whole space beforehand; here it is learnt from the trials: a decision goes under the one choice that
    every trial that took it had made before it, else at the root. Decisions that NNI has not heard of are random draws.

    `anneal` needs hyperopt, whose annealing needs NumPy before 2.4. `gp` takes the best of `warm_up` candidates as it
    is: the refinement by L-BFGS-B that NNI has beside it fails under SciPy from 1.11 on.
    """

    name = "nni"
    title = "The tuners of NNI"
    source = "NNI 3.0, nni.algorithms.hpo; TPE: Bergstra et al., NeurIPS 2011; Evolution: Real et al., ICML 2017"
    models = "every value seen so far, each on its own (tpe, anneal, evolution); gp: numbers that every trial takes"
    objectives = 1

    tuner: str = Choice("tpe", ("tpe", "evolution", "gp", "random", "anneal"), doc="whose proposals")
    startup: int = Int(20, low=10, high=50, domain=(1, 1e6), doc="tpe: trials of a decision before it is modelled")
    candidates: int = Int(24, low=8, high=128, domain=(1, 1e6), doc="tpe: candidates drawn per value")
    liar: str = Choice("best", ("best", "worst", "mean", "none"), doc="tpe: what running trials count as")
    population: int = Int(32, low=10, high=100, domain=(1, 1e6), doc="evolution: individuals; more than workers")
    cold_start: int = Int(10, low=5, high=50, domain=(1, 1e6), doc="gp: random trials before the model is used")
    warm_up: int = Int(100_000, low=1_000, high=100_000, log=True, domain=(1, 1e8), doc="gp: candidates per proposal")

    def build(self, seed: int | None) -> BaseSampler:  # type: ignore[override]
        from kdsearch.searchers.nni_tuners.sampler import NNISampler

        return NNISampler(self, seed=seed)
