"""Every trial's score in the order of the search, against the baselines and the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from kdsearch.runs.address import without_password
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
            figure.add_traces(_points(chosen, kind, mark, size, frame, metric))
    _add_best(figure, trials, maximise)
    ends = [min(t.trial.number for t in trials) - 0.5, max(t.trial.number for t in trials) + 0.5]
    dashes = {name: "dash" if k else "dot" for k, name in enumerate(lines)}
    for name, value in lines.items():
        figure.add_trace(_line(f"{name} {value:.4f}", ends, value, ORANGE, dashes[name]))
    if teacher is not None:
        figure.add_trace(_line(f"teacher {teacher:.4f}", ends, teacher, VIOLET, "dashdot"))
    low, high = sorted((frame.good, frame.floor(2.6)))
    figure.update_yaxes(title_text=f"validation {metric}", range=[low, high])
    figure.update_xaxes(range=[ends[0] - 0.3, ends[1] + 0.3])
    return Panel("history", _caption(trials, frame, maximise), figure)


def _caption(trials: Sequence[o.Outcome], frame: _Frame, maximise: bool) -> str:
    counts = {kind: sum(t.kind == kind for t in trials) for kind in MARKS}
    said = ", ".join(f"{count} {o.plural(kind, count)}" for kind, count in counts.items() if count)
    text = [f"{len(trials)} proposals: {said}."]
    if any(t.kind == o.STOPPED and t.score is not None for t in trials):
        text.append(
            "A trial that was stopped stands at the score of the last rung that trained it, a cheaper training than a "
            "complete trial's."
        )
    edge = "lower" if maximise else "upper"
    if any(t.score is not None and not frame.inside(t.score) for t in trials):
        text.append(f"Triangles on the {edge} edge scored beyond the axis.")
    if any(t.score is None for t in trials):
        text.append(f"On the line outside the {edge} edge is what was never trained.")
    return " ".join(text)


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
        # Baselines and teacher are what the figure is for: they are never cut off.
        bottom = min(bottom, top - 1e-3, *(sign * v for v in extra))
        self._sign, self._bottom, self._unit = sign, bottom, 0.03 * (top - bottom)
        self.good = sign * (top + 2 * self._unit)

    def inside(self, score: float) -> bool:
        return self._sign * score >= self._bottom - 1e-12

    def floor(self, steps: float) -> float:
        """A place beyond the range, so many small steps below its edge."""
        return self._sign * (self._bottom - steps * self._unit)


def _points(
    chosen: list[o.Outcome], kind: str, mark: dict[str, Any], size: int, frame: _Frame, metric: str
) -> list[go.Scatter]:
    """The trials of one kind: those within the axis, those beyond it, those without a score."""
    down, colour = frame.floor(1) < frame.good, mark["color"]
    parts: list[tuple[list[o.Outcome], str, float | None]] = [
        ([t for t in chosen if t.score is not None and frame.inside(t.score)], mark["symbol"], None),
        ([t for t in chosen if t.score is None], mark["symbol"], frame.floor(1.8)),
        (
            [t for t in chosen if t.score is not None and not frame.inside(t.score)],
            "triangle-down-open" if down else "triangle-up-open",
            frame.floor(0.9),
        ),
    ]
    drawn = [part for part in parts if part[0]]
    return [
        go.Scatter(
            x=[item.trial.number for item in items],
            y=[item.score if height is None else height for item in items],
            mode="markers",
            name=kind,
            legendgroup=kind,
            showlegend=items is drawn[0][0],
            marker={"symbol": symbol, "size": size, "color": colour, "line": {"width": 1.2, "color": colour}},
            text=[_hover(item, metric) for item in items],
            hovertemplate="%{text}<extra></extra>",
        )
        for items, symbol, height in drawn
    ]


def _hover(item: o.Outcome, metric: str) -> str:
    lines = [f"<b>trial {item.trial.number}</b>, {item.kind}"]
    if item.score is not None:
        lines.append(f"{metric} {item.score:.4f} at {wrapped(str(item.rung))}")
    failure = item.trial.user_attrs.get("failure")
    if failure:
        lines.append(wrapped(without_password(f"{failure['reason']}: {failure['message']}")[:240]))
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
