"""Self-supervised label augmentation: one label for class and transformation together."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.logits.kd import kd
from kdsearch.kd_methods.method import TargetMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals, View
from kdsearch.kd_methods.softening import reduce
from kdsearch.kd_methods.targets._transformations import SETS, check, copies, transform
from kdsearch.parameters import Choice, Flag, Float

if TYPE_CHECKING:
    from torch import Tensor, nn


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
    from kdsearch.kd_methods.targets._joint import aggregate, own_slices

    count = joint_logits.shape[0] // student_logits.shape[0]
    log_joint = own_slices(joint_logits.log_softmax(1), count)  # [B, C, M]
    if target.ndim == 2:
        losses = -(target.unsqueeze(2) * log_joint).sum(1)
    else:
        losses = -log_joint.gather(1, target.view(-1, 1, 1).expand(-1, 1, log_joint.shape[2])).squeeze(1)
    rows = losses.sum(1) if sum_copies else losses.mean(1)
    if distillation:
        teacher = aggregate(joint_logits.detach(), count)
        rows = rows + distillation * kd(student_logits, teacher, temperature=temperature, reduction="none")
    return reduce(rows, reduction)


@register
class SLA(TargetMethod):
    """SLA+SD: a joint head over class and transformation teaches the plain classifier, which is what is exported.

    `transformations` are the authors' sets, four or two rotations, all six or the three cyclic orders of the colour
    channels, and their products (of which they ran 2 x 3, 4 x 3 and 4 x 6). The copies pass the student beside the
    batch itself: 1 + M forwards a sample, where the authors reuse the untransformed copy and need M.

    `inference` chooses what is evaluated and exported: the plain "classifier"; "single" (SLA+SI), the joint head's
    slice of the image as it is; "aggregated" (SLA+AG), the mean logits of all M copies, M times the work. The joint
    head then belongs to the exported network, which permutes colours after its normalisation and not before it: the
    same up to the differences of the channels' means and deviations. `distillation=0` gives the published SLA, which
    has no plain classifier to teach.
    """

    name = "sla"
    title = "Self-supervised Label Augmentation via Input Transformations"
    paper = "arXiv 1910.05872"
    year = 2020
    reads_labels = True
    needs = Needs.of(student=(Need.LOGITS, Need.EMBEDDING))
    functional = staticmethod(sla)

    weight: float = Float(1.0, low=0.1, high=10, log=True)
    transformations: str = Choice("rotation4", list(SETS), searched=["rotation4", "rotation2"])
    temperature: float = Float(1.0, low=1, high=4, log=True, domain=(1e-3, math.inf))
    distillation: float = Float(1.0, low=0.1, high=4, log=True)
    sum_copies: bool = Flag(False)
    inference: str = Choice("classifier", ["classifier", "single", "aggregated"], searched=["classifier"])

    _student: ModelSpec | None = None

    def views(self) -> tuple[View, ...]:
        return (View("transformed", copies(self.transformations), partial(transform, name=self.transformations)),)

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        """The joint head, [D] to [C · M].

        Raises:
            ValueError: the student has no embedding, or no linear classifier where the joint head is to infer in its
                place, or its input cannot be transformed so.
        """
        from torch import nn

        if student.embedding is None:
            raise ValueError("sla needs a student with an embedding: its joint head reads what the classifier reads")
        if self.inference != "classifier" and student.classifier is None:
            raise ValueError(f"sla.inference={self.inference} needs a student whose last layer is linear; it has none")
        check("sla", self.transformations, student.input_shape)
        self._student = student
        return nn.Linear(student.embedding, student.classes * copies(self.transformations))

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return sla(
            student.logits,
            self.parts(student.views["transformed"].embedding),
            batch.target if batch.soft_target is None else batch.soft_target,
            temperature=self.temperature,
            distillation=self.distillation,
            sum_copies=self.sum_copies,
        )

    def export(self, student: nn.Module) -> nn.Module:
        """The student, or the joint head on it.

        Raises:
            ValueError: the student's classifier, which the joint head stands beside, is not there any more.
        """
        if self.inference == "classifier":
            return student
        from kdsearch.kd_methods.targets._joint import JointClassifier

        assert self._student is not None
        aggregated = self.inference == "aggregated"
        return JointClassifier(student, self._student, self.parts, self.transformations, aggregated=aggregated)
