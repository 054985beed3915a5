"""Which rungs may stop trials: found out on a run's own first trials, and kept on its study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import optuna
from optuna.trial import TrialState

from kdsearch.runs.config import RunConfig
from kdsearch.runs.ledger import RUNG, judged
from kdsearch.runs.pruning import BORROWED, CALIBRATION

CONFIDENT = 1.2816  # one-sided 90 %
FIELLER = 0.437  # variance of atanh(tau), times n - 4: Fieller, Hartley, Pearson, Biometrika 1957


@dataclass(frozen=True)
class Verdict:
    """Whether a rung may stop trials.

    Attributes:
        tau: Kendall's tau-b between its scores and the full training's; None where all are tied.
        lower: the lower end of its one-sided 90 % interval.
        n: trials that it is from.
    """

    rung: str
    tau: float | None
    lower: float
    n: int
    stops: bool


def calibrate(study: optuna.Study, config: RunConfig) -> str | None:
    """Once enough trials have passed all rungs: settle on the study which rungs may stop trials. Says it in a line.

    Does nothing without `fidelity.calibrate`, too early, and a second time.
    """
    count = config.fidelity.calibrate
    if not count or config.pruner.name == "none" or CALIBRATION in study.user_attrs or len(config.fidelity.rungs) < 2:
        return None
    *cheap, last = [rung.name for rung in config.fidelity.rungs]
    rows: list[list[float]] = []
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for trial in sorted(done, key=lambda t: (t.datetime_complete is None, t.datetime_complete, t.number)):
        if any(RUNG + name not in trial.user_attrs for name in (*cheap, last)):
            continue
        found = [judged(trial, name) for name in (*cheap, last)]
        if None not in found and not BORROWED & trial.user_attrs.keys():
            rows.append(found)
    if len(rows) < count:
        return None
    columns = list(zip(*rows[:count], strict=True))
    verdicts = [
        verdict(name, column, columns[-1], config.fidelity.agreement)
        for name, column in zip(cheap, columns[:-1], strict=True)
    ]
    study.set_user_attr(CALIBRATION, [asdict(verdict) for verdict in verdicts])
    parts = [
        f"{v.rung} {'may stop trials' if v.stops else 'stops nothing'} "
        f"(Kendall's tau {'undefined' if v.tau is None else f'{v.tau:.2f}, at least {v.lower:.2f}'})"
        for v in verdicts
    ]
    return f"calibrated on {count} trials: {', '.join(parts)}"


def verdict(rung: str, scores: Sequence[float], full: Sequence[float], threshold: float) -> Verdict:
    """A rung's verdict from its scores and the full training's of the same trials."""
    from scipy.stats import kendalltau

    n = len(scores)
    tau = float(kendalltau(scores, full).statistic)
    if not math.isfinite(tau):
        return Verdict(rung, None, -1.0, n, False)
    bounded = min(max(tau, -0.999), 0.999)
    lower = math.tanh(math.atanh(bounded) - CONFIDENT * math.sqrt(FIELLER / (n - 4)))
    return Verdict(rung, tau, lower, n, lower > threshold)
