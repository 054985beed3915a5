"""From a study's history to the model of it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kdsearch.searchers.mcts.domain import Domain
from kdsearch.searchers.mcts.features import features
from kdsearch.searchers.mcts.history import NOWHERE, History
from kdsearch.searchers.mcts.model import Column, Model

MEMORY = 1000
"""Finished trials that a model is made of: beyond them, the better half and the newer half of the rest."""


def fit(history: History) -> Model | None:
    """The model of all trials with a decision; None before `startup` of them have finished."""
    options, tree = history.options, history.tree
    numbers = np.array(list(tree.trials), dtype=np.int64)
    if len(numbers) < max(1, options.startup) or not history.levels:
        return None
    rewards = history.rewards
    rows = _kept(numbers, rewards)
    running = [run for run in history.running if run]
    row_of = np.full(len(numbers), NOWHERE, dtype=np.int64)
    row_of[rows] = np.arange(len(rows))
    columns = {}
    for name in sorted(tree.takers):
        positions, values = (np.array(column) for column in tree.takers[name])
        at = row_of[positions.astype(np.int64)]
        order = np.argsort(at, kind="stable")
        order = order[at[order] != NOWHERE]
        under_way = [(len(rows) + k, v) for k, run in enumerate(running) for n, v in run if n == name]
        domain = Domain(tree.domains[name][1])
        taken = np.concatenate([values[order], [v for _, v in under_way]])
        where = np.concatenate([at[order], np.array([k for k, _ in under_way], dtype=np.int64)])
        points = features(domain, taken, options.length)
        centre = _centre(points[: len(order)], rewards[rows][at[order]])
        columns[name] = Column(domain, where, points - centre, centre)
    return Model(
        columns,
        _nodes(history, rows, running),
        numbers[rows].tolist(),
        rewards[rows],
        len(running),
        interactions=options.interactions,
        length=options.length,
        noise=options.noise,
        pessimism=options.virtual_loss,
    )


def _centre(points: NDArray[np.float64], rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the better quarter of those that took a decision, with one more at the middle of the domain."""
    count = math.ceil(len(points) / 4)
    best = np.sort(np.argsort(-rewards, kind="stable")[:count])
    return np.asarray(points[best].sum(axis=0) / (count + 1.0))


def _kept(numbers: NDArray[np.int64], rewards: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions of the rows, by trial number: sums over them come out the same whatever order trials ended in."""
    order = np.argsort(numbers)
    if len(order) <= MEMORY:
        return order
    better = np.lexsort((numbers, rewards))[-(MEMORY // 2) :]
    rest = order[~np.isin(order, better)]
    kept = np.concatenate([better, rest[-(MEMORY - len(better)) :]])
    return kept[np.argsort(numbers[kept])]


def _nodes(history: History, rows: NDArray[np.int64], running: list[list[tuple[str, float]]]) -> NDArray[np.int64]:
    """The nodes of every row, by depth. Running trials stand at those that finished ones have reached."""
    ways = [history.way(run)[1:] for run in running]
    out = np.full((len(history.levels), len(rows) + len(running)), NOWHERE, dtype=np.int64)
    for depth, level in enumerate(history.levels):
        out[depth, : len(rows)] = level[rows]
        for k, way in enumerate(ways):
            if depth < len(way):
                out[depth, len(rows) + k] = way[depth]
    return out
