"""Means over seeds with their 95 % confidence intervals, paired by seed where two recipes are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

LEVEL = 0.95
ROUNDING = 1e-6
"""Scores are single-precision shares: a spread below this is no noise that was measured."""


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds.

    Attributes:
        spread: standard deviation of the n values (n - 1 in the denominator); 0 for a single one.
        half_width: of the 95 % confidence interval of the mean; None where one value tells nothing about it.
    """

    mean: float
    spread: float
    half_width: float | None
    n: int

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves zero out: a difference that the seeds' noise does not explain. Equal values tell
        nothing of that noise.
        """
        return self.half_width is not None and self.spread > ROUNDING and abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, spread and Student's t interval of at least one value."""
    n, mean = len(values), fmean(values)
    if n < 2:
        return Estimate(mean, 0.0, None, n)
    from scipy.stats import t

    spread = stdev(values)
    return Estimate(mean, spread, float(t.ppf((1 + LEVEL) / 2, n - 1)) * spread / math.sqrt(n), n)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """The mean difference, ours minus theirs, over the seeds that both have; None where they share none."""
    shared = sorted(ours.keys() & theirs.keys())
    return estimate([ours[k] - theirs[k] for k in shared]) if shared else None
