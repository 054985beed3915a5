"""Flow of solution procedure: how features change from one stage to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import FeatureMethod, Stage, alone_first
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Signals
from kdsearch.parameters import Choice, Flag, Float

if TYPE_CHECKING:
    from torch import Tensor, nn


def fsp(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], *, reduction: str = "mean") -> Tensor:
    """Squared difference of the flow matrices of consecutive stages, summed over them, averaged over the batch.

    The flow from a stage [B, C, H, W] to the next [B, D, H', W'] is the C × D matrix of the channels' products,
    averaged over positions; the larger of the two maps is average-pooled to the smaller first.

    Args:
        student_features, teacher_features: K maps in order of depth, K > 1. Stage by stage both sides have equal
            channels; sizes may differ.
        reduction: "mean" over a matrix' entries, or "sum", the paper's squared L2 norm with all its weights at 1.

    Source: Yim, Joo, Bae, Kim, A Gift from Knowledge Distillation, CVPR 2017, section 3.

    Raises:
        ValueError: an unknown reduction, fewer than two stages, or unequal channels.
    """
    import torch

    if reduction not in ("mean", "sum"):
        raise ValueError(f"fsp: reduction must be 'mean' or 'sum', not {reduction!r}")
    widths = [[x.shape[1] for x in side] for side in (student_features, teacher_features)]
    if widths[0] != widths[1] or len(widths[0]) < 2:
        raise ValueError(
            "fsp compares two stages or more of equal channels; "
            f"the student's have {widths[0]} and the teacher's {widths[1]}"
        )
    losses = []
    for k in range(len(widths[0]) - 1):
        s, t = (_flow(features[k], features[k + 1]) for features in (student_features, teacher_features))
        squared = (s - t).square()
        losses.append(squared.mean() if reduction == "mean" else squared.sum((1, 2)).mean())
    return torch.stack(losses).sum()


def _flow(before: Tensor, after: Tensor) -> Tensor:
    """[B, C, D]."""
    from kdsearch.kd_methods.adapters import to_smaller
    from kdsearch.kd_methods.numerics import widen

    a, b = (x.flatten(2) for x in to_smaller(widen(before), widen(after)))
    return a @ b.transpose(1, 2) / a.shape[2]


@register
class FSP(FeatureMethod):
    """The flow from stage to stage is learned first, then the recipe's other terms.

    The published procedure has two stages: the flow matrices alone, then the task alone, from the weights found. With
    `staged=False` the flow is one more term of a joint training. The paper takes the flow through each group of layers,
    from its first to its last; here it goes from the end of one paired stage to the end of the next, as the CIFAR-100
    benchmarks have it, and weight 50 with the mean over a matrix' entries is theirs too (the paper leaves its weights
    open). `hint_share` is their 30 epochs before 240.

    The paper asks for equal channels. Where a student's stage has others than its teacher's stage, a 1×1 convolution
    with batch normalisation brings it to them (ours); stages of equal channels are compared as they are.
    """

    name = "fsp"
    title = "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning"
    paper = "CVPR 2017"
    year = 2017
    pairing = "all"
    functional = staticmethod(fsp)

    weight: float = Float(50.0, low=1, high=1000, log=True)
    staged: bool = Flag(True, searched=(True, False), doc="a stage of flows alone, before the other terms")
    hint_share: float = Float(
        0.125, low=0.05, high=0.5, domain=(0.01, 0.99), doc="the flow stage's share of the budget"
    )
    reduction: str = Choice("mean", ("mean", "sum"), searched=("mean",), doc="of a matrix' squared differences")

    def stages(self) -> tuple[Stage, ...]:
        return alone_first("flow", self.hint_share) if self.staged else ()

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        """The connectors.

        Raises:
            ValueError: student or teacher has a single stage.
        """
        from kdsearch.kd_methods.features._connectors import Connectors

        count = len(student.stages)
        if count < 2:
            raise ValueError(f"fsp reads the flow between stages and needs two pairs of them, not {count}")
        return Connectors(student.stages, teacher.stages, always=False)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        s, t = self.parts(student.features, teacher.features)
        return fsp(s, t, reduction=self.reduction)
