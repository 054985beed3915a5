"""Chains of assistants, written as a list of falling sizes. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kdsearch.parameters import TextChoices

SMALLEST, LARGEST = 0.01, 0.99


def sizes(path: str) -> list[float]:
    """The numbers of such a list: 0 is the student's size, 1 the teacher's, on the scale of log parameters.

    Raises:
        ValueError: no falling list of sizes between the two.
    """
    try:
        found = [float(size) for size in path.split("-")]
    except ValueError:
        found = []
    falling = all(a > b for a, b in pairwise(found))
    if not found or not falling or not all(SMALLEST <= size <= LARGEST for size in found):
        raise ValueError(
            f"must list falling sizes from {LARGEST} to {SMALLEST} joined by '-', such as '0.67-0.33', not {path!r}"
        )
    return found


@dataclass(frozen=True)
class Chain(TextChoices):
    """Any falling list of sizes; a search draws from `searched`."""

    def check(self, value: Any) -> str:
        return "-".join(str(size) for size in sizes(super().check(value)))


def Sizes(default: str, *, searched: Sequence[str], doc: str = "") -> Any:
    """A hyper-parameter that lists the assistants' sizes, the largest first."""
    return Chain(default, tuple(searched), tuple(searched), doc)
