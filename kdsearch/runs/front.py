"""The Pareto front of a search with several objectives."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from kdsearch.runs.ledger import Ledger


def front(ledger: Ledger) -> list[FrozenTrial]:
    """Complete trials that no other is at least as good as in every objective and better in one; best metric first.

    A recipe that was proposed twice is there once. Empty for a search with one objective.
    """
    study = ledger.study
    if len(study.directions) == 1:
        return []
    signs = [1.0 if d == optuna.study.StudyDirection.MAXIMIZE else -1.0 for d in study.directions]
    done = [t for t in ledger.trials(TrialState.COMPLETE) if "duplicate_of" not in t.user_attrs]
    scores = {t.number: tuple(s * v for s, v in zip(signs, t.values, strict=True)) for t in done}
    found = [t for t in done if not any(_dominates(other, scores[t.number]) for other in scores.values())]
    return sorted(found, key=lambda t: (scores[t.number], -t.number), reverse=True)


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))
