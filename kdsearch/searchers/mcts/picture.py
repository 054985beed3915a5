"""The search tree of a study as a plain value: for JSON, for tests, for a picture in a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from optuna.study import Study
from optuna.trial import TrialState

from kdsearch.searchers.mcts.history import FINISHED, History, Running, Tree


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

    name: str | None
    value: Any
    visits: int
    running: int
    reward: float | None
    children: list[Node] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries for JSON; empty lists of children are left out."""
        out: dict[str, Any] = {"name": self.name, "value": self.value, "visits": self.visits, "reward": self.reward}
        if self.running:
            out["running"] = self.running
        if self.children:
            out["children"] = [child.to_dict() for child in self.children]
        return out


def tree(study: Study) -> Node:
    """The tree that Monte-Carlo tree search sees in a study, whichever sampler filled it."""
    trials = study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
    grown = Tree()
    for trial in trials:
        if trial.state in FINISHED:
            grown.add(trial, study.directions)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    for trial in running:
        grown.distributions.update({n: d for n, d in trial.distributions.items() if n not in grown.distributions})
    history = History(grown, running, virtual_loss=1.0)
    return _node(history, None, None, 0, history.root)


def _node(history: History, name: str | None, value: Any, number: int | None, busy: Running | None) -> Node:
    visits = 0 if number is None else int(history.visits[number])
    total = 0.0 if number is None else float(history.totals[number]) / history.scale
    known = {} if number is None else history.tree.children[number]
    live = {} if busy is None else busy.children
    node = Node(name, value, visits, 0 if busy is None else busy.count, total / visits if visits else None)
    for child in sorted({*known, *live}):
        numbers, runs = known.get(child, {}), live.get(child, {})
        distribution = history.tree.distributions[child]
        for at in sorted({*numbers, *runs}):
            external = distribution.to_external_repr(at)
            node.children.append(_node(history, child, external, numbers.get(at), runs.get(at)))
    return node
