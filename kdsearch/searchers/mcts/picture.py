"""The search tree of a study as a plain value: for JSON, for tests, for a picture in a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from kdsearch.searchers.mcts.history import FINISHED, decisions
from kdsearch.searchers.mcts.rewards import points, standing


@dataclass
class Node:
    """A decision in its place. The root has neither name nor value.

    Attributes:
        name, value: the decision.
        visits: finished trials that took it after the same decisions.
        running: trials under way that did.
        reward: mean reward of the finished ones, in [0, 1]; None without any.
        children: what was decided next, in order of name and value.
    """

    name: str | None = None
    value: Any = None
    visits: int = 0
    running: int = 0
    reward: float | None = None
    children: list[Node] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries for JSON. No running trials and no children are left out."""
        out: dict[str, Any] = {"name": self.name, "value": self.value, "visits": self.visits, "reward": self.reward}
        if self.running:
            out["running"] = self.running
        if self.children:
            out["children"] = [child.to_dict() for child in self.children]
        return out


@dataclass
class _Sums:
    node: Node
    points: int = 0
    children: dict[tuple[str, float], _Sums] = field(default_factory=dict)


def tree(study: Study) -> Node:
    """The tree that Monte-Carlo tree search sees in a study, whichever sampler filled it."""
    trials = study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
    finished = [trial for trial in trials if trial.state in FINISHED]
    rows = [standing(trial, study.directions) for trial in finished]
    worth, scale = points(np.array(rows, dtype=np.float64).reshape(len(rows), 1 + len(study.directions)))
    root = _Sums(Node())
    for trial, value in zip(finished, worth.tolist(), strict=True):
        for here in _path(root, trial):
            here.node.visits += 1
            here.points += value
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            for here in _path(root, trial):
                here.node.running += 1
    return _settled(root, scale)


def _path(root: _Sums, trial: FrozenTrial) -> list[_Sums]:
    path = [root]
    for name, value, distribution in decisions(trial):
        siblings = path[-1].children
        if (name, value) not in siblings:
            siblings[name, value] = _Sums(Node(name, distribution.to_external_repr(value)))
        path.append(siblings[name, value])
    return path


def _settled(here: _Sums, scale: int) -> Node:
    node = here.node
    node.reward = here.points / scale / node.visits if node.visits else None
    node.children = [_settled(here.children[at], scale) for at in sorted(here.children)]
    return node
