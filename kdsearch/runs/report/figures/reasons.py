"""Failures by reason."""

from __future__ import annotations

import plotly.graph_objects as go

from kdsearch.runs.report.failures import Reason
from kdsearch.runs.report.figures.style import RED, Panel, blank, wrapped


def reasons(found: list[Reason]) -> Panel:
    if not found:
        return Panel("failures", "No trial has failed.")
    figure = blank(80 + 34 * len(found), showlegend=False, margin={"l": 60, "r": 60, "t": 12, "b": 48})
    figure.add_trace(
        go.Bar(
            x=[reason.count for reason in found],
            y=[wrapped(reason.name, 40) for reason in found],
            orientation="h",
            marker={"color": RED},
            text=[str(reason.count) for reason in found],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x}<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", ticksuffix="  ")
    figure.update_xaxes(title_text="trials", rangemode="tozero", tickformat="d")
    total = sum(reason.count for reason in found)
    return Panel(
        "failures", f"{total} in all. A failure costs what was spent until then, and the search goes on.", figure
    )
