"""Monte-Carlo tree search over the tree of suggest calls: its entry in the table. `sampler` is the search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdsearch.parameters import Float, Int
from kdsearch.searchers.catalogue import Searcher, register

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@register
class MCTS(Searcher):
    """UCT over the decisions a trial takes, with progressive widening of numeric ones and shared statistics."""

    name = "mcts"
    title = "Monte-Carlo tree search over the decision tree"
    source = (
        "UCT: Kocsis and Szepesvári, ECML 2006; progressive widening: Couëtoux et al., LION 2011; "
        "prior visits: Gelly and Silver, ICML 2007; in Auto-KD: Li et al., ICCV 2023"
    )
    models = "every value, conditional or not, each by the trials that took the same decision after the same ones"
    objects = {
        "defaults": "decision -> value to try first, a published default say",
        "priors": "decision -> {choice: weight} for the order in which untried choices are tried",
    }

    exploration: float = Float(0.7, low=0.1, high=3, log=True, doc="weight of UCT's exploration term")
    widening: float = Float(1.0, low=0.5, high=3, domain=(1e-3, 1e3), doc="c of c * n^growth values after n visits")
    growth: float = Float(0.7, low=0.25, high=0.75, domain=(0, 1), doc="exponent of c * n^growth values after n visits")
    prior_share: float = Float(0.3, low=0.1, high=0.6, domain=(0, 1), doc="share of new values drawn from the range")
    spread: float = Float(0.1, low=0.02, high=0.3, log=True, domain=(1e-6, 1), doc="of draws near a good value")
    sharing: float = Float(2.0, low=0.5, high=8, log=True, doc="visits' worth of what a value did elsewhere; 0: none")
    nearby: int = Int(10, low=3, high=40, domain=(1, 1e9), doc="trials that began alike, to believe them alone")
    listed: int = Int(8, low=4, high=16, domain=(1, 1e6), doc="numbers with more values than this are widened")
    virtual_loss: float = Float(1.0, low=0.25, high=1, domain=(0, 1), doc="how bad running trials count; 0: average")

    def build(self, seed: int | None, **objects: Any) -> BaseSampler:
        from kdsearch.searchers.mcts.sampler import MCTSSampler

        options: dict[str, Any] = {**self.hyper, **objects}
        return MCTSSampler(seed=seed, **options)
