"""Monte-Carlo tree search over the tree of suggest calls: its entry in the table. `sampler` is the search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdsearch.parameters import Choice, Float, Int
from kdsearch.searchers.catalogue import Searcher, register

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@register
class MCTS(Searcher):
    """Optimistic search of the tree of decisions under a model of what each decision is worth, or by UCT's counts."""

    name = "mcts"
    title = "Monte-Carlo tree search over the decision tree"
    source = (
        "UCT: Kocsis and Szepesvári, ECML 2006; Bayes-UCT: Tesauro et al., UAI 2010; additive Gaussian processes: "
        "Duvenaud et al., NeurIPS 2011; RAVE: Gelly and Silver, AIJ 2011; progressive widening: Couëtoux et al., "
        "LION 2011; in Auto-KD: Li et al., ICCV 2023"
    )
    models = "every value, conditional or not: by its own effect, its effect beside others, and its place in the tree"
    objects = {
        "defaults": "decision -> value to try first, a published default say",
        "priors": "decision -> {value: weight}, or for numbers a list of weights along the range",
    }

    estimate: str = Choice("model", ("model", "prior", "rave"), doc="how trials elsewhere in the tree count")
    reward: str = Choice("rank", ("rank", "minmax", "zscore"), doc="scale on which trials are compared")
    emphasis: float = Float(2.0, low=1, high=4, domain=(0.1, 100), doc="power of the reward; above 1 the top counts")
    local: float = Float(0.3, low=0, high=0.8, domain=(0, 1), doc="share of trials that vary a good one's path")
    counted: float = Float(0.0, low=0, high=1, domain=(0, 1), doc="model: share of the other trials led by counts")
    startup: int = Int(1, low=1, high=16, domain=(1, 1e9), doc="finished trials before the model is used")

    optimism: float = Float(1.5, low=0.5, high=3, doc="model: standard deviations added, times a draw with mean 1")
    doubt: float = Float(0.0, low=0, high=2, doc="model: variance of what lies behind a value, over 1 + its trials")
    interactions: float = Float(0.2, low=0.05, high=0.5, doc="model: weight of pairs of decisions beside single ones")
    length: float = Float(0.3, low=0.1, high=0.5, log=True, domain=(0.1, 2), doc="model: reach of a number")
    noise: float = Float(0.2, low=0.05, high=0.5, domain=(1e-3, 1e3), doc="model: share of the reward that is chance")
    candidates: int = Int(12, low=8, high=48, domain=(1, 1e4), doc="model: numbers drawn to choose from")
    ahead: int = Int(6, low=2, high=12, domain=(0, 1e3), doc="model: draws of what a value alone leads to; 0: none")
    prior_bias: float = Float(0.5, low=0.1, high=2, doc="model: weight of priors, in standard deviations of the reward")

    formula: str = Choice("uct", ("uct", "puct"), doc="counts: which bound; puct weighs exploration by the priors")
    exploration: float = Float(0.7, low=0.1, high=3, log=True, doc="counts: weight of the exploration term")
    backup: str = Choice("mean", ("mean", "max", "power", "softmax", "top"), doc="counts: what a node is worth")
    sharpness: float = Float(4.0, low=2, high=16, log=True, domain=(1, 1e3), doc="counts: of power, softmax and top")
    shrinkage: float = Float(0.0, low=0, high=4, doc="counts: visits' worth of pull to the siblings' mean")
    widening: float = Float(1.0, low=0.5, high=3, domain=(1e-3, 1e3), doc="counts: c of c * n^growth values competing")
    growth: float = Float(0.7, low=0.25, high=0.75, domain=(0, 1), doc="counts: exponent of c * n^growth")
    prior_share: float = Float(0.3, low=0.1, high=0.6, domain=(0, 1), doc="counts: share of new values from the range")
    spread: float = Float(0.1, low=0.02, high=0.3, log=True, domain=(1e-6, 1), doc="of draws near a value")
    sharing: float = Float(2.0, low=0.5, high=8, log=True, doc="prior: visits' worth of what a value did elsewhere")
    rave_bias: float = Float(0.3, low=0.05, high=1, log=True, doc="rave: b, how far a value's worth elsewhere is off")
    nearby: int = Int(10, low=3, high=40, domain=(1, 1e9), doc="counts: trials that began alike, to believe them alone")
    listed: int = Int(8, low=4, high=16, domain=(1, 1e6), doc="numbers with more values than this are drawn")
    virtual_loss: float = Float(1.0, low=0.25, high=1, domain=(0, 1), doc="how bad running trials count; 0: average")

    def build(self, seed: int | None, **objects: Any) -> BaseSampler:
        from kdsearch.searchers.mcts.sampler import MCTSSampler

        options: dict[str, Any] = {**self.hyper, **objects}
        return MCTSSampler(seed=seed, **options)
