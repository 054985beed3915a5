"""The finals as a forest plot: means, confidence intervals and every seed."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from kdsearch.runs.report.figures.style import BLUE, ORANGE, Panel, blank, wrapped

SPLITS = (("validation", BLUE, -0.14), ("test", ORANGE, 0.14))


def finalists(rows: list[dict[str, Any]], metric: str) -> Panel:
    """Rows of `finals_rows`, top to bottom."""
    if not rows:
        return Panel("finalists", "The finals have not begun.")
    figure = blank(120 + 52 * len(rows))
    for split, colour, shift in SPLITS:
        here = [(place, row[split], row) for place, row in enumerate(rows) if row[split]]
        if not here:
            continue
        figure.add_trace(
            go.Scatter(
                x=[score for _, scores, _ in here for score in scores["scores"]],
                y=[place + shift for place, scores, _ in here for _ in scores["scores"]],
                mode="markers",
                marker={"color": colour, "size": 6, "opacity": 0.45},
                name=f"{split}, one seed",
                hovertemplate="%{x:.4f}<extra></extra>",
            )
        )
        figure.add_trace(
            go.Scatter(
                x=[scores["mean"] for _, scores, _ in here],
                y=[place + shift for place, _, _ in here],
                error_x={
                    "type": "data",
                    "array": [scores["half_width"] or 0.0 for _, scores, _ in here],
                    "thickness": 2,
                    "width": 5,
                },
                mode="markers",
                marker={"color": colour, "size": 10, "symbol": "diamond"},
                name=f"{split}, mean and 95 % interval",
                text=[wrapped(row["equation"]) for _, _, row in here],
                hovertemplate="%{x:.4f}<br>%{text}<extra></extra>",
            )
        )
    labels = [row["label"] for row in rows]
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=labels, range=[len(rows) - 0.5, -0.5], zeroline=False)
    figure.update_xaxes(title_text=metric, zeroline=False, range=_range(rows))
    return Panel(
        "finalists",
        "Every recipe under the same seeds. Intervals are of each mean alone; the paired differences in the table are "
        "narrower, because a seed that is hard for one recipe tends to be hard for all. An interval without an end "
        "runs beyond the axis.",
        figure,
    )


def _range(rows: list[dict[str, Any]]) -> list[float]:
    """Wide enough for every score, and for intervals that are not far wider than all scores together."""
    splits = [row[split] for row in rows for split, _, _ in SPLITS if row[split]]
    scores = [score for split in splits for score in split["scores"]]
    low, high = min(scores), max(scores)
    reach = 0.5 * max(high - low, 1e-3)
    lows = [split["mean"] - (split["half_width"] or 0.0) for split in splits]
    highs = [split["mean"] + (split["half_width"] or 0.0) for split in splits]
    low, high = max(min(*lows, low), low - reach), min(max(*highs, high), high + reach)
    return [low - 0.04 * (high - low + 1e-3), high + 0.04 * (high - low + 1e-3)]
