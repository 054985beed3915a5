"""Looking ahead: what a value promises with the decisions that directly follow it and no other."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

from kdsearch.searchers.mcts.domain import Domain
from kdsearch.searchers.mcts.history import Decision, History
from kdsearch.searchers.mcts.model import Model

Floats = NDArray[np.float64]


def promises(
    history: History, model: Model, prefix: Sequence[Decision], name: str, values: Floats, optimism: float, rng: Random
) -> Floats:
    """The largest mean + optimism · standard deviation found behind each value; -inf behind a plain one.

    A method whose first numbers were bad may be the best one with others. The model takes what is undecided as good
    trials decided it, which says nothing of those numbers: so the decisions that directly follow this value alone are
    taken here in turn, each as the best of `ahead` draws. Source: playouts by the tree's own policy, Coulom, CG 2006.
    """
    draws, found = history.options.ahead, np.full(len(values), -np.inf)
    if not draws:
        return found
    for k, value in enumerate(values.tolist()):
        path = [*prefix, (name, value)]
        for following in history.tree.own(name, value):
            domain = Domain(history.tree.domains[following][1])
            listed = domain.size <= draws
            options = np.array(domain.values() if listed else [domain.draw(rng) for _ in range(draws)])
            means, deviations = model.posterior(
                path, history.way(path), history.known(path, following), following, domain, options
            )
            bounds = means + optimism * deviations
            best = int(bounds.argmax())
            found[k] = bounds[best]
            path.append((following, float(options[best])))
    return found
