"""FitNets: a hint from the middle of the teacher, reached through a regressor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import FeatureMethod, Stage, alone_first
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Signals
from kdsearch.parameters import Choice, Flag, Float

if TYPE_CHECKING:
    from torch import Tensor, nn


def fitnets(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], *, reduction: str = "mean"
) -> Tensor:
    """Squared difference of regressed student features and teacher features, summed over the pairs.

    Args:
        student_features: already in the teacher's shapes: maps [B, C, H, W], or any other equal shapes.
        teacher_features: the hints.
        reduction: "mean" over all elements, for which the usual weight of 100 is meant, or "half_sum", the paper's
            half of the squared L2 norm, averaged over the batch.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, 2015, equation 3.

    Raises:
        ValueError: an unknown reduction.
    """
    import torch
    import torch.nn.functional as F

    from kdsearch.kd_methods.numerics import widen

    if reduction not in ("mean", "half_sum"):
        raise ValueError(f"fitnets: reduction must be 'mean' or 'half_sum', not {reduction!r}")
    losses = []
    for student, teacher in zip(student_features, teacher_features, strict=True):
        s, t = widen(student), widen(teacher)
        losses.append(F.mse_loss(s, t) if reduction == "mean" else 0.5 * F.mse_loss(s, t, reduction="sum") / len(s))
    return torch.stack(losses).sum()


@register
class FitNets(FeatureMethod):
    """Hint training, then the rest of the recipe.

    The published procedure has two stages: the student up to the guided layer learns the hint alone, then the whole
    student learns the objective of the recipe's other terms. With `staged=False` the hint is one more term of a joint
    training, as the CIFAR-100 benchmarks run it at weight 100.

    The regressor is convolutional, without padding where the student's map is a little larger (section 2.2), followed
    by the hint's own non-linearity: ReLU for maps, none for tokens. `norm` adds batch normalisation before it, which
    the benchmarks have and the paper has not.
    """

    name = "fitnets"
    title = "FitNets: Hints for Thin Deep Nets"
    paper = "arXiv 1412.6550"
    year = 2015
    pairing = "middle"
    functional = staticmethod(fitnets)

    weight: float = Float(100.0, low=1, high=1000, log=True)
    staged: bool = Flag(True, searched=(True, False), doc="a stage of hints alone, before the other terms")
    hint_share: float = Float(
        0.125, low=0.05, high=0.5, domain=(0.01, 0.99), doc="the hint stage's share of the budget"
    )
    reduction: str = Choice("mean", ("mean", "half_sum"), searched=("mean",), doc="of the squared differences")
    norm: bool = Flag(True, doc="batch normalisation in the regressor")
    relu: bool = Flag(True, doc="ReLU after the regressor, for hints that are rectified maps")

    def stages(self) -> tuple[Stage, ...]:
        return alone_first("hint", self.hint_share) if self.staged else ()

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        from kdsearch.kd_methods.features._fitnets import Regressors

        return Regressors(student.stages, teacher.stages, norm=self.norm, relu=self.relu)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        guided, hints = self.parts(student.features, teacher.features)
        return fitnets(guided, hints, reduction=self.reduction)
