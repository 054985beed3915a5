"""What is known of a decision's values: at one node (arms), and in many trials at once (evidence)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class State(Enum):
    """Whether there is anything left to find behind a value."""

    OPEN = "open"
    BUSY = "busy"  # a leaf that only running trials have reached
    CLOSED = "closed"  # every path behind it has been walked to its end


@dataclass(frozen=True)
class Arm:
    """A value at a node: visits and their summed reward, running trials included."""

    value: float
    visits: float
    total: float
    state: State = State.OPEN


@dataclass(frozen=True)
class Evidence:
    """Values in ascending order, each with its visits and summed reward; all [N]."""

    values: Floats
    visits: Floats
    totals: Floats

    @staticmethod
    def of(values: Floats, worth: NDArray[np.int64], scale: int, running: Sequence[float], keep: float) -> Evidence:
        """Of finished trials (value, whole points; `scale` points make a reward of 1) and running ones (value alone).

        A running trial counts as a visit worth `keep` times the mean.
        """
        distinct, group = np.unique(np.concatenate([values, running]), return_inverse=True)
        visits = np.bincount(group, minlength=len(distinct)).astype(np.float64)
        totals = np.bincount(group[: len(values)], weights=worth, minlength=len(distinct)) / scale
        if running and keep and len(values):
            mean = float(worth.sum()) / scale / len(values)
            totals = totals + keep * mean * np.bincount(group[len(values) :], minlength=len(distinct))
        return Evidence(distinct, visits, totals)

    def __contains__(self, value: object) -> bool:
        return bool(len(self.values)) and bool(np.any(self.values == value))

    def about(self, value: float) -> tuple[float, float]:
        """Visits and summed reward of one value."""
        at = int(np.searchsorted(self.values, value))
        if at == len(self.values) or self.values[at] != value:
            return 0.0, 0.0
        return float(self.visits[at]), float(self.totals[at])

    def only(self, mask: NDArray[np.bool_]) -> Evidence:
        return Evidence(self.values[mask], self.visits[mask], self.totals[mask])

    def good(self) -> Floats:
        """The better quarter of the values by mean reward, at least one of them."""
        order = np.lexsort((self.values, -self.totals / self.visits))
        return self.values[order[: max(1, len(order) // 4)]]
