"""Several objectives: what each trained trial scores, against what its student costs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kdsearch.runs.ledger import RUNG
from kdsearch.runs.report import outcomes as o
from kdsearch.runs.report.figures.style import BLUE, GREEN, GREY, ORANGE, Panel, blank, wrapped
from kdsearch.runs.sizes import number
from kdsearch.search_space.recipe import Recipe, student_text

AXES = {"parameters": "parameters", "macs": "MACs of one image", "memory": "memory, MiB", "latency": "latency, ms"}
DOMINATED, FRONT, LINE = "dominated", "on the front", "the front"
NONE, KD = "no distillation", "plain KD"


def pareto(
    trials: Sequence[o.Outcome], front: Collection[int], metric: str, minimise: Sequence[str], *, maximise: bool = True
) -> Panel:
    """One plot for each quantity.

    Args:
        front: numbers of the trials on it.
    """
    done = [t for t in trials if t.kind in (o.COMPLETE, o.BASELINE)]
    if not done:
        return Panel("pareto", "No trial has completed yet: there is no front to show.")
    members = [t for t in done if t.trial.number in front]
    stopped = [t for t in trials if t.kind == o.STOPPED and t.score is not None and _cost(t, 0, minimise) is not None]
    small = len(done) + len(stopped) >= 100
    # What stands in front is drawn last.
    groups: list[tuple[str, list[o.Outcome], dict[str, Any]]] = [
        (o.STOPPED, stopped, {"color": GREY, "symbol": "x-thin-open", "size": 5 if small else 7}),
        (
            DOMINATED,
            [t for t in done if t.kind == o.COMPLETE and t.trial.number not in front],
            {"color": GREY, "symbol": "circle-open", "size": 6 if small else 9},
        ),
        (FRONT, [t for t in members if t.kind == o.COMPLETE], {"color": BLUE, "symbol": "circle", "size": 11}),
        (NONE, [t for t in done if t.baseline == "none"], {"color": ORANGE, "symbol": "diamond", "size": 12}),
        (KD, [t for t in done if t.baseline == "kd"], {"color": GREEN, "symbol": "square", "size": 11}),
    ]
    figure = make_subplots(1, len(minimise), horizontal_spacing=0.09, figure=blank(460))
    for k, name in enumerate(minimise):
        cell = {"row": 1, "col": k + 1}
        if len(minimise) == 1:  # with more of them the front is no line in any of the plots
            figure.add_trace(_line(members, maximise), **cell)
        for label, chosen, marker in groups:
            if chosen:
                figure.add_trace(_points(label, chosen, marker, k, minimise, metric), **cell)
        figure.update_xaxes(title_text=AXES[name], **cell)
        costs = [cost for t in (*done, *stopped) if (cost := _cost(t, k, minimise)) is not None]
        if min(costs) > 0 and max(costs) > 8 * min(costs):
            figure.update_xaxes(type="log", dtick="D2", **cell)
        else:
            figure.update_xaxes(nticks=8, **cell)
        if max(costs) >= 1e4:
            figure.update_xaxes(tickformat="~s", **cell)
        figure.update_yaxes(title_text=f"validation {metric}" if k == 0 else None, **cell)
    heights = _heights(done, stopped, maximise)
    figure.update_xaxes(automargin=True, zeroline=False, title_font_size=13)
    figure.update_yaxes(automargin=True, zeroline=False, title_font_size=13, range=heights)
    return Panel("pareto", _caption(done, members, stopped, heights), figure)


def _caption(
    done: Sequence[o.Outcome], members: Sequence[o.Outcome], stopped: Sequence[o.Outcome], heights: Sequence[float]
) -> str:
    text = (
        f"{len(members)} of {len(done)} complete trials are on the front: no other trial is at least as good in every "
        "objective and better in one. Scores are of one seed; a baseline keeps its own mark on the front, too."
    )
    if stopped:
        text += (
            f" {len(stopped)} {'trials that were' if len(stopped) > 1 else 'trial that was'} stopped early "
            f"{'stand' if len(stopped) > 1 else 'stands'} at the score of the last rung, a cheaper training."
        )
        beyond = sum(not heights[0] <= t.score <= heights[1] for t in stopped if t.score is not None)
        text += f" {beyond} of them scored beyond the axis." if beyond else ""
    return text


def _points(
    label: str, chosen: Sequence[o.Outcome], marker: dict[str, Any], k: int, minimise: Sequence[str], metric: str
) -> go.Scatter:
    return go.Scatter(
        x=[_cost(t, k, minimise) for t in chosen],
        y=[t.score for t in chosen],
        mode="markers",
        name=label,
        legendgroup=label,
        showlegend=k == 0,
        marker={**marker, "line": {"width": 1.4, "color": marker["color"]}},
        text=[_hover(t, minimise, metric) for t in chosen],
        hovertemplate="%{text}<extra></extra>",
    )


def _line(members: Sequence[o.Outcome], maximise: bool) -> go.Scatter:
    """The edge of what the front dominates: from each of its points on, nothing better is known at a higher cost."""
    steps = sorted((t.trial.values[1], t.trial.values[0]) for t in members)
    return go.Scatter(
        x=[cost for cost, _ in steps],
        y=[score for _, score in steps],
        mode="lines",
        name=LINE,
        line={"shape": "hv", "color": BLUE, "width": 1.6},
        showlegend=False,
        hoverinfo="skip",
    )


def _cost(item: o.Outcome, k: int, minimise: Sequence[str]) -> float | None:
    """What the trial's student costs: an objective of a complete trial, else what its last trained rung noted."""
    if item.trial.values:
        return float(item.trial.values[k + 1])
    found: dict[str, Any] = item.trial.user_attrs.get(RUNG + str(item.rung), {}).get("size", {})
    return found.get(minimise[k])


def _hover(item: o.Outcome, minimise: Sequence[str], metric: str) -> str:
    lines = [f"<b>trial {item.trial.number}</b>, {item.kind}"]
    assert item.score is not None
    lines.append(f"{metric} {item.score:.4f} at {wrapped(str(item.rung))}")
    costs = {name: _cost(item, k, minimise) for k, name in enumerate(minimise)}
    lines.append(", ".join(f"{name} {number(name, cost)}" for name, cost in costs.items() if cost is not None))
    lines.append(wrapped(student_text(Recipe.from_dict(item.trial.user_attrs["recipe"]))))
    lines.append(wrapped(item.equation))
    return "<br>".join(lines)


def _heights(done: Sequence[o.Outcome], stopped: Sequence[o.Outcome], maximise: bool) -> list[float]:
    """The range in which complete trials lie, and as much below it again for those that were stopped."""
    sign = 1.0 if maximise else -1.0
    scores = [sign * t.score for t in done if t.score is not None]
    low, high = min(scores), max(scores)
    reach = max(high - low, 0.01)
    bottom = max(low - reach, min([low, *(sign * t.score for t in stopped if t.score is not None)]))
    ends = sign * (bottom - 0.06 * reach), sign * (high + 0.06 * reach)
    return sorted(ends)
