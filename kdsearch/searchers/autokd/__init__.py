"""Auto-KD's Monte-Carlo tree search in its textbook form: its entry in the table. `sampler` is the search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.parameters import Choice, Float, Int
from kdsearch.searchers.catalogue import Searcher, register

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@register
class AutoKD(Searcher):
    """UCT and random rollouts over a tree of lists; the baseline that `mcts` builds on.

    The paper's constant, rollout and back-propagation rules could not be found, nor how its rewards are scaled: what
    stands here is the textbook.
    """

    name = "autokd"
    title = "Plain UCT, as in Auto-KD"
    source = "Li et al., Auto-KD, ICCV 2023; UCT: Kocsis and Szepesvári, ECML 2006"
    models = "every value, numbers as a handful of fixed ones, each by the trials that began with the same decisions"

    exploration: float = Float(1.4142135623730951, low=0.1, high=3, log=True, doc="c of Q/N + c sqrt(ln N / n)")
    levels: int = Int(5, low=3, high=10, domain=(1, 1e4), doc="values that a number is cut into, both ends among them")
    reward: str = Choice("rank", ("rank", "value"), doc="rank among the trials in [0, 1], or the objective's own value")

    def build(self, seed: int | None) -> BaseSampler:  # type: ignore[override]
        from kdsearch.searchers.autokd.sampler import AutoKDSampler

        return AutoKDSampler(self, seed=seed)
