"""How each trial of the search ended, and the one number that a picture can show for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from kdsearch.runs.ledger import RUNG, Ledger

COMPLETE, BASELINE, STOPPED, FAILED, DUPLICATE, RUNNING = (
    "complete",
    "baseline",
    "stopped early",
    "failed",
    "duplicate",
    "running",
)
KINDS = (COMPLETE, BASELINE, STOPPED, FAILED, DUPLICATE, RUNNING)
PROXIES, FINAL = "proxies", "final"


@dataclass(frozen=True)
class Outcome:
    """One trial as the report speaks of it.

    Attributes:
        kind: one of the words above. A baseline that has not completed counts as what became of it.
        score: validation score of the highest rung it was trained on; None where it was not trained.
        rung: the name of that rung.
    """

    trial: FrozenTrial
    kind: str
    score: float | None
    rung: str | None

    @property
    def equation(self) -> str:
        return str(self.trial.user_attrs.get("equation", "not proposed yet"))

    @property
    def baseline(self) -> str | None:
        """ "none" or "kd" for a baseline of the search."""
        origin = str(self.trial.user_attrs.get("origin"))
        return origin.removeprefix("baseline:") if origin.startswith("baseline:") else None


def outcomes(ledger: Ledger, rungs: list[str]) -> list[Outcome]:
    """Every trial that has been proposed, by number. `rungs` are the trained rungs, cheapest first."""
    return [_outcome(trial, rungs) for trial in ledger.trials() if trial.state != TrialState.WAITING]


def _outcome(trial: FrozenTrial, rungs: list[str]) -> Outcome:
    score, reached = None, None
    for name in rungs:
        value = rung_score(trial, name)
        if value is not None:
            score, reached = value, name
    attributes = trial.user_attrs
    if "duplicate_of" in attributes:
        kind = DUPLICATE
    elif trial.state == TrialState.RUNNING:
        kind = RUNNING
    elif trial.state == TrialState.COMPLETE:
        score, reached = trial.values[0], rungs[-1] if rungs else None
        kind = BASELINE if str(attributes.get("origin")).startswith("baseline:") else COMPLETE
    elif "failure" in attributes or trial.state == TrialState.FAIL:
        kind = FAILED
    else:
        kind = STOPPED
    return Outcome(trial, kind, score, reached)


def rung_score(trial: FrozenTrial, name: str) -> float | None:
    """The score a rung gave a trial; None where it did not get there or the score was not finite."""
    found: dict[str, Any] = trial.user_attrs.get(RUNG + name, {})
    return found.get("score")


def plural(kind: str, count: int) -> str:
    """A kind as it follows its number."""
    return f"{kind}s" if count > 1 and kind in (BASELINE, DUPLICATE) else kind
