"""Optuna's own samplers by name, set up for conditional spaces and quiet about what is experimental in them."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kdsearch.parameters import Choice, Flag, Float, Int
from kdsearch.searchers.catalogue import MissingPackage, Searcher, register

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's notice that an argument is experimental is for its developers, not for who names a searcher."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@register
class Random(Searcher):
    """Independent uniform draws: the baseline every other searcher has to beat."""

    name = "random"
    title = "Random search"
    source = "Bergstra and Bengio, JMLR 2012; optuna.samplers.RandomSampler"
    models = "nothing: every value is an independent draw"

    def build(self, seed: int | None) -> BaseSampler:  # type: ignore[override]
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)


@register
class TPE(Searcher):
    """Density ratio of good to bad trials, jointly over the decisions that occur together."""

    name = "tpe"
    title = "Tree-structured Parzen estimator, multivariate and grouped"
    source = "Bergstra et al., NeurIPS 2011; Falkner et al., ICML 2018; optuna.samplers.TPESampler"
    models = "every value: each set of decisions that occur together has its model, from the trials that took them"

    n_startup_trials: int = Int(10, low=5, high=50, doc="random trials before the model is used")
    n_ei_candidates: int = Int(24, low=8, high=128, domain=(1, 1e6), doc="candidates drawn per proposal")
    multivariate: bool = Flag(True, doc="model values jointly; without it, each on its own")
    group: bool = Flag(True, doc="model each set of decisions that occur together; needs multivariate")
    constant_liar: bool = Flag(True, doc="count running trials as bad, so that workers spread out")

    def build(self, seed: int | None) -> BaseSampler:  # type: ignore[override]
        from optuna.samplers import TPESampler

        if self.group and not self.multivariate:
            raise ValueError("searcher 'tpe': group=True needs multivariate=True")
        with _quiet():
            return TPESampler(
                seed=seed,
                n_startup_trials=self.n_startup_trials,
                n_ei_candidates=self.n_ei_candidates,
                multivariate=self.multivariate,
                group=self.group,
                constant_liar=self.constant_liar,
            )


@register
class NSGA2(Searcher):
    """Genetic search for a Pareto front; with one objective, plain elitist evolution."""

    name = "nsga2"
    title = "Non-dominated sorting genetic algorithm II"
    source = "Deb et al., IEEE Transactions on Evolutionary Computation 2002; optuna.samplers.NSGAIISampler"
    models = "a quarter of the values (27 % in the default space): what the parents' branches share; the rest is random"

    population_size: int = Int(50, low=10, high=200, domain=(2, 1e6), doc="trials a generation; the first is random")
    crossover_prob: float = Float(0.9, low=0.5, high=1, domain=(0, 1), doc="share of children with two parents")
    swapping_prob: float = Float(0.5, low=0.1, high=0.9, domain=(0, 1), doc="chance to swap one decision")

    def build(self, seed: int | None) -> BaseSampler:  # type: ignore[override]
        from optuna.samplers import NSGAIISampler

        with _quiet():
            return NSGAIISampler(
                seed=seed,
                population_size=self.population_size,
                crossover_prob=self.crossover_prob,
                swapping_prob=self.swapping_prob,
            )


@register
class GP(Searcher):
    """Gaussian process with expected improvement over the decisions that every trial has taken."""

    name = "gp"
    title = "Bayesian optimisation with a Gaussian process"
    source = "Snoek et al., NeurIPS 2012; optuna.samplers.GPSampler"
    models = "a third of the values (32 % in the default space): decisions that every trial takes; the rest is random"

    n_startup_trials: int = Int(10, low=5, high=50, doc="random trials before the model is used")
    deterministic_objective: bool = Flag(False, doc="take the scores as free of noise")

    def build(self, seed: int | None) -> BaseSampler:  # type: ignore[override]
        from optuna.samplers import GPSampler

        with _quiet():
            return GPSampler(
                seed=seed,
                n_startup_trials=self.n_startup_trials,
                deterministic_objective=self.deterministic_objective,
                warn_independent_sampling=False,
            )


@register
class CMAES(Searcher):
    """Covariance-adapting evolution over the numeric decisions that every trial has taken."""

    name = "cmaes"
    title = "Covariance matrix adaptation evolution strategy"
    source = "Hansen and Ostermeier, Evolutionary Computation 2001; optuna.samplers.CmaEsSampler"
    models = "hardly anything (3 % in the default space): numeric decisions that every trial takes; the rest is random"
    objectives = 1

    n_startup_trials: int = Int(1, low=1, high=50, doc="random trials before the model is used")
    consider_pruned_trials: bool = Flag(False, doc="learn from pruned trials as well")
    use_separable_cma: bool = Flag(False, doc="diagonal covariance: faster in many dimensions")
    with_margin: bool = Flag(False, doc="keep a margin of probability on every whole number")
    lr_adapt: bool = Flag(False, doc="adapt the learning rate: for noisy or multimodal scores")

    def build(self, seed: int | None) -> BaseSampler:  # type: ignore[override]
        from optuna.samplers import CmaEsSampler

        try:
            importlib.import_module("cmaes")
        except ImportError:
            raise MissingPackage("searcher 'cmaes' needs the package cmaes: pip install kdsearch[cmaes]") from None
        if self.use_separable_cma and self.with_margin:
            raise ValueError("searcher 'cmaes': use_separable_cma and with_margin exclude each other")
        with _quiet():
            return CmaEsSampler(
                seed=seed,
                n_startup_trials=self.n_startup_trials,
                consider_pruned_trials=self.consider_pruned_trials,
                use_separable_cma=self.use_separable_cma,
                with_margin=self.with_margin,
                lr_adapt=self.lr_adapt,
                warn_independent_sampling=False,
            )


@register
class QMC(Searcher):
    """A low-discrepancy sequence over the numeric decisions that every trial has taken."""

    name = "qmc"
    title = "Quasi-Monte Carlo"
    source = "Bergstra and Bengio, JMLR 2012; optuna.samplers.QMCSampler"
    models = "nothing: it spreads evenly what it covers (about half of the values) and draws the rest at random"

    qmc_type: str = Choice("sobol", ("sobol", "halton"), doc="the sequence")
    scramble: bool = Flag(True, doc="randomise the sequence by the seed")

    def build(self, seed: int | None) -> BaseSampler:  # type: ignore[override]
        from optuna.samplers import QMCSampler

        with _quiet():
            return QMCSampler(
                seed=seed,
                qmc_type=self.qmc_type,
                scramble=self.scramble,
                warn_independent_sampling=False,
            )
