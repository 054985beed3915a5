"""What a decision may be: Optuna's distributions as a line of numbers, so that values can be counted and neighboured.

A value is handled as a float here: the index of a choice, or the number itself. `key` gives it, `to_external_repr` of
the distribution turns it back.
"""

from __future__ import annotations

import math
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution


def key(distribution: BaseDistribution, value: Any) -> float:
    """A suggested value as a float. Values on a grid lose the noise of their last digits."""
    if isinstance(distribution, FloatDistribution):
        return float(value) if distribution.step is None else _on_grid(float(value))
    return float(distribution.to_internal_repr(value))


def size(distribution: BaseDistribution) -> float:
    """How many values there are; inf for a continuous range."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return (distribution.high - distribution.low) // distribution.step + 1
    assert isinstance(distribution, FloatDistribution)
    if distribution.step is not None:
        return round((distribution.high - distribution.low) / distribution.step) + 1
    return math.inf if distribution.high > distribution.low else 1


def _on_grid(value: float) -> float:
    return float(f"{value:.12g}")


class Domain:
    """The values of one distribution, each at a place in [0, 1].

    Numbers lie on the line by size, on a log scale where the distribution has one; every value of a grid owns a cell.
    """

    def __init__(self, distribution: BaseDistribution) -> None:
        self.size = size(distribution)
        self.categorical = isinstance(distribution, CategoricalDistribution)
        self.low, self.step, self.log = 0.0, 1.0, False
        if isinstance(distribution, IntDistribution | FloatDistribution):
            self.low, self.high, self.log = float(distribution.low), float(distribution.high), distribution.log
            self.step = float(distribution.step or 0)
        else:
            self.high = self.size - 1
        half = self.step / 2
        edges = (self.low - half, self.high + half)
        self._edges = (math.log(edges[0]), math.log(edges[1])) if self.log else edges

    def contains(self, value: float) -> bool:
        """Whether a value that was suggested earlier, perhaps from another range, can be suggested again."""
        if not self.low <= value <= self.high:
            return False
        cells = (value - self.low) / self.step if self.step else 0.0
        return abs(cells - round(cells)) < 1e-8

    def within(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """`contains`, for many values at once."""
        inside = (values >= self.low) & (values <= self.high)
        if self.step:
            cells = (values - self.low) / self.step
            inside &= np.abs(cells - np.round(cells)) < 1e-8
        return inside

    def values(self) -> list[float]:
        """All values of a finite domain, in order."""
        return [self._cell(k) for k in range(int(self.size))]

    def place(self, value: float) -> float:
        low, high = self._edges
        return ((math.log(value) if self.log else value) - low) / (high - low)

    def places(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """`place`, for many values at once."""
        low, high = self._edges
        return ((np.log(values) if self.log else values) - low) / (high - low)

    def at(self, place: float) -> float:
        """The value at a place; places outside [0, 1] are reflected at its ends."""
        place = abs(place) % 2
        place = 2 - place if place > 1 else place
        low, high = self._edges
        value = low + place * (high - low)
        value = math.exp(value) if self.log else value
        if self.step:
            return self._cell(round((value - self.low) / self.step))
        return min(max(value, self.low), self.high)

    def draw(self, rng: Random) -> float:
        """Uniform over choices and cells, log-uniform where the distribution says so."""
        return self.at(rng.random())

    def near(self, value: float, spread: float, rng: Random) -> float:
        """A normal draw around a value; `spread` is its standard deviation as a share of the line."""
        return self.at(self.place(value) + rng.gauss(0.0, spread))

    def untaken(self, value: float, taken: set[float]) -> float:
        """The value itself, or the nearest one on the grid that is not taken. Some value must be free."""
        if value not in taken:
            return value
        if not self.step:
            return math.nextafter(value, self.high if value < self.high else self.low)
        here = round((value - self.low) / self.step)
        for distance in range(1, int(self.size)):
            for k in (here - distance, here + distance):
                if 0 <= k < self.size and self._cell(k) not in taken:
                    return self._cell(k)
        raise ValueError("every value of the range is taken")

    def _cell(self, k: int) -> float:
        value = self.low + min(max(k, 0), int(self.size) - 1) * self.step
        return value if value.is_integer() else _on_grid(value)
