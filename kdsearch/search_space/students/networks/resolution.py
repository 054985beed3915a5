"""How far a network may reduce an image."""

from __future__ import annotations

SMALLEST = 2
"""Pixels; a map of this side is not reduced further."""

LARGE = 64
"""Pixels; networks that were designed for photographs of 224 pixels reduce images above this side as they did there."""


def halvings(side: int, most: int) -> int:
    """How often a map of this side is halved, at most `most` times: while it exceeds two pixels."""
    count = 0
    while side > SMALLEST and count < most:
        side, count = -(-side // 2), count + 1
    return count
