"""Self-supervised label augmentation: one label for class and rotation together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.logits.kd import kd
from kdsearch.kd_methods.method import TargetMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals, View
from kdsearch.kd_methods.softening import reduce
from kdsearch.parameters import Flag, Float

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

ROTATIONS = 4


def rotations(images: Tensor, generator: Generator | None = None) -> Tensor:
    """[B, ..., S, S] to [4B, ..., S, S]: row 4b + k is image b turned by 90° · k."""
    import torch

    return torch.stack([torch.rot90(images, k, (-2, -1)) for k in range(ROTATIONS)], 1).flatten(0, 1)


def own_slices(joint_logits: Tensor, batch_size: int) -> Tensor:
    """[M · B, C · M] to [B, C, M]: of copy k its C columns for transformation k, which are c · M + k."""
    copies = joint_logits.shape[0] // batch_size
    return joint_logits.view(batch_size, copies, -1, copies).diagonal(dim1=1, dim2=3)


def aggregate(joint_logits: Tensor, batch_size: int) -> Tensor:
    """[M · B, C · M] to [B, C]: the mean of the copies' own logits, softmax of which is the aggregated prediction.

    Used as the published inference "SLA+AG" (M forward passes a sample) and as the teacher within `sla`.

    Source: Lee, Hwang, Shin, ICML 2020, section 2.
    """
    return own_slices(joint_logits, batch_size).mean(2)


def sla(
    student_logits: Tensor,
    joint_logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    distillation: float = 1.0,
    sum_copies: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of the joint labels + T² · KL of the classifier to the aggregated prediction, which is detached.

    Args:
        student_logits: [B, C], the plain classifier on the images as they are.
        joint_logits: [M · B, C · M], row M · b + k for copy k of image b, column M · c + k for class c under
            transformation k.
        target: [B] labels, or [B, C] mixed labels.
        temperature: of the second part only; 1 as published.
        distillation: weight of the second part; 0 leaves the published "SLA" without self-distillation.
        sum_copies: sum the joint cross-entropy over the copies, as the authors do for ImageNet, where the paper
            averages.
        reduction: "mean", or "none" for [B].

    Source: Lee, Hwang, Shin, Self-supervised Label Augmentation via Input Transformations, ICML 2020,
    section 2.
    """
    batch_size = student_logits.shape[0]
    log_joint = own_slices(joint_logits.log_softmax(1), batch_size)  # [B, C, M]
    if target.ndim == 2:
        copies = -(target.unsqueeze(2) * log_joint).sum(1)
    else:
        copies = -log_joint.gather(1, target.view(-1, 1, 1).expand(-1, 1, log_joint.shape[2])).squeeze(1)
    rows = copies.sum(1) if sum_copies else copies.mean(1)
    if distillation:
        teacher = aggregate(joint_logits.detach(), batch_size)
        rows = rows + distillation * kd(student_logits, teacher, temperature=temperature, reduction="none")
    return reduce(rows, reduction)


@register
class SLA(TargetMethod):
    """SLA+SD: a joint head over class and rotation teaches the plain classifier, which is what is exported.

    The four rotations pass the student beside the batch itself: five forwards a sample, where the authors reuse the
    unturned copy for the plain classifier and need four. `aggregate` gives the joint head's own prediction.
    """

    name = "sla"
    title = "Self-supervised Label Augmentation via Input Transformations"
    paper = "arXiv 1910.05872"
    year = 2020
    needs = Needs.of(student=(Need.LOGITS, Need.EMBEDDING))
    functional = staticmethod(sla)

    weight: float = Float(1.0, low=0.1, high=10, log=True)
    temperature: float = Float(1.0, low=1, high=4, log=True, domain=(1e-3, math.inf))
    distillation: float = Float(1.0, low=0.1, high=4, log=True)
    sum_copies: bool = Flag(False)

    def views(self) -> tuple[View, ...]:
        return (View("rotations", ROTATIONS, rotations),)

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        """The joint head, [D] to [4 · C].

        Raises:
            ValueError: the student has no embedding, or its input is not square and cannot be turned.
        """
        from torch import nn

        if student.embedding is None:
            raise ValueError("sla needs a student with an embedding: its joint head reads what the classifier reads")
        height, width = student.input_shape[-2:]
        if height != width:
            raise ValueError(f"sla turns images by 90 degrees and needs square ones, not {height} x {width}")
        return nn.Linear(student.embedding, ROTATIONS * student.classes)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return sla(
            student.logits,
            self.parts(student.views["rotations"].embedding),
            batch.target if batch.soft_target is None else batch.soft_target,
            temperature=self.temperature,
            distillation=self.distillation,
            sum_copies=self.sum_copies,
        )
