"""A study as NNI would have lived through it: trials handed out and results that came in, in the order of the clock."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from optuna.trial import FrozenTrial, TrialState


class Event(NamedTuple):
    """A trial that was handed out, or one that ended (`told`)."""

    trial: FrozenTrial
    told: bool


def events(trials: Iterable[FrozenTrial]) -> list[Event]:
    """Beginnings and ends by the study's own clock, which is the same for every worker and after every resume.

    What happened at the same moment goes by number, and a trial begins before it ends.
    """
    found: list[tuple[datetime, int, bool, FrozenTrial]] = []
    for trial in trials:
        found.append((trial.datetime_start or datetime.min, trial.number, False, trial))
        if trial.state.is_finished():
            found.append((trial.datetime_complete or datetime.max, trial.number, True, trial))
    return [Event(trial, told) for _, _, told, trial in sorted(found, key=lambda event: event[:3])]


def result(trial: FrozenTrial) -> float | None:
    """The number NNI is told: the value, or the last report of a trial stopped early; None for a failure.

    As NNI does it: an assessor's stop hands the last intermediate result to the tuner as the final one. A trial that
    was pruned without a report has failed, and so has one whose number is not finite.
    """
    value: float | None = None
    if trial.state == TrialState.COMPLETE:
        value = trial.value
    elif trial.state == TrialState.PRUNED and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    return value if value is not None and math.isfinite(value) else None
