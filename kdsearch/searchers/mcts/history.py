"""The tree of decisions, rebuilt from a study's trials and from nothing else.

A node is the prefix of decisions a trial has taken so far, in the order of its suggest calls. Its structure grows with
every finished trial; visits and rewards are summed afresh whenever a trial asks, since every new score moves the ranks.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdsearch.searchers.mcts import MCTS
from kdsearch.searchers.mcts.backup import BACKUPS, shrunk
from kdsearch.searchers.mcts.domain import key, size
from kdsearch.searchers.mcts.evidence import Arm, Evidence, State
from kdsearch.searchers.mcts.rewards import points, standing

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
"""FAIL is the machinery's fault and says nothing about a decision."""

Decision = tuple[str, float]
NOWHERE = -1


def decisions(trial: FrozenTrial) -> Iterator[tuple[str, float, BaseDistribution]]:
    """(name, value as a float, distribution) in the order of the suggest calls."""
    for name, value in trial.params.items():
        distribution = trial.distributions[name]
        yield name, key(distribution, value), distribution


@dataclass
class Tree:
    """The structure: nodes by number, 0 is the root, and the way every finished trial took.

    Attributes:
        children: per node, decision name -> value -> node.
        closed: per node, whether every path behind it has been walked to its end.
        levels: per depth, the node of each trial after that many decisions and one; NOWHERE for a shorter trial.
        takers: per decision name, the trials (by position) that took it, and the values they took.
        standings: per trial, (step, values...), one after the other.
        trials: the trials themselves, by number, in order of position.
        domains: per decision name, its distribution in the trial of the highest number that took it.
    """

    children: list[dict[str, dict[float, int]]] = field(default_factory=lambda: [{}])
    closed: list[bool] = field(default_factory=lambda: [False])
    levels: list[array[int]] = field(default_factory=list)
    takers: dict[str, tuple[array[int], array[float]]] = field(default_factory=dict)
    standings: array[float] = field(default_factory=lambda: array("d"))
    trials: dict[int, FrozenTrial] = field(default_factory=dict)
    domains: dict[str, tuple[int, BaseDistribution]] = field(default_factory=dict)
    _latest: dict[Decision, int] = field(default_factory=dict)  # the highest number of a trial that took it
    _sole: dict[tuple[str, str], float | None] = field(default_factory=dict)  # of two decisions, the later first
    _sizes: dict[tuple[int, str], float] = field(default_factory=dict)
    _ended: set[int] = field(default_factory=set)

    def add(self, trial: FrozenTrial, directions: Sequence[StudyDirection]) -> None:
        """Take in a finished trial."""
        position = len(self.trials)
        path, taken = [0], dict[str, float]()
        for name, value, distribution in decisions(trial):
            node = path[-1]
            for earlier, chosen in taken.items():
                sole = self._sole.setdefault((name, earlier), chosen)
                if sole != chosen:
                    self._sole[name, earlier] = None
            taken[name] = value
            self._latest[name, value] = max(self._latest.get((name, value), -1), trial.number)
            self._sizes[node, name] = max(self._sizes.get((node, name), 0.0), size(distribution))
            siblings = self.children[node].setdefault(name, {})
            if value not in siblings:
                siblings[value] = len(self.children)
                self.children.append({})
                self.closed.append(False)
            path.append(siblings[value])
            positions, values = self.takers.setdefault(name, (array("q"), array("d")))
            positions.append(position)
            values.append(value)
            if name not in self.domains or self.domains[name][0] < trial.number:
                self.domains[name] = (trial.number, distribution)
        while len(self.levels) < len(path) - 1:
            self.levels.append(array("q", [NOWHERE] * position))
        for depth, level in enumerate(self.levels, start=1):
            level.append(path[depth] if depth < len(path) else NOWHERE)
        self.standings.extend(standing(trial, directions))
        self.trials[trial.number] = trial
        self._ended.add(path[-1])
        for node in reversed(path):
            self.closed[node] = self._exhausted(node)

    def own(self, name: str, value: float) -> list[str]:
        """The decisions right behind a value that no other value of `name` leads to, by the latest trial with it."""
        trial = self.trials.get(self._latest.get((name, value), -1))
        if trial is None or not np.ptp(self.takers[name][1]):
            return []
        names = list(trial.params)
        behind = names[names.index(name) + 1 :]
        return list(takewhile(lambda later: self._sole.get((later, name)) == value, behind))

    def _exhausted(self, node: int) -> bool:
        """A trial ended here and none went on; or all values of what comes next are there, and exhausted."""
        if not self.children[node]:
            return node in self._ended
        return all(
            len(values) >= self._sizes[node, name] and all(self.closed[child] for child in values.values())
            for name, values in self.children[node].items()
        )


class History:
    """All that a study says about its decisions, at one moment.

    Args:
        tree: of its finished trials.
        running: its other trials that are under way.
        options: of the search; `virtual_loss`, `reward`, `emphasis`, `backup`, `sharpness` and `shrinkage` are read.
    """

    def __init__(self, tree: Tree, running: Iterable[FrozenTrial], options: MCTS) -> None:
        self.tree, self.options = tree, options
        self.size = rows = len(tree.trials)  # of this moment: the tree goes on growing
        width = len(tree.standings) // rows if rows else 2
        standings = np.array(tree.standings, dtype=np.float64).reshape(rows, width)
        self._worth, self._scale = points(standings, options.reward, options.emphasis)
        self.levels = [np.array(level, dtype=np.int64) for level in tree.levels]
        self.running = [
            [(name, value) for name, value, _ in decisions(trial)]
            for trial in sorted(running, key=lambda trial: trial.number)
        ]

    @property
    def rewards(self) -> NDArray[np.float64]:
        """Of the finished trials, in order of position."""
        return self._worth / self._scale

    def values_of(self, nodes: Sequence[int], depth: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Visits and values of some nodes at a depth, the root's children being at 0: rewards, backed up and shrunk."""
        if not nodes:
            return np.zeros(0), np.zeros(0)
        order = {node: k for k, node in enumerate(nodes)}
        through = np.flatnonzero(np.isin(self.levels[depth], list(nodes)))
        group = np.array([order[node] for node in self.levels[depth][through].tolist()], dtype=np.int64)
        worth = self._worth[through]
        visits = np.bincount(group, minlength=len(nodes)).astype(np.float64)
        sums = np.bincount(group, weights=worth, minlength=len(nodes))
        average = float(worth.sum()) / self._scale / len(worth)
        if self.options.backup == "mean":
            values = sums / self._scale / visits
        else:
            rule, sharpness = BACKUPS[self.options.backup], self.options.sharpness
            values = np.array([rule(np.sort(worth[group == k]) / self._scale, sharpness) for k in range(len(nodes))])
        return visits, shrunk(values, visits, average, self.options.shrinkage)

    def arms(self, prefix: Sequence[Decision], name: str) -> dict[float, Arm]:
        """The values that trials chose for `name` after exactly these decisions, by value, in order."""
        known, depth = self.known(prefix, name), len(prefix)
        busy: dict[float, list[bool]] = {}  # per running trial there: whether it has gone on
        for run in self.running:
            if len(run) > depth and run[depth][0] == name and run[:depth] == prefix:
                busy.setdefault(run[depth][1], []).append(len(run) > depth + 1)
        visits, values = self.values_of(list(known.values()), depth)
        found = {value: (n, n * v) for value, n, v in zip(known, visits.tolist(), values.tolist(), strict=True)}
        arms = {}
        for value in sorted({*known, *busy}):
            (n, w), runs = found.get(value, (0.0, 0.0)), busy.get(value, [])
            state = State.OPEN
            if value not in known and not any(runs):
                state = State.BUSY
            elif value in known and self.tree.closed[known[value]]:
                state = State.CLOSED
            lost = (1.0 - self.options.virtual_loss) * (w / n if n else 0.0)
            arms[value] = Arm(value, n + len(runs), w + len(runs) * lost, state)
        return arms

    def evidence(self, prefix: Sequence[Decision], name: str, enough: float) -> Evidence:
        """What the values of `name` were worth in trials that began like this one.

        Those that took all of `prefix` count, where at least `enough` of them decided `name`; else those that took all
        but its last decision, and so on; in the end all trials. Source of the rule: Cazenave, Generalized rapid action
        value estimation, IJCAI 2015.
        """
        empty = (array("q"), array("d"))
        columns = self.tree.takers.get(name, empty)
        positions, values = np.array(columns[0], dtype=np.int64), np.array(columns[1], dtype=np.float64)
        way = self.way(prefix)
        for depth in range(len(prefix), -1, -1):
            runs = [v for run in self.running if run[:depth] == prefix[:depth] for n, v in run if n == name]
            if depth == 0:
                alike = np.ones(len(positions), dtype=bool)
            elif depth < len(way):
                alike = self.levels[depth - 1][positions] == way[depth]
            else:
                alike = np.zeros(len(positions), dtype=bool)
            if np.count_nonzero(alike) + len(runs) >= enough:
                break
        worth = self._worth[positions[alike]]
        return Evidence.of(values[alike], worth, self._scale, runs, 1.0 - self.options.virtual_loss)

    def known(self, prefix: Sequence[Decision], name: str) -> dict[float, int]:
        """The nodes of the values that finished trials chose for `name` after exactly these decisions."""
        way = self.way(prefix)
        return self.tree.children[way[-1]].get(name, {}) if len(way) > len(prefix) else {}

    def way(self, prefix: Sequence[Decision]) -> list[int]:
        """The nodes of a prefix from the root on, as far as finished trials went."""
        way = [0]
        for name, value in prefix:
            child = self.tree.children[way[-1]].get(name, {}).get(value)
            if child is None:
                break
            way.append(child)
        return way
