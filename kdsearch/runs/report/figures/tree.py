"""The tree of decisions that Monte-Carlo tree search has grown, cut back to what can be read."""

from __future__ import annotations

import math
from collections.abc import Iterator

import plotly.graph_objects as go

from kdsearch.runs.report.figures.style import SCALE, Panel, blank, short
from kdsearch.searchers import Node

DEPTH, HEIGHT, ROW = 6, 740, 19  # a decision that would be lower than a row, in pixels, is left out


def tree(root: Node) -> Panel:
    """An icicle from left to right: height is visits, colour the mean reward. A click on a decision goes into it."""
    if not root.visits:
        return Panel("tree", "The tree is empty: no trial has finished yet.")
    least = max(1, math.ceil(root.visits * ROW / HEIGHT))
    ids, parents, labels, sizes, colours, hover = [], [], [], [], [], []
    for key, parent, node in _kept(root, least):
        label = "all trials" if node.name is None else f"{'.'.join(node.name.split('.')[-2:])}={short(node.value)}"
        full = label if node.name is None else f"{node.name} = {short(node.value)}"
        reward = "none yet" if node.reward is None else f"{node.reward:.3f}"
        busy = f"<br>running now: {node.running}" if node.running else ""
        ids.append(key)
        parents.append(parent)
        labels.append(label)
        sizes.append(node.visits)
        colours.append(node.reward or 0.0)
        hover.append(f"<b>{full}</b><br>visits: {node.visits}<br>mean reward: {reward}{busy}")
    figure = blank(max(240, min(HEIGHT, 40 + 40 * root.visits)), margin={"l": 8, "r": 8, "t": 8, "b": 8})
    # Labels that would have to shrink below this are left to the hover box.
    figure.update_layout(uniformtext={"minsize": 11, "mode": "hide"})
    figure.add_trace(
        go.Icicle(
            ids=ids,
            parents=parents,
            labels=labels,
            values=sizes,
            branchvalues="total",
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
            textinfo="label",
            sort=False,
            textfont={"size": 12},
            tiling={"orientation": "h", "pad": 1},
            pathbar={"visible": False},
            marker={
                "colors": colours,
                "colorscale": SCALE,
                "cmin": min(colours),
                "cmax": max(max(colours), min(colours) + 1e-6),
                "colorbar": {"title": {"text": "mean<br>reward", "font": {"size": 13}}, "thickness": 12},
                "line": {"width": 0.5},
            },
        )
    )
    cut = f", at least {least} visits" if least > 1 else ""
    return Panel(
        "tree",
        f"Decisions from left to right in the order they were taken (the first {DEPTH}{cut}). Height is "
        "visits; colour is the mean reward: a trial's rank among all, 1 for the best. Gaps are branches "
        "that were cut from the picture, or decisions that came later. Click a decision to go into it.",
        figure,
    )


def _kept(root: Node, least: int) -> Iterator[tuple[str, str, Node]]:
    """(id, parent's id, node) of what is drawn."""
    stack: list[tuple[str, str, Node, int]] = [("root", "", root, 0)]
    while stack:
        key, parent, node, depth = stack.pop()
        yield key, parent, node
        if depth < DEPTH:
            children = [(f"{key}/{k}", child) for k, child in enumerate(node.children) if child.visits >= least]
            stack += [(name, key, child, depth + 1) for name, child in reversed(children)]
