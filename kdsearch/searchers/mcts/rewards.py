"""What a finished trial is worth to the tree: its rank among the others, in [0, 1].

Ranks make rewards comparable without knowing the metric's scale, and let a trial that was stopped early be worth less
than any that went further. Trials are ordered by (last step they reported, value there); complete ones stand above all
others, by their value. The best is worth 1, equals share their mean rank, and what was pruned without a value (an
invalid or failing decision) is worth 0 and takes no rank. With several objectives complete trials are ordered by how
many others dominate them (Fonseca and Fleming, 1993); Optuna keeps no intermediate values in such studies, so that
pruned trials are worth 0 there.

Two other scales keep the distances between complete trials; `emphasis` bends any of them towards the top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

Floats = NDArray[np.float64]
FINE = 1 << 30
"""Points to a reward of 1 where rewards are no ranks."""

Standing = tuple[float, ...]
"""(step, value of each objective), larger is better; step -inf for a trial without a value."""


def standing(trial: FrozenTrial, directions: Sequence[StudyDirection]) -> Standing:
    """Where a finished trial stands, on its own. NaN counts as the worst value at its step."""
    signs = [1.0 if d == StudyDirection.MAXIMIZE else -1.0 for d in directions]
    if trial.state == TrialState.COMPLETE:
        return (math.inf, *(sign * value for sign, value in zip(signs, trial.values, strict=True)))
    if len(signs) > 1 or not trial.intermediate_values:
        return (-math.inf, *(0.0 for _ in signs))
    step = max(trial.intermediate_values)
    value = signs[0] * trial.intermediate_values[step]
    return (float(step), -math.inf if math.isnan(value) else value)


def points(standings: NDArray[np.float64], scale: str = "rank", emphasis: float = 1.0) -> tuple[NDArray[np.int64], int]:
    """Rewards as whole numbers, and the number that stands for a reward of 1.

    Whole numbers add up to the same sum in any order, so that a tree does not depend on how it was put together.

    Args:
        standings: one row per trial, [N, 1 + objectives].
        scale: "rank"; or "minmax" or "zscore" of the value, for complete trials, within the share of the unit
            interval that their ranks take up, so that they stay above the pruned ones.
        emphasis: the reward is raised to this power; above 1 the best stand out.
    """
    out = np.zeros(len(standings), dtype=np.int64)
    ranked = np.flatnonzero(standings[:, 0] > -np.inf)
    if not len(ranked):
        return out, 1
    steps, values = standings[ranked, 0], standings[ranked, 1:]
    worth = values[:, 0] if values.shape[1] == 1 else -_dominators(values)
    order = np.lexsort((worth, steps))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (steps[order][1:] != steps[order][:-1]) | (worth[order][1:] != worth[order][:-1])
    group = np.cumsum(new) - 1
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(order)) - 1
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = (first + last + 2)[group]
    if scale == "rank" and emphasis == 1.0:
        out[ranked] = ranks
        return out, 2 * len(order)
    rewards = ranks / (2 * len(order))
    complete = np.isposinf(steps)
    if scale != "rank" and complete.any():
        floor = 1.0 - np.mean(complete)
        rewards[complete] = floor + (1.0 - floor) * RESCALED[scale](worth[complete].astype(np.float64))
    out[ranked] = np.rint(rewards**emphasis * FINE).astype(np.int64)
    return out, FINE


def minmax(values: Floats) -> Floats:
    """Values on [0, 1] between the worst and the best finite one; 0.5 for all where they are equal."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    if high <= low:
        return np.where(np.isfinite(values), 0.5, values > 0)
    return (np.clip(values, low, high) - low) / (high - low)


def zscore(values: Floats) -> Floats:
    """1 / (1 + exp(-1.7 z)), close to the normal distribution function, of the z-scores; an outlier shifts no rest."""
    finite = values[np.isfinite(values)]
    spread = finite.std() if len(finite) else 0.0
    if not spread:
        return np.where(np.isfinite(values), 0.5, values > 0)
    z = (np.clip(values, finite.min(), finite.max()) - finite.mean()) / spread
    return np.asarray(1.0 / (1.0 + np.exp(-1.7 * z)), dtype=np.float64)


RESCALED = {"minmax": minmax, "zscore": zscore}


def _dominators(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many rows are at least as good in every column and better in one."""
    at_least = np.ones((len(values), len(values)), dtype=bool)
    for column in values.T:
        at_least &= column[:, None] >= column[None, :]
    return (at_least & ~at_least.T).sum(axis=0)
