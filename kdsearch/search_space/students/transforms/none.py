"""No transform."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.search_space.students.transforms import StudentTransform, register

if TYPE_CHECKING:
    from torch import nn


@register
class NoTransform(StudentTransform):
    """The student as its family builds it."""

    name = "none"
    title = "No transform"
    paper = ""
    year = 2015

    def apply(self, model: nn.Module) -> nn.Module:
        return model
