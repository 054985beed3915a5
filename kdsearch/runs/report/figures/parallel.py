"""Parallel coordinates of a conditional space: one line a trial, through what it chose in every slot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from kdsearch.runs.report.decisions import ENOUGH, Decision, Table
from kdsearch.runs.report.figures.style import GREY, SCALE, Panel, blank, short, wrapped

COLUMNS, SHARED = 10, 7  # at most so many axes before the score's, and of decisions that all trials took
SHADES, LINES = 10, 400
ABSENT = -0.12  # the height at which a line passes a decision that its trial was not asked
JITTER = 0.035


def parallel(found: Table | None, weights: dict[str, float], metric: str, *, maximise: bool) -> Panel:
    """Slots that vary, the most important first, then the hyper-parameters that most trials were asked; the score last.

    Plotly's own parallel coordinates know neither a missing value nor print; these are plain lines.
    """
    if found is None:
        return Panel("parallel", f"Too few trials to draw: at least {ENOUGH} must have been trained on one rung.")
    columns = _columns(found, weights)
    if not columns:
        return Panel("parallel", "All these trials took the same decisions.")
    ordered = sorted(found.scores, key=lambda number: found.scores[number], reverse=not maximise)[-LINES:]
    score = _axis(Decision(f"{metric} ({found.rung})", found.scores), ordered)
    # What the best were never asked has no place among them.
    columns = [decision for decision in columns if any(number in decision.values for number in ordered)]
    axes = [*(_axis(decision, ordered) for decision in columns), score]
    figure = blank(520, showlegend=False, margin={"l": 40, "r": 60, "t": 76, "b": 12})
    width = 1.0 if len(ordered) > 150 else 1.6
    for shade in range(SHADES):
        # Drawn from worst to best, so that the best lie on top; a line is broken by None between two trials.
        group = ordered[shade * len(ordered) // SHADES : (shade + 1) * len(ordered) // SHADES]
        if group:
            figure.add_trace(_lines(group, axes, _colour(shade / (SHADES - 1)), width, 0.35 + 0.6 * shade / SHADES))
    figure.add_trace(_ends(ordered, score, len(axes) - 1, found))
    # All at once: Plotly checks the whole list again for each one that is added.
    figure.update_layout(
        annotations=[text for place, axis in enumerate(axes) for text in axis.texts(place)],
        shapes=[axis.line(place) for place, axis in enumerate(axes)],
    )
    absent = any(axis.absent for axis in axes)
    figure.update_xaxes(visible=False, range=[-0.15, len(axes) - 0.35])
    figure.update_yaxes(visible=False, range=[ABSENT - 0.04 if absent else -0.06, 1.04])
    shown = f"the best {LINES} of {len(found.scores)}" if len(found.scores) > LINES else f"{len(ordered)}"
    below = ' A line passes below an axis ("–") where its trial was not asked.' if absent else ""
    return Panel(
        "parallel",
        f"Every line is one of {shown} trials, from blue (worst) to orange (best) by rank on rung {found.rung}.{below}",
        figure,
    )


@dataclass(frozen=True)
class _Axis:
    """Where each trial crosses one vertical line, and what is written there."""

    name: str
    heights: Mapping[int, float]
    ticks: tuple[tuple[float, str], ...]
    absent: bool

    def line(self, place: int) -> dict[str, Any]:
        foot = ABSENT if self.absent else 0
        return {"type": "line", "x0": place, "x1": place, "y0": foot, "y1": 1, "line": {"color": GREY, "width": 1}}

    def texts(self, place: int) -> list[dict[str, Any]]:
        above = {"y": 1.02, "yref": "paper", "yanchor": "bottom", "font": {"size": 12}}
        beside = {"xanchor": "left", "xshift": 5, "font": {"size": 11}}
        ticks = [*self.ticks, (ABSENT, "–")] if self.absent else self.ticks
        texts = [{"text": f"<b>{_heading(self.name)}</b>", **above}]
        texts += [{"text": label, "y": height, **beside} for height, label in ticks]
        return [{"x": place, "showarrow": False, **text} for text in texts]


def _columns(found: Table, weights: dict[str, float]) -> list[Decision]:
    shared = sorted((d for d in found.decisions if d.name in weights), key=lambda d: -weights[d.name])
    # Where almost no trial was asked there is almost nothing to see.
    others = [d for d in found.decisions if d.name not in weights and len(d.values) >= max(3, len(found.scores) // 4)]
    return [*shared[:SHARED], *others[: COLUMNS - min(len(shared), SHARED)]]


def _axis(decision: Decision, drawn: list[int]) -> _Axis:
    absent = any(number not in decision.values for number in drawn)
    chosen = {n: decision.values[n] for n in drawn if n in decision.values}
    if decision.numeric:
        scale = math.log if decision.log else float
        values = {n: float(v) for n, v in chosen.items()}
        ends = (min(values.values()), max(values.values()))
        low, high = map(scale, ends)
        heights = {n: (scale(v) - low) / (high - low) if high > low else 0.5 for n, v in values.items()}
        ticks = [(0.0, short(ends[0])), (1.0, short(ends[1]))] if high > low else [(0.5, short(ends[0]))]
        return _Axis(decision.name, heights, tuple(ticks), absent)
    names = sorted(set(map(str, chosen.values())), key=_from_above)
    places = {name: 1 - k / max(len(names) - 1, 1) for k, name in enumerate(names)}
    step = min(JITTER, 0.3 / len(names))
    # Lines through the same choice are spread a little, the same way each time, so that their number shows.
    heights = {n: places[str(v)] + step * (n * 0.618034 % 1 - 0.5) for n, v in chosen.items()}
    return _Axis(decision.name, heights, tuple((places[name], wrapped(name, 30)) for name in names), absent)


def _from_above(name: str) -> tuple[bool, float, str]:
    """Sorts choices: numbers from the largest, words by the alphabet, none at the foot."""
    try:
        return False, -float(name), name
    except ValueError:
        return name == "none", 0.0, name


def _lines(group: list[int], axes: list[_Axis], colour: str, width: float, opacity: float) -> go.Scatter:
    xs: list[float | None] = []
    ys: list[float | None] = []
    for number in group:
        for place, axis in enumerate(axes):
            xs.append(place)
            ys.append(axis.heights.get(number, ABSENT))
        xs.append(None)
        ys.append(None)
    line = {"color": colour, "width": width}
    return go.Scatter(x=xs, y=ys, mode="lines", line=line, opacity=opacity, hoverinfo="skip")


def _ends(ordered: list[int], score: _Axis, place: int, found: Table) -> go.Scatter:
    """Dots on the score's axis that say which trial a line belongs to."""
    return go.Scatter(
        x=[place] * len(ordered),
        y=[score.heights[number] for number in ordered],
        mode="markers",
        marker={"size": 6, "color": list(range(len(ordered))), "colorscale": SCALE},
        text=[f"trial {number}: {found.scores[number]:.4f}" for number in ordered],
        hovertemplate="%{text}<extra></extra>",
    )


def _heading(name: str) -> str:
    """A decision's name over several lines: `student.cnn.channels` is long for its place."""
    parts = name.replace(".", ".\n").replace(" (", "\n(").split("\n")
    return "<br>".join(wrapped(part.replace("_", "_ "), 14).replace("_ ", "_") for part in parts)


def _colour(share: float) -> str:
    """The colour at a share of the scale."""
    return str(sample_colorscale(SCALE, [share])[0])
