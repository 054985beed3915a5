"""Search-space shrinkage: which choices are no longer drawn. The rule is ours; the paper's is not known to us."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.distributions import CategoricalDistribution

from kdsearch.searchers.evolution.population import Individual
from kdsearch.searchers.mcts.domain import key

Dropped = dict[str, frozenset[float]]
"""Decision -> indices of the choices that are no longer drawn."""


def dropped(individuals: Sequence[Individual], after: int) -> Dropped:
    """Choices taken at least `after` times of which even the best trial ranks below the median of its decision.

    The median is over all trials that took the decision, so that a choice is compared with its alternatives alone. One
    that is as good as the others is dropped by bad luck with a chance of about 2^-after. The best choice of a decision
    holds the median or better and always stays. 0 drops nothing.
    """
    if not after:
        return {}
    taken: dict[str, dict[float, list[int]]] = {}
    for one in individuals:
        for name, distribution in one.trial.distributions.items():
            if isinstance(distribution, CategoricalDistribution) and not distribution.single():
                choice = key(distribution, one.trial.params[name])
                taken.setdefault(name, {}).setdefault(choice, []).append(one.worth)
    found: Dropped = {}
    for name, worths in taken.items():
        everyone = sorted(worth for worth_of in worths.values() for worth in worth_of)
        median = everyone[len(everyone) // 2]
        bad = {choice for choice, worth_of in worths.items() if len(worth_of) >= after and max(worth_of) < median}
        if bad:
            found[name] = frozenset(bad)
    return found
