"""Several objectives: what each complete trial scores, against what it costs."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from optuna import Study
from plotly.subplots import make_subplots

from kdsearch.runs.report import outcomes as o
from kdsearch.runs.report.figures.style import BLUE, GREY, ORANGE, Panel, blank, wrapped


def pareto(study: Study, trials: Sequence[o.Outcome], metric: str, minimise: Sequence[str]) -> Panel:
    """One plot for each further objective; the front over all of them is marked."""
    done = [t for t in trials if t.kind in (o.COMPLETE, o.BASELINE)]
    if not done:
        return Panel("pareto", "No trial has completed yet: there is no front to show.")
    # Duplicates stand on the front, too, and are left out.
    front = {t.number for t in study.best_trials} & {t.trial.number for t in done}
    figure = make_subplots(1, len(minimise), horizontal_spacing=0.1, figure=blank(420))
    groups = (
        ("dominated", [t for t in done if t.trial.number not in front and t.kind == o.COMPLETE], GREY, "circle-open"),
        ("on the front", [t for t in done if t.trial.number in front and t.kind == o.COMPLETE], BLUE, "circle"),
        ("baseline", [t for t in done if t.kind == o.BASELINE], ORANGE, "diamond"),
    )
    for k, name in enumerate(minimise):
        cell = {"row": 1, "col": k + 1}
        for label, chosen, colour, symbol in groups:
            if not chosen:
                continue
            figure.add_trace(
                go.Scatter(
                    x=[t.trial.values[k + 1] for t in chosen],
                    y=[t.trial.values[0] for t in chosen],
                    mode="markers",
                    name=label,
                    legendgroup=label,
                    showlegend=k == 0,
                    marker={"color": colour, "symbol": symbol, "size": 9 if len(done) < 100 else 6},
                    text=[f"trial {t.trial.number}<br>{wrapped(t.equation)}" for t in chosen],
                    hovertemplate=f"{metric} %{{y:.4f}}, {name} %{{x:.4~s}}<br>%{{text}}<extra></extra>",
                ),
                **cell,
            )
        figure.update_xaxes(title_text=name, tickformat="~s", **cell)
        figure.update_yaxes(title_text=f"validation {metric}", **cell)
    figure.update_xaxes(automargin=True, zeroline=False, title_font_size=13)
    figure.update_yaxes(automargin=True, zeroline=False, title_font_size=13)
    return Panel(
        "pareto",
        f"{len(front)} of {len(done)} complete trials are on the front: no other trial is at least as good in every "
        "objective and better in one. A baseline on the front keeps its diamond.",
        figure,
    )
