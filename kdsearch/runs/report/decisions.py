"""The decisions of a search as a table: what every trial chose, and how it scored on one rung."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import CategoricalDistribution

from kdsearch.kd_methods import LOSS_SLOTS
from kdsearch.runs.report import outcomes as o
from kdsearch.search_space.recipe import NEUTRAL

ENOUGH, WISHED = 8, 24
"""Fewer rows than the first say nothing; a rung with fewer than the second gives way to a cheaper one with more."""

Value = float | int | str | bool
FILLED = ("student", "student.transform", *LOSS_SLOTS, *NEUTRAL)


@dataclass(frozen=True)
class Decision:
    """One column.

    Attributes:
        values: by trial number; a trial that was not asked is missing.
        log: whether it is searched on a logarithmic scale.
    """

    name: str
    values: Mapping[int, Value]
    log: bool = False

    @property
    def numeric(self) -> bool:
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values.values())

    @property
    def varies(self) -> bool:
        return len(set(map(str, self.values.values()))) > 1


@dataclass(frozen=True)
class Table:
    """Trials by decisions.

    Attributes:
        rung: where the scores are from.
        scores: by trial number.
        decisions: those that vary, slots of the recipe first.
    """

    rung: str
    scores: Mapping[int, float]
    decisions: tuple[Decision, ...]


def table(trials: Sequence[o.Outcome], rungs: Sequence[str]) -> Table | None:
    """The decisions of all trials that were scored on one rung; None where no rung has scored enough.

    It is the highest rung with enough trials to learn from. On the top rung alone stand the few that were never
    stopped, and what separates the good from the bad does not show in them.
    """
    rows = [t for t in trials if t.kind != o.DUPLICATE and "recipe" in t.trial.user_attrs]
    columns: list[tuple[str, dict[int, float]]] = []
    for name in reversed(rungs):
        scored = {t.trial.number: s for t in rows if (s := o.rung_score(t.trial, name)) is not None}
        columns.append((name, scored))
    rung, scores = next(
        ((name, found) for name, found in columns if len(found) >= WISHED),
        max(columns, key=lambda column: len(column[1])),
    )
    if len(scores) < ENOUGH:
        return None
    chosen = [t for t in rows if t.trial.number in scores]
    return Table(rung, scores, tuple(decision for decision in _decisions(chosen) if decision.varies))


def _decisions(rows: Sequence[o.Outcome]) -> list[Decision]:
    slots = [
        Decision(name, {t.trial.number: _slot(t.trial.user_attrs["recipe"], name) for t in rows}) for name in FILLED
    ]
    values: dict[str, dict[int, Value]] = {}
    logs: dict[str, bool] = {}
    for item in rows:
        for name, distribution in item.trial.distributions.items():
            if name in FILLED:
                continue
            value = item.trial.params[name]
            categorical = isinstance(distribution, CategoricalDistribution)
            values.setdefault(name, {})[item.trial.number] = str(value) if categorical else value
            logs[name] = bool(getattr(distribution, "log", False))
    # What most trials were asked tells most.
    asked = sorted(values, key=lambda name: -len(values[name]))
    return [*slots, *(Decision(name, values[name], logs[name]) for name in asked)]


def _slot(recipe: Mapping[str, Any], name: str) -> str:
    """What fills a slot. Read off the recipe: a question that was not asked has its answer there, too."""
    entry = recipe.get("transform" if name == "student.transform" else name)
    return "none" if entry is None else str(entry.get("family") or entry.get("method"))
