"""What is believed of a decision's values before any trial: weights of choices, or a density along a number's line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from optuna.distributions import BaseDistribution

from kdsearch.searchers.mcts.domain import Domain, key


class Prior:
    """Weights of one decision.

    Args:
        name: of the decision, for messages.
        weights: value -> weight, where choices that are left out weigh 1 and a number's values spread around
            themselves; or, for numbers, a list of weights of equally wide pieces of its range (on its own scale).

    Raises:
        ValueError: neither of the two, or a weight that is negative or not finite.
    """

    def __init__(self, name: str, weights: Mapping[Any, float] | Sequence[float]) -> None:
        self._table = isinstance(weights, Mapping)
        if not isinstance(weights, Mapping | Sequence) or isinstance(weights, str) or not len(weights):
            raise ValueError(
                f"priors[{name!r}] must map values to weights or list weights along the range, not {weights!r}"
            )
        found: list[tuple[Any, float]] = list(weights.items() if isinstance(weights, Mapping) else enumerate(weights))
        for _, weight in found:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise ValueError(f"priors[{name!r}]: a weight must be a finite number from 0, not {weight!r}")
        self._weights = found

    def on(self, distribution: BaseDistribution, domain: Domain, spread: float) -> Belief:
        """What it says of a distribution."""
        if domain.categorical:
            at: dict[float, float] = {}
            for value, weight in self._weights if self._table else []:
                try:
                    at[key(distribution, value)] = float(weight)
                except (ValueError, TypeError):  # a choice that this space leaves out
                    continue
            return Belief(domain, at=at)
        if not self._table:
            return Belief(domain, pieces=[float(weight) for _, weight in self._weights])
        numbers = [(float(v), float(w)) for v, w in self._weights if isinstance(v, int | float)]
        known = [(domain.place(v), w) for v, w in numbers if domain.contains(v)]
        return Belief(domain, peaks=known, spread=spread)


class Belief:
    """A prior over the values of one domain: what a value weighs (1 where nothing is said), and a draw."""

    def __init__(
        self,
        domain: Domain,
        *,
        at: Mapping[float, float] | None = None,
        pieces: Sequence[float] = (),
        peaks: Sequence[tuple[float, float]] = (),
        spread: float = 0.1,
    ) -> None:
        self._domain, self._at, self._pieces, self._peaks = domain, at or {}, list(pieces), list(peaks)
        self._spread = spread

    def weight(self, value: float) -> float:
        if self._domain.categorical:
            return self._at.get(value, 1.0)
        place = self._domain.place(value)
        if self._pieces:
            return self._pieces[min(len(self._pieces) - 1, max(0, int(place * len(self._pieces))))]
        if not self._peaks:
            return 1.0
        return sum(w * math.exp(-(((place - peak) / self._spread) ** 2) / 2) for peak, w in self._peaks)

    def draw(self, rng: Random) -> float:
        """A number by its density; uniform on its scale where nothing, or nothing but zeros, is said."""
        if any(self._pieces):
            k = rng.choices(range(len(self._pieces)), self._pieces)[0]
            return self._domain.at((k + rng.random()) / len(self._pieces))
        if any(weight for _, weight in self._peaks):
            peak = rng.choices([p for p, _ in self._peaks], [w for _, w in self._peaks])[0]
            return self._domain.at(peak + rng.gauss(0.0, self._spread))
        return self._domain.draw(rng)
