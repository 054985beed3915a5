"""Values of a decision as points whose inner product says how much one tells of another."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kdsearch.searchers.mcts.domain import Domain

Floats = NDArray[np.float64]

KNOTS = 11
LINE: Floats = np.linspace(0.0, 1.0, KNOTS)
"""Places at which the kernel of numbers is exact; between them it is nearly so, at lengths from 0.1 on."""


def features(domain: Domain, values: Floats, length: float) -> Floats:
    """Values as points whose inner product is the kernel, [N, d]: mean zero and variance one over the domain.

    Choices, and numbers with up to three values, are told apart. Other numbers tell of each other by a Gaussian of
    their distance: its standard deviation is `length`, as a share of their line. Source: Nyström's approximation,
    Williams and Seeger, NIPS 2000.
    """
    size = domain.size
    if domain.categorical or size <= 3:
        index = np.rint((values - domain.low) / domain.step) if domain.step else np.zeros(len(values))
        out = (index[:, None] == np.arange(int(size))).astype(np.float64) - 1.0 / size
        return out * math.sqrt(size / max(1.0, size - 1.0))
    whitening, mean, scale = _line(length)
    points: Floats = _bumps(np.clip(domain.places(values), 0.0, 1.0), length) @ whitening
    return (points - mean) * scale


def _bumps(places: Floats, length: float) -> Floats:
    return np.exp(-0.5 * np.square((places[:, None] - LINE) / length))


@cache
def _line(length: float) -> tuple[Floats, Floats, float]:
    """What makes points of bumps: a matrix, their mean over the line, and what makes their mean square one."""
    factor = np.linalg.cholesky(_bumps(LINE, length) + 1e-6 * np.eye(KNOTS))
    whitening: Floats = np.linalg.inv(factor).T
    points = _bumps((np.arange(400) + 0.5) / 400, length) @ whitening
    mean = points.mean(axis=0)
    return whitening, mean, float(1.0 / np.sqrt(np.square(points - mean).sum(axis=1).mean()))
