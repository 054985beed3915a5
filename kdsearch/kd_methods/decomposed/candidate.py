"""A candidate of KD-Zero: three transforms in a row on both sides, then a distance.

Needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Generator, Tensor

from kdsearch.kd_methods.decomposed import names as known
from kdsearch.kd_methods.decomposed.distances import DISTANCES
from kdsearch.kd_methods.decomposed.shapes import Shape, chained, compared
from kdsearch.kd_methods.decomposed.transforms import Draws, chain
from kdsearch.registry import nearest


def candidate(
    student: Tensor, teacher: Tensor, names: Sequence[str], distance: str, generator: Generator | None = None
) -> Tensor:
    """The distance of both sides after the chain; both sides share what a transform draws.

    Raises:
        ValueError: an unknown transform or distance, or one that does not take what it is given.
    """
    for kind, asked, offered in (("transform", names, known.TRANSFORMS), ("distance", (distance,), known.DISTANCES)):
        for name in asked:
            if name not in offered:
                raise ValueError(f"unknown {kind} {name!r}; {nearest(name, offered)}")
    ends = reached(names, distance, tuple(student.shape)), reached(names, distance, tuple(teacher.shape))
    if ends[0] != ends[1]:
        raise ValueError(f"the chain gives {list(ends[0])} of the student and {list(ends[1])} of the teacher")
    draws = Draws(generator)
    s = chain(student, names, draws)
    draws.rewind()
    return DISTANCES[distance](s, chain(teacher, names, draws))


def reached(names: Sequence[str], distance: str, shape: Shape) -> Shape:
    """The shape that the distance compares.

    Raises:
        ValueError: a transform that does not take what the one before it gives.
    """
    return compared(distance, chained(names, shape))


def rule(names: Sequence[str], distance: str) -> tuple[partial[Shape], partial[Tensor]]:
    """What `joining` asks for: the shape that is compared, and the measure to be tried."""
    return partial(reached, names, distance), partial(_tried, names=names, distance=distance)


def _tried(student: Tensor, teacher: Tensor, *, names: Sequence[str], distance: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if distance == "kl_raw" and float(chain(teacher, names, Draws(generator)).min()) < 0:
        raise ValueError("reads rows as distributions by kl_raw, and its chain gives numbers below zero")
    return candidate(student, teacher, names, distance, generator)
