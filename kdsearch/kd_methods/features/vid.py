"""Variational information distillation: the student's features say as much as they can about the teacher's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import FeatureMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Signals
from kdsearch.parameters import Flag, Float

if TYPE_CHECKING:
    from torch import Tensor, nn


def vid(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], variances: Sequence[Tensor]) -> Tensor:
    """Negative Gaussian log-likelihood of the teacher's features, without its constant, summed over the pairs.

    ½ · ((t - μ)² / σ² + log σ²), averaged over batch, channels and positions; it can be negative. The loss is the
    variational upper bound of minus the mutual information, up to the teacher's entropy.

    Args:
        student_features: the means μ predicted from the student's features, maps [B, C, H, W].
        teacher_features: the teacher's features t, of equal shapes.
        variances: σ² of each channel [C], positive.

    Source: Ahn et al., Variational Information Distillation for Knowledge Transfer, 2019, with the
    channel-wise variances of its maps.
    """
    import torch

    from kdsearch.kd_methods.numerics import widen

    losses = []
    for mean, target, variance in zip(student_features, teacher_features, variances, strict=True):
        squared = (widen(mean) - widen(target)).square().mean((0, 2, 3))
        variance = widen(variance)
        losses.append(0.5 * (squared / variance + variance.log()).mean())
    return torch.stack(losses).sum()


@register
class VID(FeatureMethod):
    """The teacher's features as Gaussians around what three 1×1 convolutions make of the student's.

    Means and one variance a channel are learned along. `learned=False` keeps the variances at their first value, as one
    benchmark's code does by leaving them out of the optimiser: the loss is then a plain squared difference. The larger
    map of a pair is average-pooled to the smaller.
    """

    name = "vid"
    title = "Variational Information Distillation for Knowledge Transfer"
    paper = "arXiv 1904.05835"
    year = 2019
    additive = True
    functional = staticmethod(vid)

    weight: float = Float(1.0, low=0.1, high=10, log=True)
    variance: float = Float(5.0, low=0.5, high=10, log=True, domain=(1e-3, math.inf), doc="that the training begins at")
    learned: bool = Flag(True, doc="the variances are trained")

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        from kdsearch.kd_methods.features._vid import Gaussians

        return Gaussians(student.stages, teacher.stages, variance=self.variance, learned=self.learned)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return vid(*self.parts(student.features, teacher.features))
