"""Objectives to search, each a define-by-run walk with a known best branch."""

from __future__ import annotations

import math

import optuna
from optuna.trial import Trial

LOSSES = ("none", "kd", "dkd", "at", "rkd")
WORTH = dict(zip(LOSSES, (0.0, 0.5, 0.8, 0.4, 0.2), strict=True))


def mixed(trial: Trial) -> float:
    """Conditional, with every kind of decision. The best is close to 2.0, at loss=dkd, deep=True."""
    loss = trial.suggest_categorical("loss", LOSSES)
    value = WORTH[loss]
    if loss != "none":
        weight = trial.suggest_float(f"{loss}.weight", 0.01, 100, log=True)
        value -= 0.1 * abs(math.log10(weight) - 0.5)
    if loss == "dkd":
        value += 0.3 - abs(trial.suggest_float("dkd.alpha", 0, 1, step=0.05) - 0.35)
    deep = trial.suggest_categorical("deep", (False, True))
    if deep:
        value += 0.6 - abs(trial.suggest_int("depth", 2, 40, step=2) - 14) / 40
    width = trial.suggest_int("width", 4, 256, log=True)
    return value + 0.3 - 0.1 * abs(math.log2(width / 32))


def study(sampler: optuna.samplers.BaseSampler, **options: object) -> optuna.Study:
    return optuna.create_study(sampler=sampler, **{"direction": "maximize", **options})  # type: ignore[arg-type]


def proposals(study: optuna.Study) -> list[dict[str, object]]:
    return [trial.params for trial in study.get_trials(deepcopy=False)]
