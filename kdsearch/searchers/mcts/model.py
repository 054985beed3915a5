"""What a decision is worth by all trials at once: a Gaussian process whose inputs are the decisions themselves.

A trial's reward is taken as a sum over its decisions, over pairs of them, and over the nodes it walked through, each
with a normal prior. The first two carry over between branches, the last is what only this branch knows. Contributions
average to zero over what good trials took, so that a path that is not yet at its end is worth its usual good
continuation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdsearch.searchers.mcts.domain import Domain
from kdsearch.searchers.mcts.features import features

Floats = NDArray[np.float64]
Decision = tuple[str, float]

ELSEWHERE = -2
"""The node of a value that no trial took: equal to none, nor to where a row has no node."""

LEVEL, MAIN, NODE = 1.0, 0.15, 0.01
"""Prior variance of the average over the tree (trials crowd where it is good), of a decision's contribution, and of a
node's, in units of the rewards' variance. Values are ours."""


@dataclass
class Column:
    """One decision in the rows that took it: which rows, and their points about the centre."""

    domain: Domain
    rows: NDArray[np.int64]
    points: Floats
    centre: Floats

    def at(self, values: Floats, length: float) -> Floats:
        return features(self.domain, values, length) - self.centre


class Model:
    """The posterior over paths.

    Args:
        columns: decision -> who took it, and what.
        nodes: the nodes of each row, [depth, rows]; negative where there is none.
        numbers: of the trials in the finished rows.
        rewards: of the finished rows.
        running: how many of the rows, the last ones, are still under way and have no reward.
        interactions: prior variance of a pair of decisions, as a share of `MAIN`.
        length: how far numbers tell of others, as a share of their line.
        noise: variance of a reward about what its decisions make it, as a share of the rewards' variance.
        pessimism: standard deviations by which a running row is taken to end below its prediction.

    Source: Duvenaud et al., Additive Gaussian processes, NeurIPS 2011; what is not known yet of running rows as in
    Desautels et al., JMLR 2014 (GP-BUCB); linear value estimates in tree search, Silver et al., ICML 2008 (Dyna-2).
    """

    def __init__(
        self,
        columns: dict[str, Column],
        nodes: NDArray[np.int64],
        numbers: Sequence[int],
        rewards: Floats,
        running: int,
        interactions: float,
        length: float,
        noise: float,
        pessimism: float,
    ) -> None:
        self.numbers = list(numbers)
        self._columns, self._nodes, self._pair, self._length = columns, nodes, interactions * MAIN, length
        count = nodes.shape[1]
        done = count - running
        total, squares = np.zeros((count, count)), np.zeros((count, count))
        for column in columns.values():
            gram = column.points @ column.points.T
            # What all rows took is most of it, and a block by index is ten times slower than all.
            block = ... if len(column.rows) == count else np.ix_(column.rows, column.rows)
            total[block] += gram
            squares[block] += gram * gram
        together = np.zeros((count, count))
        for level in nodes:
            together += (level[:, None] == level[None, :]) & (level >= 0)[:, None]
        kernel = self._kernel(total, squares, together)
        kernel[np.diag_indices(count)] += noise
        finished = rewards[:done]
        spread = float(finished.std())
        target = (finished - finished.mean()) / (spread if spread > 0 else 1.0)
        self._factor = np.linalg.cholesky(kernel)
        if running:
            known = self._factor[:done, :done]
            across = np.linalg.solve(known, kernel[:done, done:])
            guess = across.T @ np.linalg.solve(known, target)
            sure = np.maximum(kernel.diagonal()[done:] - noise - (across * across).sum(axis=0), 0.0)
            target = np.concatenate([target, guess - pessimism * np.sqrt(sure)])
        self._inverse = np.linalg.inv(self._factor)
        self._weights = self._inverse.T @ (self._inverse @ target)
        kernel[np.diag_indices(count)] -= noise
        self.fitted: Floats = (kernel @ self._weights)[:done]
        """The posterior mean of the finished rows."""

    def _kernel(self, total: Floats, squares: Floats, together: Floats) -> Floats:
        return LEVEL + MAIN * total + self._pair * (total * total - squares) / 2.0 + NODE * together

    def posterior(
        self,
        prefix: Sequence[Decision],
        way: Sequence[int],
        known: Mapping[float, int],
        name: str,
        domain: Domain,
        values: Floats,
    ) -> tuple[Floats, Floats]:
        """Mean and standard deviation of what each value is worth after a prefix, in the rewards' spread.

        Args:
            way: the nodes of the prefix from the root on, as far as trials went.
            known: value -> its node, of those that trials took after the prefix.
        """
        count = self._nodes.shape[1]
        total, squares = np.zeros(count), np.zeros(count)
        own = own_squares = 0.0
        for taken, value in prefix:
            column = self._columns.get(taken)
            if column is None:
                continue
            point = column.at(np.array([value]), self._length)[0]
            along = column.points @ point
            total[column.rows] += along
            squares[column.rows] += along * along
            length = float(point @ point)
            own, own_squares = own + length, own_squares + length * length
        together = np.zeros((len(values), count))
        for level, node in zip(self._nodes, way[1:], strict=False):  # every row stands at the root
            together += level == node
        if known and len(prefix) < len(self._nodes):
            own_nodes = np.array([known.get(value, ELSEWHERE) for value in values.tolist()])
            together += self._nodes[len(prefix)] == own_nodes[:, None]
        column = self._columns.get(name)
        points = column.at(values, self._length) if column else features(domain, values, self._length)
        lengths = (points * points).sum(axis=1)
        totals = np.repeat(total[None], len(values), axis=0)
        all_squares = np.repeat(squares[None], len(values), axis=0)
        if column:
            across = points @ column.points.T
            totals[:, column.rows] += across
            all_squares[:, column.rows] += across * across
        kernel = self._kernel(totals, all_squares, together)
        prior = self._kernel(own + lengths, own_squares + lengths * lengths, np.float64(len(prefix) + 1))  # type: ignore[arg-type]
        variance = prior - np.square(self._inverse @ kernel.T).sum(axis=0)
        return kernel @ self._weights, np.sqrt(np.maximum(variance, 1e-12))
