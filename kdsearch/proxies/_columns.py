"""Proxy scores as columns that a regression can take: logarithms of sizes, standardised, nothing missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Row = Mapping[str, float | None]
"""The proxy scores of one network. None, NaN, infinities and absent names are the worst of their proxy."""
MARGIN = 0.5  # standard deviations beyond what was seen at which a score is taken for no better, or no worse, still
CONSTANT = 1e-9  # a spread below this share of the mean is rounding


def names_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The proxies that some network has a score of, sorted."""
    return tuple(sorted({name for row in rows for name in row}))


def matrix(rows: Sequence[Row], names: Sequence[str]) -> Floats:
    """Scores [N, P], NaN where there is none."""
    cells = [[math.nan if (value := row.get(name)) is None else value for name in names] for row in rows]
    found = np.array(cells, dtype=np.float64).reshape(len(rows), len(names))
    return np.where(np.isfinite(found), found, math.nan)


@dataclass(frozen=True)
class Columns:
    """How scores are brought to mean 0 and spread 1; learned from the networks at hand and from no others. All [P].

    Attributes:
        telling: whether a proxy tells the networks apart at all.
        sign: 1 or -1 where all its scores are positive or negative, whose logarithm is taken; 0 where they are mixed.
        worst: what stands for a score that is missing, before the standardisation.
        low, high: the range that was seen, with a margin, after it. What lies beyond is taken for the end of it: the
            squares of a regression turn round somewhere.
    """

    telling: NDArray[np.bool_]
    sign: Floats
    worst: Floats
    mean: Floats
    spread: Floats
    low: Floats
    high: Floats

    @staticmethod
    def learn(scores: Floats) -> Columns:
        """From scores [N, P], NaN where they are missing; N at least 1."""
        there = np.isfinite(scores)
        positive, negative = ((side | ~there).all(0) for side in (scores > 0, scores < 0))
        sign = np.where(there.any(0), positive.astype(float) - negative.astype(float), 0.0)
        seen = _transformed(scores, sign)
        worst = np.where(there.any(0), np.min(seen, axis=0, initial=math.inf, where=there), 0.0)
        seen = np.where(there, seen, worst)
        mean, spread = seen.mean(0), seen.std(0)
        telling = spread > CONSTANT * np.maximum(1.0, np.abs(mean))
        spread = np.where(telling, spread, 1.0)
        standard = (seen - mean) / spread
        return Columns(telling, sign, worst, mean, spread, standard.min(0) - MARGIN, standard.max(0) + MARGIN)

    def __call__(self, scores: Floats) -> Floats:
        """Standardised scores, [N, P]."""
        found = _transformed(scores, self.sign)
        found = np.where(np.isfinite(found), found, self.worst)
        beyond = (self.sign != 0) & (self.sign * scores <= 0)  # no logarithm, and yet on a known side of all seen
        found = np.where(beyond, np.where(self.sign < 0, math.inf, -math.inf), found)
        return np.clip((found - self.mean) / self.spread, self.low, self.high)


def _transformed(scores: Floats, sign: Floats) -> Floats:
    """sign · log(sign · score), which grows with the score; NaN where a score has the other sign."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sign == 0, scores, sign * np.log(sign * scores))
