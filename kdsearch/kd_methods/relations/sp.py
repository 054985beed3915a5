"""Similarity-preserving distillation: samples that are alike to the teacher are alike to the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import RelationMethod
from kdsearch.kd_methods.signals import Batch, Need, Needs, Signals
from kdsearch.parameters import Float

if TYPE_CHECKING:
    from torch import Tensor


def sp(student_features: Sequence[Tensor] | Tensor, teacher_features: Sequence[Tensor] | Tensor) -> Tensor:
    """Squared difference of row-normalised batch similarity matrices over B², summed over the pairs.

    Args:
        student_features, teacher_features: one tensor [B, ...] a pair, or a single one: maps, tokens or embeddings.
            Shapes may differ in all but B.

    Source: Tung, Mori, Similarity-Preserving Knowledge Distillation, 2019, equations 1 to 4.
    """
    import torch

    if isinstance(student_features, torch.Tensor):
        student_features = [student_features]
    if isinstance(teacher_features, torch.Tensor):
        teacher_features = [teacher_features]
    losses = [
        (_similarity(s) - _similarity(t)).square().mean()
        for s, t in zip(student_features, teacher_features, strict=True)
    ]
    return torch.stack(losses).sum()


def _similarity(features: Tensor) -> Tensor:
    """[B, B], rows of length one."""
    from kdsearch.kd_methods.numerics import rescale, rows, unit, widen

    x = rescale(rows(widen(features)))  # normalised rows do not depend on the scale
    return unit(x @ x.T)


@register
class SP(RelationMethod):
    """Similarity of the last stage's features, before pooling; weight 3000 as the CIFAR-100 literature runs it."""

    name = "sp"
    title = "Similarity-Preserving Knowledge Distillation"
    paper = "arXiv 1907.09682"
    year = 2019
    needs = Needs.of(Need.FEATURES)
    pairing = "last"
    functional = staticmethod(sp)

    weight: float = Float(3000.0, low=100, high=10000, log=True)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return sp(student.features, teacher.features)
