"""The tree of decisions, rebuilt from a study's trials and from nothing else.

A node is the prefix of decisions a trial has taken so far, in the order of its suggest calls. Its structure grows with
every finished trial; visits and rewards are summed afresh whenever a trial asks, since every new score moves the ranks.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdsearch.searchers.mcts.domain import key, size
from kdsearch.searchers.mcts.rewards import Standing, points, standing

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
"""FAIL is the machinery's fault and says nothing about a decision."""

Decision = tuple[str, float]


def decisions(trial: FrozenTrial) -> Iterator[tuple[str, float, BaseDistribution]]:
    """(name, value as a float, distribution) in the order of the suggest calls."""
    for name, value in trial.params.items():
        distribution = trial.distributions[name]
        yield name, key(distribution, value), distribution


class State(Enum):
    """Whether there is anything left to find behind a value."""

    OPEN = "open"
    BUSY = "busy"  # a leaf that only running trials have reached
    CLOSED = "closed"  # every path behind it has been walked to its end


@dataclass(frozen=True)
class Arm:
    """A value of a decision and what is known of it: visits and their summed reward, running trials included."""

    value: float
    visits: float
    total: float
    state: State = State.OPEN


@dataclass
class Tree:
    """Nodes by number; 0 is the root.

    Attributes:
        children: per node, decision name -> value -> node.
        closed: per node, whether every path behind it is known to its end.
        labels: per node, the number of its own (name, value).
        steps: the nodes below the root of all trials, one trial after the other.
        trials: the trials themselves, by number.
    """

    children: list[dict[str, dict[float, int]]] = field(default_factory=lambda: [{}])
    closed: list[bool] = field(default_factory=lambda: [False])
    labels: list[int] = field(default_factory=lambda: [0])
    steps: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    standings: list[Standing] = field(default_factory=list)
    trials: dict[int, FrozenTrial] = field(default_factory=dict)
    by_name: dict[str, dict[float, int]] = field(default_factory=dict)
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    _sizes: dict[tuple[int, str], float] = field(default_factory=dict)
    _ended: set[int] = field(default_factory=set)
    _labelled: int = 1

    def add(self, trial: FrozenTrial, directions: Sequence[StudyDirection]) -> None:
        """Take in a finished trial."""
        node, path = 0, [0]
        for name, value, distribution in decisions(trial):
            self._sizes[node, name] = max(self._sizes.get((node, name), 0.0), size(distribution))
            self.distributions.setdefault(name, distribution)
            siblings = self.children[node].setdefault(name, {})
            if value not in siblings:
                siblings[value] = self._new(name, value)
            node = siblings[value]
            path.append(node)
        self._ended.add(node)
        self.steps.extend(path[1:])
        self.lengths.append(len(path) - 1)
        self.standings.append(standing(trial, directions))
        self.trials[trial.number] = trial
        for node in reversed(path):
            self.closed[node] = self._exhausted(node)

    def _new(self, name: str, value: float) -> int:
        self.children.append({})
        self.closed.append(False)
        values = self.by_name.setdefault(name, {})
        if value not in values:
            values[value] = self._labelled
            self._labelled += 1
        self.labels.append(values[value])
        return len(self.children) - 1

    def _exhausted(self, node: int) -> bool:
        """A trial ended here and none went on; or all values of what comes next are there, and exhausted."""
        if not self.children[node]:
            return node in self._ended
        return all(
            len(values) >= self._sizes[node, name] and all(self.closed[child] for child in values.values())
            for name, values in self.children[node].items()
        )


@dataclass
class Running:
    """A prefix that running trials have reached: how many, and where they went from there."""

    count: int = 0
    children: dict[str, dict[float, Running]] = field(default_factory=dict)


class History:
    """All that a study says about its decisions, at one moment.

    Args:
        tree: of its finished trials.
        running: its other trials that are under way.
        virtual_loss: share by which a running trial falls below the mean of its node; 1 counts it as reward 0.
    """

    def __init__(self, tree: Tree, running: Iterable[FrozenTrial], virtual_loss: float) -> None:
        self.tree, self._virtual_loss = tree, virtual_loss
        worth, self.scale = points(tree.standings)
        lengths = np.array(tree.lengths, dtype=np.int64)
        self.visits, self.totals = self._sums(np.array(tree.steps, dtype=np.int64), np.repeat(worth, lengths))
        self.visits[0], self.totals[0] = len(worth), worth.sum()
        labels = np.array(tree.labels, dtype=np.int64)
        self._by_label = (
            np.bincount(labels[1:], weights=self.visits[1:], minlength=1),
            np.bincount(labels[1:], weights=self.totals[1:], minlength=1),
        )
        self.root = Running()
        self._busy: dict[str, dict[float, int]] = {}
        for trial in running:
            here = self.root
            here.count += 1
            for name, value, _ in decisions(trial):
                here = here.children.setdefault(name, {}).setdefault(value, Running())
                here.count += 1
                busy = self._busy.setdefault(name, {})
                busy[value] = busy.get(value, 0) + 1
        self._overall: dict[str, dict[float, Arm]] = {}

    def _sums(
        self, steps: NDArray[np.int64], worth: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        count = len(self.tree.children)
        visits = np.bincount(steps, minlength=count).astype(np.float64)
        return visits, np.bincount(steps, weights=worth, minlength=count)

    def arms(self, prefix: Iterable[Decision], name: str) -> dict[float, Arm]:
        """The values that trials chose for `name` after exactly these decisions, by value."""
        node: int | None = 0
        here: Running | None = self.root
        for step, value in prefix:
            node = None if node is None else self.tree.children[node].get(step, {}).get(value)
            here = None if here is None else here.children.get(step, {}).get(value)
        known = {} if node is None else self.tree.children[node].get(name, {})
        busy = {} if here is None else here.children.get(name, {})
        return {value: self._arm(value, known.get(value), busy.get(value)) for value in sorted({*known, *busy})}

    def _arm(self, value: float, node: int | None, busy: Running | None) -> Arm:
        visits, total, state = 0.0, 0.0, State.OPEN
        if node is not None:
            visits, total = float(self.visits[node]), float(self.totals[node]) / self.scale
            state = State.CLOSED if self.tree.closed[node] else State.OPEN
        if busy is not None:
            if node is None and not busy.children:
                state = State.BUSY
            visits, total = self._with_running(visits, total, busy.count)
        return Arm(value, visits, total, state)

    def overall(self, name: str) -> dict[float, Arm]:
        """All values that any trial chose for `name`, wherever in the tree, by value."""
        if name not in self._overall:
            visits, totals = self._by_label
            busy = self._busy.get(name, {})
            found: dict[float, Arm] = {}
            labels = self.tree.by_name.get(name, {})
            for value in sorted({*labels, *busy}):
                n, w = 0.0, 0.0
                if value in labels:
                    n, w = float(visits[labels[value]]), float(totals[labels[value]]) / self.scale
                found[value] = Arm(value, *self._with_running(n, w, busy.get(value, 0)))
            self._overall[name] = found
        return self._overall[name]

    def _with_running(self, visits: float, total: float, count: int) -> tuple[float, float]:
        mean = total / visits if visits else 0.0
        return visits + count, total + count * (1.0 - self._virtual_loss) * mean
