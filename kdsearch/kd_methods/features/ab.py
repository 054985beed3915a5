"""Activation boundaries: which neurons are on, not how strongly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import FeatureMethod, Stage, alone_first
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.parameters import Flag, Float

if TYPE_CHECKING:
    from torch import Tensor, nn


def ab(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], *, margin: float = 1.0) -> Tensor:
    """Squared hinge on the sign of every neuron of the teacher, summed over neurons, averaged over the batch.

    A student's neuron costs max(0, margin - s)² where the teacher's is positive and max(0, margin + s)² elsewhere. The
    last pair counts whole, the one before it by a half, and so on.

    Args:
        student_features, teacher_features: before the activation, in equal shapes [B, ...], in order of depth.
        margin: how far beyond the boundary a student's neuron is asked to be.

    Source: Heo, Lee, Yun, Choi, Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons,
    AAAI 2019; the weights of the layers are the authors' code's.
    """
    import torch

    from kdsearch.kd_methods.numerics import widen

    losses = []
    last = len(student_features) - 1
    for k, (student, teacher) in enumerate(zip(student_features, teacher_features, strict=True)):
        s = widen(student)
        short = (margin - torch.where(teacher > 0, s, -s)).relu()
        losses.append(0.5 ** (last - k) * short.square().sum() / len(s))
    return torch.stack(losses).sum()


@register
class AB(FeatureMethod):
    """The teacher's activation boundaries first, then the recipe's other terms.

    The published procedure has two stages: the boundaries alone, as an initialisation, then training without them. With
    `staged=False` they are one more term of a joint training. Weight 0.003 is the authors' scale of the sum over
    neurons of 32-pixel networks; `hint_share` is the benchmarks' 30 epochs before 240.

    As in the authors' code a connector of a 1×1 convolution and batch normalisation stands where a student's stage has
    other channels than its teacher's, and none elsewhere; a student's map of another size is resized to the teacher's,
    so that the boundaries are the teacher's own. A stage that ends in no activation gives its output: the boundary is
    then the sign of that.
    """

    name = "ab"
    title = "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons"
    paper = "arXiv 1811.03233"
    year = 2019
    needs = Needs.of(Need.PREACT)
    pairing = "all"
    functional = staticmethod(ab)

    weight: float = Float(0.003, low=1e-4, high=0.1, log=True)
    margin: float = Float(1.0, low=0.25, high=4, log=True)
    staged: bool = Flag(True, searched=(True, False), doc="a stage of boundaries alone, before the other terms")
    hint_share: float = Float(
        0.125, low=0.05, high=0.5, domain=(0.01, 0.99), doc="the boundary stage's share of the budget"
    )

    def stages(self) -> tuple[Stage, ...]:
        return alone_first("boundaries", self.hint_share) if self.staged else ()

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        from kdsearch.kd_methods.features._connectors import Connectors

        return Connectors(student.stages, teacher.stages, always=False)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        from kdsearch.kd_methods.adapters import resize
        from kdsearch.kd_methods.numerics import widen

        connected, targets = self.parts(student.preact, teacher.preact)
        resized = [
            resize(widen(x), (target.shape[-2], target.shape[-1])) for x, target in zip(connected, targets, strict=True)
        ]
        return ab(resized, targets, margin=self.margin)
