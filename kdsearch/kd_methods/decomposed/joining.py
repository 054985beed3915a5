"""Unequal stages and vectors brought together, as far as a comparison needs it, and comparisons that measure nothing
refused.

Needs torch; imported inside `bind`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdsearch.kd_methods.adapters import conv_projector, linear_projector, resize, to_dtype_of, to_map
from kdsearch.kd_methods.decomposed.shapes import Shape
from kdsearch.kd_methods.numerics import widen
from kdsearch.kd_methods.signals import StageSpec

After = Callable[[Shape], Shape]
"""What is compared of a shape: it has to be the same on both sides. Raises ValueError for a shape it cannot take."""

Measure = Callable[[Tensor, Tensor], Tensor]

BATCH, CHANNELS, SIDE, WIDTH = 4, 8, 16, 64  # of what a comparison is tried on, at most
FLAT = 1e-10  # gradient, beside the value, below which a comparison says the same of every student


@dataclass(frozen=True)
class Way:
    """How a pair is brought together: both at the smaller of their sizes, the student at the teacher's width."""

    resized: bool
    connected: bool

    def __call__(self, student: Shape, teacher: Shape) -> tuple[Shape, Shape]:
        if self.connected:
            student = (student[0], teacher[1], *student[2:])
        if self.resized:
            size = tuple(min(sides) for sides in zip(student[2:], teacher[2:], strict=True))
            student, teacher = (*student[:2], *size), (*teacher[:2], *size)
        return student, teacher


WAYS = (Way(False, False), Way(True, False), Way(False, True), Way(True, True))
"""In order: what needs less changes less."""


def way(student: Shape, teacher: Shape, after: After) -> Way:
    """The first way that makes what is compared equal in shape: of these shapes, and not by the chance of their sizes.

    Raises:
        ValueError: there is none, or nothing can be compared of such shapes.
    """
    seen: list[tuple[Shape, Shape]] = []
    for found in WAYS:
        pair = found(student, teacher)
        seen.append((after(pair[0]), after(pair[1])))
        small = found(_cut(student), _cut(teacher))
        if seen[-1][0] == seen[-1][1] and after(small[0]) == after(small[1]):
            return found
    raise ValueError(f"compares shapes {list(seen[-1][0][1:])} and {list(seen[-1][1][1:])}, which cannot be made equal")


def _cut(shape: Shape) -> Shape:
    """A shape small enough to try a comparison on."""
    if len(shape) == 2:
        return BATCH, min(shape[1], WIDTH)
    return (BATCH, min(shape[1], CHANNELS), *(min(side, SIDE) for side in shape[2:]))


def tried(measure: Measure, student: Shape, teacher: Shape) -> None:
    """Compare random numbers of these shapes.

    Raises:
        ValueError: the value is not finite, or its gradient is zero: it says the same of every student.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(shape: Shape) -> Tensor:
        return torch.randn(*_cut(shape), generator=generator, dtype=torch.float64)

    t = draw(teacher)
    s = draw(student).requires_grad_()
    with torch.enable_grad():
        value = measure(s, t)
        (gradient,) = torch.autograd.grad(value, s, allow_unused=True) if value.requires_grad else (None,)
    seen = "×".join(str(n) for n in student[1:])
    if not torch.isfinite(value) or (gradient is not None and not torch.isfinite(gradient).all()):
        raise ValueError(f"is not finite for ordinary numbers of {seen}")
    if gradient is None or float(gradient.abs().max()) <= FLAT * (1 + abs(float(value.detach()))):
        raise ValueError(f"has the same value for every student whose output is {seen}: nothing is left to compare")


class JoinedStages(nn.Module):
    """Maps of the paired stages, brought together as each pair needs it.

    Args:
        after: what is compared of a map [B, C, H, W].
        measure: the loss of one pair, tried on random numbers.

    Raises:
        ValueError: a pair cannot be compared, or its comparison says the same of every student.
    """

    def __init__(
        self, student: Sequence[StageSpec], teacher: Sequence[StageSpec], after: After, measure: Measure
    ) -> None:
        super().__init__()
        self.student, self.teacher = tuple(student), tuple(teacher)
        self.ways: list[Way] = []
        connectors: list[nn.Module] = []
        for own, theirs in zip(self.student, self.teacher, strict=True):
            s, t = (BATCH, own.channels, *own.size), (BATCH, theirs.channels, *theirs.size)
            found = way(s, t, after)
            tried(measure, *found(s, t))
            self.ways.append(found)
            connect = found.connected and own.channels != theirs.channels
            connectors.append(conv_projector(own.channels, theirs.channels) if connect else nn.Identity())
        self.connectors = nn.ModuleList(connectors)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        pairs = []
        stages = zip(self.student, self.teacher, self.ways, self.connectors, strict=True)
        for x, y, (own, theirs, found, connector) in zip(student, teacher, stages, strict=True):
            s, t = widen(to_map(x, own)), widen(to_map(y, theirs))  # before anything is averaged
            if found.resized:
                size = (min(s.shape[-2], t.shape[-2]), min(s.shape[-1], t.shape[-1]))
                s, t = resize(s, size), resize(t, size)
            weight = next(connector.parameters(), None)
            pairs.append((s if weight is None else connector(to_dtype_of(weight, s)), t))
        return pairs


class JoinedVectors(nn.Module):
    """A student's vectors at the teacher's width, by a linear layer, where the comparison needs it.

    Raises:
        ValueError: as `JoinedStages`.
    """

    def __init__(self, student: int, teacher: int, after: After, measure: Measure) -> None:
        super().__init__()
        s, t = (BATCH, student), (BATCH, teacher)
        found = way(s, t, after)
        tried(measure, *found(s, t))
        connect = found.connected and student != teacher
        self.connector = linear_projector(student, teacher) if connect else nn.Identity()

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        weight = next(self.connector.parameters(), None)
        return (student if weight is None else self.connector(to_dtype_of(weight, student))), teacher
