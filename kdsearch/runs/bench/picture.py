"""Regret curves as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from kdsearch.runs.bench.compare import band, by_cost, curves
from kdsearch.runs.bench.replay import Trace
from kdsearch.runs.report.figures.style import BLUE, GREEN, GREY, ORANGE, RED, VIOLET, blank

COLOURS = (BLUE, ORANGE, GREEN, RED, VIOLET, GREY, "#6b8e23", "#b5651d", "#2f4f6f", "#c71585")
COSTS = 120


def write(path: Path, results: Mapping[str, Sequence[Trace]], title: str) -> Path:
    """Simple regret against trials and against processor seconds, each with its 95 % band, in one page."""
    trials = {label: (np.arange(1, curves(t).shape[1] + 1), curves(t)) for label, t in results.items()}
    ends = [min(trace.seconds[-1] for trace in traces) for traces in results.values()]
    starts = [max(trace.seconds[0] for trace in traces) for traces in results.values()]
    grid = np.geomspace(max(min(starts), 1e-3), max(ends), COSTS)
    costs = {}
    for (label, traces), end in zip(results.items(), ends, strict=True):
        covered = grid[grid <= end]  # beyond it, some replicate has ended already
        costs[label] = (covered, by_cost(traces, covered.tolist()))
    parts = [
        _figure(trials, "trials").to_html(full_html=False, include_plotlyjs=True),
        _figure(costs, "processor seconds (virtual)").to_html(full_html=False, include_plotlyjs=False),
    ]
    path.write_text(
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{title}</title><body style='font-family:system-ui,sans-serif;max-width:1100px;margin:auto'>"
        f"<h1>{title}</h1><p>Mean simple regret of the recipe that would be handed out, measured on the test split "
        "over all seeds of the table; bands are 95 % bootstrap intervals of the mean.</p>"
        f"{parts[0]}{parts[1]}</body></html>"
    )
    return path


def _figure(series: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], axis: str) -> go.Figure:
    figure = blank(480, xaxis={"title": {"text": axis}, "type": "log"}, yaxis={"title": {"text": "simple regret"}})
    figure.update_yaxes(type="log")
    for k, (label, (x, values)) in enumerate(series.items()):
        colour = COLOURS[k % len(COLOURS)]
        low, high = band(values)
        figure.add_trace(
            go.Scatter(
                x=[*x, *x[::-1]],
                y=[*high, *np.maximum(low, 1e-5)[::-1]],
                fill="toself",
                fillcolor=colour,
                opacity=0.15,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=label,
            )
        )
        figure.add_trace(
            go.Scatter(x=x, y=values.mean(0), name=label, line={"color": colour, "width": 2}, legendgroup=label)
        )
    return figure
