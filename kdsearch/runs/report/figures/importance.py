"""Which decisions mattered: fANOVA over what fills the recipe's slots."""

from __future__ import annotations

import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from kdsearch.runs.report.decisions import ENOUGH, Decision, Table
from kdsearch.runs.report.figures.style import BLUE, Panel, blank, wrapped

SHOWN = 12


def importance(found: Table | None, weights: dict[str, float], metric: str) -> Panel:
    """A bar for each decision that every trial of the table took; `weights` are its `importances`."""
    if found is None:
        return Panel("importance", f"Too few trials to tell: at least {ENOUGH} must have been trained on one rung.")
    if not weights:
        return Panel(
            "importance",
            "Nothing to tell apart: the trials took the same decisions, or all scored the same.",
        )
    top = list(weights.items())[:SHOWN]
    figure = blank(90 + 28 * len(top), showlegend=False, margin={"l": 60, "r": 60, "t": 12, "b": 48})
    figure.add_trace(
        go.Bar(
            x=[weight for _, weight in top],
            y=[wrapped(name) for name, _ in top],
            orientation="h",
            marker={"color": BLUE},
            text=[f"{weight:.2f}" for _, weight in top],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", ticksuffix="  ")
    figure.update_xaxes(title_text="share of the variance that is explained", rangemode="tozero")
    few = " Read it as a hint: with so few trials it changes with every new one." if len(found.scores) < 50 else ""
    return Panel(
        "importance",
        f"fANOVA (Hutter et al., 2014) of validation {metric} on rung {found.rung}, over {len(found.scores)} trials: "
        "how much of the differences in score each decision explains by itself. Only decisions that all of these "
        f"trials took are compared; an empty slot counts as a choice.{few}",
        figure,
    )


def importances(found: Table | None) -> dict[str, float]:
    """Share of variance by decision, largest first; empty where scores or decisions do not differ."""
    if found is None:
        return {}
    shared = [d for d in found.decisions if d.values.keys() == found.scores.keys()]
    if not shared or len(set(found.scores.values())) < 2:
        return {}
    # A study of the slots in place of the search's own: there, a branch that a trial did not enter has no parameters,
    # and Optuna compares only those that all trials have.
    study = _quiet_study()
    spaces = {d.name: _distribution(d) for d in shared}
    for number, score in found.scores.items():
        params = {d.name: d.values[number] for d in shared}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=score))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _quiet_study() -> optuna.Study:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # that a study was made is no news to a reader
    try:
        return optuna.create_study()
    finally:
        optuna.logging.set_verbosity(before)


def _distribution(decision: Decision) -> BaseDistribution:
    if not decision.numeric:
        return CategoricalDistribution(sorted(set(map(str, decision.values.values()))))
    values = [float(value) for value in decision.values.values()]
    return FloatDistribution(min(values), max(values), log=decision.log)
