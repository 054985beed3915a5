"""The search tree as a picture of its own: an SVG icicle that needs no library and no network."""

from __future__ import annotations

import html

from kdsearch.searchers.mcts.picture import Node

WIDTH, HEIGHT, ROW, TOP = 960, 420, 16, 24
LOW, MIDDLE, HIGH = (58, 126, 191), (179, 186, 194), (224, 138, 30)


def svg(root: Node, depth: int = 6) -> str:
    """Decisions from left to right, height by visits, colour by mean reward (blue low, orange high).

    Branches that would be thinner than a line of text are left out.
    """
    column = WIDTH / (depth + 1)
    font = 'font-family="sans-serif" font-size="11"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + TOP}" {font}>',
        f'<text x="2" y="14" fill="#777">{root.visits} trials; height: visits, colour: mean reward</text>',
    ]
    stack = [(root, 0, float(TOP), float(HEIGHT))]
    while stack:
        node, level, y, height = stack.pop()
        label = "all trials" if node.name is None else f"{node.name.split('.')[-1]}={_short(node.value)}"
        x = level * column
        out.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{column - 1:.1f}" height="{height - 1:.1f}" fill="{_colour(node)}">'
            f"<title>{html.escape(_title(node))}</title></rect>"
        )
        out.append(f'<text x="{x + 4:.1f}" y="{y + height / 2 + 4:.1f}">{html.escape(label[:20])}</text>')
        if level == depth or not node.visits:
            continue
        at = y
        for child in node.children:
            share = height * child.visits / node.visits
            if share >= ROW:
                stack.append((child, level + 1, at, share))
            at += share
    return "\n".join([*out, "</svg>", ""])


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _title(node: Node) -> str:
    what = "all trials" if node.name is None else f"{node.name} = {_short(node.value)}"
    return f"{what}: {node.visits} visits, mean reward {0.0 if node.reward is None else node.reward:.3f}"


def _colour(node: Node) -> str:
    at = 2.0 * (node.reward or 0.0)
    ends = (LOW, MIDDLE) if at < 1 else (MIDDLE, HIGH)
    share = at if at < 1 else at - 1
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(*ends, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"
