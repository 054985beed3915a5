"""Ridge regression in closed form with its leave-one-out error, for many small designs at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PENALTIES = np.logspace(-4, 0.5, 10)
"""Penalties that are tried, in units of the number of rows."""


@dataclass(frozen=True)
class Ridge:
    """One fit: `design @ weights + intercept`; `error` is its mean squared error with each row left out in turn."""

    weights: Floats
    intercept: float
    error: float
    penalty: float


def errors(designs: Floats, target: Floats) -> Floats:
    """Leave-one-out mean squared errors, [K, penalties], of K designs [K, N, D] with target [N].

    The row's own leverage gives what the fit without it would have predicted; the intercept is not penalised.
    """
    n = len(target)
    designs = designs - designs.mean(1, keepdims=True)
    centred = target - target.mean()
    transposed = designs.transpose(0, 2, 1)
    values, vectors = np.linalg.eigh(transposed @ designs)
    turned = designs @ vectors  # [K, N, D]
    shrunk = 1 / (np.maximum(values, 0)[:, None] + PENALTIES[None, :, None] * n)  # [K, penalties, D]
    weights = shrunk * (turned.transpose(0, 2, 1) @ centred)[:, None]
    fitted = weights @ turned.transpose(0, 2, 1)
    leverage = shrunk @ (turned**2).transpose(0, 2, 1) + 1 / n
    return np.asarray((((centred - fitted) / np.maximum(1 - leverage, 1e-9)) ** 2).mean(-1), dtype=np.float64)


def fit(design: Floats, target: Floats) -> Ridge:
    """The fit of a design [N, D] at the penalty whose leave-one-out error is least."""
    found = errors(design[None], target)[0]
    best = int(found.argmin())
    mean = design.mean(0)
    centred = design - mean
    gram = centred.T @ centred + PENALTIES[best] * len(target) * np.eye(design.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (target - target.mean()))
    return Ridge(weights, float(target.mean() - mean @ weights), float(found[best]), float(PENALTIES[best]))
