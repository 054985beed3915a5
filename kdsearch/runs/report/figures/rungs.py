"""The ladder in pictures: how one rung's order agrees with the next one's, and where the time went."""

from __future__ import annotations

import math

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kdsearch.runs.progress import clock
from kdsearch.runs.report.agreement import Agreement, tau_text
from kdsearch.runs.report.figures.style import BLUE, GREY, ORANGE, Panel, blank, wrapped
from kdsearch.runs.report.ladder import Rung

COLUMNS = 4


def agreement(found: list[Agreement]) -> Panel:
    """One scatter plot for each pair of consecutive rungs that some trial has both of."""
    drawn = [pair for pair in found if pair.n >= 2]
    if not drawn:
        return Panel("agreement", "No two trials have passed the same two rungs yet.")
    lines = math.ceil(len(drawn) / COLUMNS)
    figure = make_subplots(
        lines,
        COLUMNS,
        subplot_titles=[_title(pair) for pair in drawn],
        horizontal_spacing=0.07,
        vertical_spacing=0.38 / lines if lines > 1 else 0.0,
        figure=blank(50 + 290 * lines, showlegend=False, margin={"l": 60, "r": 24, "t": 52, "b": 56}),
    )
    for place, pair in enumerate(drawn):
        cell = {"row": place // COLUMNS + 1, "col": place % COLUMNS + 1}
        figure.add_trace(
            go.Scatter(
                x=[point[1] for point in pair.points],
                y=[point[2] for point in pair.points],
                mode="markers",
                marker={"color": ORANGE if pair.poor else BLUE, "size": 7 if pair.n < 100 else 5, "opacity": 0.7},
                text=[f"trial {point[0]}" for point in pair.points],
                hovertemplate="%{text}<br>%{x:.4g} → %{y:.4g}<extra></extra>",
            ),
            **cell,
        )
        below = [point[1] for point in pair.points]
        # Scores of some proxies span orders of magnitude.
        kind = "log" if min(below) > 0 and max(below) > 100 * min(below) else "linear"
        figure.update_xaxes(title={"text": wrapped(pair.lower), "standoff": 6}, type=kind, nticks=4, **cell)
        figure.update_yaxes(title={"text": wrapped(pair.upper), "standoff": 6}, nticks=6, **cell)
    for place in range(len(drawn), lines * COLUMNS):
        cell = {"row": place // COLUMNS + 1, "col": place % COLUMNS + 1}
        figure.update_xaxes(visible=False, **cell)
        figure.update_yaxes(visible=False, **cell)
    figure.update_xaxes(zeroline=False, automargin=True, title_font_size=13)
    figure.update_yaxes(zeroline=False, automargin=True, title_font_size=13)
    for annotation in figure.layout.annotations:
        annotation.update(font={"size": 13})
    return Panel(
        "agreement",
        "Each dot is a trial that has both scores. Only what passes a rung is seen on the next one, so the worst "
        "trials are missing from every plot and τ is lower than it would be over all of them.",
        figure,
    )


def _title(pair: Agreement) -> str:
    tau = f"τ = {tau_text(pair.tau)}"
    return f"{wrapped(pair.lower, 200)} → {wrapped(pair.upper, 200)}<br>{tau}, n = {pair.n}"


def costs(ladder: list[Rung], phases: dict[str, float]) -> Panel:
    """Seconds by rung, the teacher's preparation above them."""
    bars = [("teacher and its data", phases["teacher"], GREY)] if phases.get("teacher") else []
    bars += [(rung.name, rung.seconds, BLUE if rung.share is not None else ORANGE) for rung in ladder if rung.seconds]
    if not bars:
        return Panel("costs", "Nothing has been charged yet.")
    figure = blank(90 + 34 * len(bars), showlegend=False, margin={"l": 60, "r": 110, "t": 12, "b": 48})
    figure.add_trace(
        go.Bar(
            x=[seconds for _, seconds, _ in bars],
            y=[wrapped(name) for name, _, _ in bars],
            orientation="h",
            marker={"color": [colour for _, _, colour in bars]},
            text=[duration(seconds) for _, seconds, _ in bars],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", ticksuffix="  ")
    figure.update_xaxes(title_text="seconds, all trials together", rangemode="tozero")
    return Panel(
        "costs",
        "Time on each rung, added up over trials (several workers spend more of it than the clock shows). Orange is "
        "the finals, grey what had to be there before the first trial.",
        figure,
    )


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    return f"{seconds:.2g} s" if seconds < 10 else clock(seconds)
