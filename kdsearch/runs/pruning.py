"""What stops a trial between rungs: successive halving, with a margin for what a rung's score cannot tell, and only at
rungs that have shown that they rank trials as the full training does.

All of it is read off the study: resuming, several workers and Ray need no state of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdsearch.runs.config import RunConfig

CALIBRATION = "calibration"
"""The study's attribute with every cheap rung's verdict (`calibration.Verdict`), once there is one."""
BORROWED = frozenset({"duplicate_of", "taken_from", "recreated"})
"""Attributes of trials whose results another trial has found."""
LATEST = 200  # completed trials that a noise is measured by


def pruner(config: RunConfig) -> optuna.pruners.BasePruner:
    """The pruner by its name in the config; calibrated first, where the config says so."""
    found = _named(config)
    if not config.fidelity.calibrate or isinstance(found, optuna.pruners.NopPruner):
        return found
    return Calibrated(found, steps(config))


def steps(config: RunConfig) -> dict[str, int]:
    """The step at which each rung reports: powers of the reduction, as successive halving has them."""
    return {rung.name: config.pruner.reduction**k for k, rung in enumerate(config.fidelity.rungs)}


def _named(config: RunConfig) -> optuna.pruners.BasePruner:
    given = config.pruner
    if given.name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=given.reduction)
    if given.name == "noisy":
        return NoisyHalving(given.reduction, margin=given.margin, startup=given.startup)
    if given.name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=given.startup)
    return optuna.pruners.NopPruner()


class NoisyHalving(optuna.pruners.BasePruner):
    """Asynchronous successive halving that also keeps whoever is not surely behind.

    At a rung the best 1 / `reduction` go on, and with them all trials that lie no further behind the last of these than
    `margin` times the rung's noise. Until `startup` trials have completed the noise is unknown and the rule is plain
    successive halving; what that lets through goes on in any case.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020, for the halving; the margin is
    our own.
    """

    def __init__(self, reduction: int, *, margin: float = 1.0, startup: int = 5) -> None:
        self.reduction, self.margin, self.startup = reduction, margin, startup
        self._halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=reduction)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        if not self._halving.prune(study, trial):
            return False
        step = trial.last_step
        if step is None or math.isnan(trial.intermediate_values[step]):
            return True
        noise = self.noise(study, step)
        return noise is None or self._behind(study, trial, step) > self.margin * noise

    def noise(self, study: optuna.Study, step: int) -> float | None:
        """Standard deviation of the difference of two scores at this step that mean the same in the end.

        From the completed trials: final values are regressed on the scores, so that it does not matter which scores
        were let through; what is left over is the noise, in units of the score by the slope. Slope and spread are
        medians (Theil and Sen's slope, the median absolute deviation), for failing recipes lie far out. Infinite where
        scores say nothing; None while fewer than `startup` trials have completed.
        """
        done = [
            (trial.intermediate_values[step], trial.value)
            for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if step in trial.intermediate_values and trial.value is not None and not BORROWED & trial.user_attrs.keys()
        ]
        if len(done) < max(self.startup, 3):
            return None
        found = np.asarray(done[-LATEST:], dtype=np.float64)
        return residual(found[:, 0], found[:, 1])

    def _behind(self, study: optuna.Study, trial: FrozenTrial, step: int) -> float:
        """How far a trial lies behind the last one that halving keeps, among those that halving knows."""
        key = f"completed_rung_{round(math.log(step, self.reduction))}"
        others = study.get_trials(deepcopy=False)
        scores = [t.system_attrs[key] for t in others if key in t.system_attrs and t.number != trial.number]
        scores.append(trial.intermediate_values[step])
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        ranked = sorted((sign * score for score in scores), reverse=True)
        return ranked[max(1, len(ranked) // self.reduction) - 1] - sign * scores[-1]


def residual(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The noise of the difference of two x, as far as y is what they mean: sqrt(2) times the residual over the slope.

    Infinite where the median slope is not positive.
    """
    i, j = np.triu_indices(len(x), 1)
    apart = x[i] != x[j]
    if not apart.any():
        return math.inf
    slope = float(np.median((y[j] - y[i])[apart] / (x[j] - x[i])[apart]))
    if slope <= 0:
        return math.inf
    rest = y - slope * x
    return math.sqrt(2) * 1.4826 * float(np.median(np.abs(rest - np.median(rest)))) / slope


class Calibrated(optuna.pruners.BasePruner):
    """Another pruner, whose word counts only at rungs that the study's calibration found worth it; before it, nowhere.

    The other pruner is asked all the same: it notes what it has seen.

    Args:
        steps: at which each rung reports, by name.
    """

    def __init__(self, inner: optuna.pruners.BasePruner, steps: Mapping[str, int]) -> None:
        self.inner, self.steps = inner, dict(steps)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        if not self.inner.prune(study, trial):
            return False
        may = {self.steps[verdict["rung"]] for verdict in study.user_attrs.get(CALIBRATION, ()) if verdict["stops"]}
        return trial.last_step in may
