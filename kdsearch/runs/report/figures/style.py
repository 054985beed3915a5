"""The common look of the figures. Colours are middle tones that stand out on a light and on a dark page alike."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

BLUE, ORANGE, GREY, RED, GREEN, VIOLET = "#3a7ebf", "#e08a1e", "#8d99a6", "#d1495b", "#2a9d6f", "#8467b5"
SCALE = [[0.0, "#3a7ebf"], [0.5, "#b3bac2"], [1.0, "#e08a1e"]]
"""Low to high through a neutral middle that recedes on either page."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Panel:
    """One figure of the report with its caption; without a figure, the caption says why there is none."""

    key: str
    caption: str
    figure: go.Figure | None = None


def blank(height: int, **layout: Any) -> go.Figure:
    """An empty figure; page colours are laid over it where it is shown."""
    figure = go.Figure()
    figure.update_layout(template="none", **_LAYOUT)
    figure.update_layout(height=height, **layout)
    figure.update_xaxes(automargin=True, title_font_size=13)
    figure.update_yaxes(automargin=True, title_font_size=13, title_standoff=14)
    return figure


_LAYOUT: dict[str, Any] = {
    "margin": {"l": 60, "r": 24, "t": 40, "b": 48},
    "font": {"family": FONT, "size": 13},
    "hovermode": "closest",
    "hoverlabel": {"align": "left"},
    "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
}


def wrapped(text: str, width: int = 72) -> str:
    """Text for a hover box or a label: escaped, because Plotly reads a little HTML, and broken into lines."""
    lines = textwrap.wrap(text, width, break_on_hyphens=False) or [""]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def short(value: object) -> str:
    """A decision's value as a label."""
    return f"{value:.3g}" if isinstance(value, float) else html.escape(str(value), quote=False)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which about this share lies."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
