"""Failures by reason, with what to look at first."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial

from kdsearch.runs.address import without_password

if TYPE_CHECKING:
    from kdsearch.runs.run import Run

EXAMPLES = 5


@dataclass(frozen=True)
class Example:
    """A message as one trial of several left it.

    Attributes:
        where: "trial 7", or "finals 3" for a seed of the finals.
        count: how many trials left this message, numbers aside.
    """

    where: str
    equation: str
    message: str
    trace: str
    count: int


@dataclass
class Reason:
    """All failures of one reason."""

    name: str
    count: int = 0
    examples: list[Example] = field(default_factory=list)


def failures(run: Run) -> list[Reason]:
    """Reasons by number of failures, most frequent first; duplicates of a failure are not counted again."""
    found: dict[str, list[tuple[str, FrozenTrial]]] = {}
    for study, ledger in (("trial", run.search_ledger), ("finals", run.finals_ledger)):
        for trial in ledger.trials():
            if "failure" in trial.user_attrs and "duplicate_of" not in trial.user_attrs:
                found.setdefault(trial.user_attrs["failure"]["reason"], []).append((f"{study} {trial.number}", trial))
    reasons = [Reason(name, len(trials), _examples(trials)) for name, trials in found.items()]
    return sorted(reasons, key=lambda reason: (-reason.count, reason.name))


def _examples(trials: list[tuple[str, FrozenTrial]]) -> list[Example]:
    """One example of every kind of message, the most frequent first. Messages that differ in numbers are one kind."""
    kinds = [re.sub(r"\d[\d,.e+-]*", "#", trial.user_attrs["failure"]["message"]) for _, trial in trials]
    examples = []
    for kind, count in Counter(kinds).most_common(EXAMPLES):
        where, trial = trials[kinds.index(kind)]
        failure = trial.user_attrs["failure"]
        equation = str(trial.user_attrs.get("equation", ""))
        examples.append(
            Example(
                where, equation, without_password(failure["message"]), without_password(failure.get("trace", "")), count
            )
        )
    return examples
