"""Accuracy against cost where a student is a sum of networks, of which easy samples do not need all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from kdsearch.runs.ledger import RUNG
from kdsearch.runs.report.figures.style import BLUE, GREY, ORANGE, VIOLET, Panel, blank

if TYPE_CHECKING:
    from kdsearch.runs.run import Run

COLOURS = (BLUE, ORANGE, VIOLET, GREY)


def adaptive(run: Run, rows: list[dict[str, Any]]) -> Panel | None:
    """A line a recipe of the finals, of its first seed; None where no student can leave networks out."""
    labels = {row["hash"]: row["label"] for row in rows}
    lines: dict[str, list[list[float]]] = {}
    for trial in run.finals_ledger.trials():
        curve = trial.user_attrs.get(RUNG + "final", {}).get("tables", {}).get("adaptive")
        if curve:
            lines.setdefault(labels.get(trial.user_attrs["hash"], trial.user_attrs["hash"]), curve)
    if not lines:
        return None
    figure = blank(380)
    for (label, curve), colour in zip(lines.items(), COLOURS * len(lines), strict=False):
        figure.add_trace(
            go.Scatter(
                x=[cost for _, _, cost in curve],
                y=[accuracy for _, accuracy, _ in curve],
                mode="lines+markers",
                name=label,
                line={"color": colour, "shape": "hv"},
                marker={"size": 4},
                text=[f"threshold {threshold:.3g}" for threshold, _, _ in curve],
                hovertemplate="%{x:,.0f} MACs a sample, accuracy %{y:.4f}<br>%{text}<extra></extra>",
            )
        )
    figure.update_xaxes(title_text="MACs a sample, on average", zeroline=False)
    figure.update_yaxes(title_text="validation accuracy", zeroline=False)
    return Panel(
        "adaptive",
        "A sample leaves after the first network whose answer has an entropy below the threshold. At the right end "
        "every sample goes through all networks, at the left end through the first alone. One seed of each recipe.",
        figure,
    )
