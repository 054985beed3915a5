"""What a node is worth, given the rewards of the trials that went through it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def mean(rewards: Floats, sharpness: float) -> float:
    """The plain average, as in UCT. Kocsis and Szepesvári, ECML 2006."""
    return float(rewards.mean())


def maximum(rewards: Floats, sharpness: float) -> float:
    """The best: right without noise, an optimist with it. Coulom, CG 2006, section 3."""
    return float(rewards.max())


def power(rewards: Floats, sharpness: float) -> float:
    """The power mean of exponent `sharpness`, from the average (1) to the best (inf). Dam et al., IJCAI 2020."""
    return float(np.mean(rewards**sharpness) ** (1.0 / sharpness))


def softmax(rewards: Floats, sharpness: float) -> float:
    """The average under Boltzmann weights exp(sharpness · reward). Asadi and Littman, ICML 2017, section 1."""
    weights = np.exp(sharpness * (rewards - rewards.max()))
    return float(weights @ rewards / weights.sum())


def top(rewards: Floats, sharpness: float) -> float:
    """The average of the best 1/`sharpness` of the rewards, at least one of them."""
    count = math.ceil(len(rewards) / max(1.0, sharpness))
    return float(np.sort(rewards)[-count:].mean())


BACKUPS: dict[str, Callable[[Floats, float], float]] = {
    "mean": mean,
    "max": maximum,
    "power": power,
    "softmax": softmax,
    "top": top,
}


def shrunk(value: Floats, visits: Floats, towards: float, shrinkage: float) -> Floats:
    """A value after so many visits, with `shrinkage` more visits at the average of its siblings.

    Seen once, a value is hardly better than they are, however well it did.
    """
    return (visits * value + shrinkage * towards) / (visits + shrinkage)
