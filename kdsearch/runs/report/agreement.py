"""How well each rung of the ladder ranked what came after it: Kendall's tau between consecutive rungs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from kdsearch.runs.config import COMBINED
from kdsearch.runs.ledger import RUNG, judged
from kdsearch.runs.pruning import CALIBRATION
from kdsearch.runs.report.outcomes import PROXIES, rung_score

if TYPE_CHECKING:
    from kdsearch.runs.run import Run

POOR, GOOD, ENOUGH = 0.3, 0.6, 6


@dataclass(frozen=True)
class Agreement:
    """Two rungs beside each other.

    Attributes:
        lower, upper: names of the cheaper and the dearer rung; a proxy goes by its own name.
        points: (trial number, score below, score above) of all trials that have both.
        tau: Kendall's tau-b, positive where the rungs agree; None for fewer than two trials or where all are tied.
        verdict: in words.
        stops: whether the lower one may stop trials. Most proxies are only recorded.
    """

    lower: str
    upper: str
    points: tuple[tuple[int, float, float], ...]
    tau: float | None
    verdict: str
    stops: bool = True

    @property
    def n(self) -> int:
        return len(self.points)

    @property
    def poor(self) -> bool:
        """Whether to warn: enough trials, and an order that the next rung does not bear out."""
        return self.n >= ENOUGH and self.tau is not None and self.tau < POOR


def agreements(run: Run) -> list[Agreement]:
    """Every proxy against the first trained rung, each trained rung against the next, the last against the finals.

    Duplicates are left out, baselines and published defaults are in. Only trials that passed a rung have a score at the
    next one, so that the worst are missing and tau is lower than it would be over all of them.
    """
    trials = [t for t in run.search_ledger.trials() if "duplicate_of" not in t.user_attrs]
    names = [rung.name for rung in run.config.fidelity.rungs]
    # A metric that is minimised and a proxy that is maximised agree where they run against each other.
    sign = 1 if run.search_ledger.primary == "maximize" else -1
    first = {t.number: s for t in trials if (s := rung_score(t, names[0])) is not None}
    found = [_compare(proxy, names[0], scores, first, sign) for proxy, scores in _proxies(trials).items()]
    columns = [(name, _judged(trials, name)) for name in names]
    columns.append(("finals", _finals(run, trials)))
    for (lower, below), (upper, above) in pairwise(columns):
        found.append(_compare(lower, upper, below, above, 1))
    verdicts = run.search_ledger.study.user_attrs.get(CALIBRATION, ())
    silent = {verdict["rung"] for verdict in verdicts if not verdict["stops"]}
    may = {*names, run.config.proxies.prune_by} - silent
    return [pair if pair.lower in may else replace(pair, stops=False) for pair in found]


def _judged(trials: list[FrozenTrial], name: str) -> dict[int, float]:
    """What a rung was judged by: its score, or what the config names instead."""
    passed = [t for t in trials if RUNG + name in t.user_attrs]
    return {t.number: float(value) for t in passed if (value := judged(t, name)) is not None}


def _proxies(trials: list[FrozenTrial]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for trial in trials:
        for proxy, score in trial.user_attrs.get(RUNG + PROXIES, {}).get("metrics", {}).items():
            if score is not None:
                found.setdefault(proxy, {})[trial.number] = score
        # What the combiner said before the trial was trained, of students that were known by then.
        if COMBINED in trial.user_attrs:
            found.setdefault(COMBINED, {})[trial.number] = trial.user_attrs[COMBINED]["prediction"]
    return dict(sorted(found.items()))


def combiner(run: Run) -> str | None:
    """What the combiner of proxies has shown by cross-validation, in a sentence; None where the run has none."""
    found = run.study.user_attrs.get(COMBINED)
    if found is None:
        return None
    lower, bar = (tau_text(found[key]) for key in ("lower", "bar"))
    stopped = sum(t.user_attrs.get(COMBINED, {}).get("stops", False) for t in run.search_ledger.trials())
    shown = f"Proxies combined: cross-validated Kendall's τ {tau_text(found['tau'])} on {found['n']} students"
    beside = f"at least {lower} with 99 % confidence, the parameter count has {bar}"
    if found["earned"]:
        verdict = f"it has earned to prune, and {stopped} proposals were predicted too low"
    else:
        verdict = "it has not earned to prune"
        verdict += f"; {stopped} proposals were stopped while it had" if stopped else ", and prunes nothing"
    of = f" It reads {', '.join(found['of'])}." if found["of"] else ""
    return f"{shown} ({beside}): {verdict}.{of}"


def _finals(run: Run, trials: list[FrozenTrial]) -> dict[int, float]:
    """Mean over the finals' seeds, by the number of the search trial with the same recipe."""
    scores: dict[str, list[float]] = {}
    for final in run.finals_ledger.trials(TrialState.COMPLETE):
        scores.setdefault(final.user_attrs["hash"], []).append(final.values[0])
    return {t.number: fmean(scores[h]) for t in trials if (h := t.user_attrs.get("hash")) in scores}


def _compare(lower: str, upper: str, below: dict[int, float], above: dict[int, float], sign: int) -> Agreement:
    points = tuple((number, below[number], above[number]) for number in sorted(below.keys() & above.keys()))
    tau = kendall([p[1] for p in points], [sign * p[2] for p in points])
    return Agreement(lower, upper, points, tau, _verdict(tau, len(points)))


def kendall(a: list[float], b: list[float]) -> float | None:
    """Kendall's tau-b of two columns; None for fewer than two rows or a column of one value."""
    if len(a) < 2:
        return None
    from scipy.stats import kendalltau

    tau = float(kendalltau(a, b).statistic)
    return tau if math.isfinite(tau) else None


def tau_text(tau: float | None) -> str:
    """Two digits, and no minus before zero."""
    return "undefined" if tau is None else f"{round(tau, 2) + 0.0:.2f}"


def _verdict(tau: float | None, n: int) -> str:
    if n < 2:
        return "nothing to compare yet"
    if tau is None:
        return "no order to compare: one side gives every trial the same score"
    if n < ENOUGH:
        return f"{n} trials are too few to say"
    if tau >= GOOD:
        return "good: the order holds"
    return "fair: the order holds roughly" if tau >= POOR else "poor: the order hardly holds"


def warnings(found: list[Agreement]) -> list[str]:
    """What poor agreement means for the search, in sentences."""
    poor = [pair for pair in found if pair.poor]
    texts = [
        f"{pair.lower} hardly ranks trials as {pair.upper} does (Kendall's tau {tau_text(pair.tau)} over {pair.n} "
        f"trials): what {pair.lower} stops may be no worse than what it lets through. Make that rung dearer, or do "
        "without it."
        for pair in poor
        if pair.stops
    ]
    idle = [f"{pair.lower} ({tau_text(pair.tau)})" for pair in poor if not pair.stops]
    if idle:
        texts.append(f"Recorded only, and poor judges here: {', '.join(idle)}. They stop nothing in this run.")
    return texts
