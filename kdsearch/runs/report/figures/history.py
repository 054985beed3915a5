"""Every trial's score in the order of the search, against the baselines and the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from kdsearch.runs.report import outcomes as o
from kdsearch.runs.report.figures.style import BLUE, GREEN, GREY, ORANGE, RED, VIOLET, Panel, blank, quantile, wrapped

MARKS: dict[str, dict[str, Any]] = {
    o.STOPPED: {"color": GREY, "symbol": "circle-open"},
    o.DUPLICATE: {"color": GREY, "symbol": "line-ns-open"},
    o.FAILED: {"color": RED, "symbol": "x"},
    o.RUNNING: {"color": GREEN, "symbol": "circle-open-dot"},
    o.COMPLETE: {"color": BLUE, "symbol": "circle"},
    o.BASELINE: {"color": ORANGE, "symbol": "diamond"},
}


def history(
    trials: Sequence[o.Outcome], metric: str, *, maximise: bool, lines: dict[str, float], teacher: float | None
) -> Panel:
    """The course of the search.

    Args:
        lines: baselines' scores by name, drawn across.
        teacher: its own score.
    """
    if not trials:
        return Panel("history", "No trial has been proposed yet.")
    figure = blank(430, xaxis={"title": {"text": "trial"}, "rangemode": "tozero"})
    frame = _Frame(trials, [*lines.values(), *([teacher] if teacher is not None else [])], maximise)
    size = 9 if len(trials) < 60 else 7 if len(trials) < 300 else 5
    for kind, mark in MARKS.items():
        chosen = [t for t in trials if t.kind == kind]
        if chosen:
            figure.add_trace(_points(chosen, kind, mark, size, frame, metric))
    _add_best(figure, trials, maximise)
    ends = [min(t.trial.number for t in trials) - 0.5, max(t.trial.number for t in trials) + 0.5]
    dashes = {name: "dash" if k else "dot" for k, name in enumerate(lines)}
    for name, value in lines.items():
        figure.add_trace(_line(f"{name} {value:.4f}", ends, value, ORANGE, dashes[name]))
    if teacher is not None:
        figure.add_trace(_line(f"teacher {teacher:.4f}", ends, teacher, VIOLET, "dashdot"))
    low, high = sorted((frame.good, frame.floor(2.6)))
    figure.update_yaxes(title_text=f"validation {metric}", range=[low, high])
    figure.update_xaxes(range=[ends[0] - 0.5, ends[1] + 0.5])
    return Panel("history", _caption(trials, maximise), figure)


def _caption(trials: Sequence[o.Outcome], maximise: bool) -> str:
    counts = {kind: sum(t.kind == kind for t in trials) for kind in MARKS}
    said = ", ".join(f"{count} {_plural(kind, count)}" for kind, count in counts.items() if count)
    edge = "lower" if maximise else "upper"
    return (
        f"{len(trials)} proposals: {said}. A trial that was stopped stands at the score of the last rung that trained "
        f"it, a cheaper training than a complete trial's. Crosses and ticks at the {edge} edge were never trained; "
        "triangles there scored beyond the axis."
    )


def _plural(kind: str, count: int) -> str:
    return f"{kind}s" if count > 1 and kind in (o.BASELINE, o.DUPLICATE) else kind


class _Frame:
    """What the score axis shows: the range in which complete trials differ, worse ones gathered at its edge."""

    def __init__(self, trials: Sequence[o.Outcome], extra: list[float], maximise: bool) -> None:
        sign = 1.0 if maximise else -1.0
        finished = [sign * t.score for t in trials if t.score is not None and t.kind in (o.COMPLETE, o.BASELINE)]
        known = finished or [sign * t.score for t in trials if t.score is not None]
        values = [*known, *(sign * v for v in extra)] or [0.0, 1.0]
        top = max(values)
        low = min(quantile(values, 0.1), top - 1e-3)
        bottom = max(low - 0.5 * (top - low), min([*values, *(sign * t.score for t in trials if t.score is not None)]))
        bottom = min(bottom, top - 1e-3)
        self._sign, self._bottom, self._unit = sign, bottom, 0.03 * (top - bottom)
        self.good = sign * (top + 2 * self._unit)

    def inside(self, score: float) -> bool:
        return self._sign * score >= self._bottom - 1e-12

    def floor(self, steps: float) -> float:
        """A place beyond the range, so many small steps below its edge."""
        return self._sign * (self._bottom - steps * self._unit)


def _points(
    chosen: list[o.Outcome], kind: str, mark: dict[str, Any], size: int, frame: _Frame, metric: str
) -> go.Scatter:
    heights, symbols = [], []
    for item in chosen:
        if item.score is None:
            heights.append(frame.floor(1.8))
            symbols.append(mark["symbol"])
        elif frame.inside(item.score):
            heights.append(item.score)
            symbols.append(mark["symbol"])
        else:
            heights.append(frame.floor(0.9))
            symbols.append("triangle-down-open" if frame.floor(1) < frame.good else "triangle-up-open")
    return go.Scatter(
        x=[item.trial.number for item in chosen],
        y=heights,
        mode="markers",
        name=kind,
        marker={"color": mark["color"], "symbol": symbols, "size": size, "line": {"width": 1.2}},
        text=[_hover(item, metric) for item in chosen],
        hovertemplate="%{text}<extra></extra>",
    )


def _hover(item: o.Outcome, metric: str) -> str:
    lines = [f"<b>trial {item.trial.number}</b>, {item.kind}"]
    if item.score is not None:
        lines.append(f"{metric} {item.score:.4f} at {wrapped(str(item.rung))}")
    failure = item.trial.user_attrs.get("failure")
    if failure:
        lines.append(wrapped(o.public(f"{failure['reason']}: {failure['message']}")[:240]))
    elif item.kind == o.STOPPED and "pruned_at" in item.trial.user_attrs:
        lines.append(f"stopped after {wrapped(str(item.trial.user_attrs['pruned_at']))}")
    if "duplicate_of" in item.trial.user_attrs:
        lines.append(f"the same recipe as trial {item.trial.user_attrs['duplicate_of']}")
    lines.append(wrapped(item.equation))
    return "<br>".join(lines)


def _add_best(figure: go.Figure, trials: Sequence[o.Outcome], maximise: bool) -> None:
    done = [(t.trial.number, t.score) for t in trials if t.kind == o.COMPLETE and t.score is not None]
    if not done:
        return
    best = list(accumulate((score for _, score in done), max if maximise else min))
    last = max(t.trial.number for t in trials)
    figure.add_trace(
        go.Scatter(
            x=[*(number for number, _ in done), last],
            y=[*best, best[-1]],
            mode="lines",
            name=f"best so far {best[-1]:.4f}",
            line={"shape": "hv", "color": BLUE, "width": 2},
            hoverinfo="skip",
        )
    )


def _line(name: str, ends: list[float], value: float, colour: str, dash: str) -> go.Scatter:
    # A trace and no shape: names of lines that lie close together stay readable in the legend.
    style = {"color": colour, "width": 1.6, "dash": dash}
    return go.Scatter(x=ends, y=[value, value], mode="lines", name=name, line=style, hoverinfo="skip")
