"""Hierarchical self-supervised augmentation: every stage answers for class and rotation together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.logits.kd import kd
from kdsearch.kd_methods.method import Frozen, TargetMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals, View
from kdsearch.kd_methods.targets._transformations import check, copies, transform
from kdsearch.parameters import Choice, Flag, Float, Int

if TYPE_CHECKING:
    from torch import Tensor, nn

SET = "rotation4"


def hsakd(
    student_joint: Sequence[Tensor],
    teacher_joint: Sequence[Tensor],
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 3.0,
) -> Tensor:
    """T² · KL of every branch's joint distribution, and of the main heads', summed; no weights between them.

    Args:
        student_joint, teacher_joint: [4 · B, 4 · C] for every branch: four rotations of each image, class-major.
        student_logits, teacher_logits: [4 · B, C], the main heads on the same rotated images.
        temperature: T.

    Source: Yang et al., Hierarchical Self-supervised Augmented Knowledge Distillation, IJCAI 2021, section 3; the
    factor T² is the authors' code's.
    """
    total = kd(student_logits, teacher_logits, temperature=temperature)
    for student, teacher in zip(student_joint, teacher_joint, strict=True):
        total = total + kd(student, teacher, temperature=temperature)
    return total


@register
class HSAKD(TargetMethod):
    """Branches after every stage of student and teacher, with an output for each class under each of four rotations.

    The teacher is the authors' variant "Teacher": its branches are trained on the frozen network beforehand, on the
    training images without other augmentation, in `passes` over the data (their 100 epochs are rarely needed at 32
    pixels; a search leaves the number alone, since each value trains them anew). The variant that trains the whole
    teacher again is another, better teacher and no comparison. The student's branches have no labels of their own, as
    published. Cross-entropy is the recipe's, on the images as they are; the four rotations are shown beside them: five
    forwards a sample, where the authors reuse the unturned copy.

    A branch has the widths and strides of the stages that follow its own, in `blocks` residual blocks each (the
    authors copy the backbone's blocks), and after the last stage one more at stride 1. Branches of tokens are a linear
    layer on the mean of the patches. Stages are paired from the last backwards, so both sides have as many branches.
    """

    name = "hsakd"
    title = "Hierarchical Self-supervised Augmented Knowledge Distillation"
    paper = "arXiv 2107.13715"
    year = 2021
    reads_labels = True
    needs = Needs.of(Need.LOGITS, Need.FEATURES)
    pairing = "all"
    same_classes = True
    views_only = True
    prepares = ("blocks", "passes")
    functional = staticmethod(hsakd)

    weight: float = Float(1.0, low=0.1, high=3, log=True)
    temperature: float = Float(3.0, low=1, high=10, log=True, domain=(1e-3, math.inf))
    branch_gradients: bool = Flag(True, doc="the branches' gradients reach the student's stages")
    blocks: int = Int(1, low=1, high=3, domain=(1, math.inf), doc="residual blocks in each stage of a branch")
    passes: int = Choice(10, [1, 3, 10, 30, 100], searched=[10], doc="over the data, for the teacher's branches")

    def views(self) -> tuple[View, ...]:
        return (View("rotations", copies(SET), transform, teacher=True),)

    def prepare(self, teacher: Frozen) -> dict[str, Tensor]:
        """The trained branches of the teacher.

        Raises:
            ValueError: the images are not square, or the data has no labels.
        """
        from kdsearch.kd_methods.targets._hsakd import train_branches

        check("hsakd", SET, teacher.data.input_shape)
        return train_branches(teacher, self.blocks, self.passes)

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        from kdsearch.kd_methods.targets._hsakd import Branches, Pair

        check("hsakd", SET, student.input_shape)
        if student.classes != teacher.classes:
            raise ValueError(
                f"hsakd compares classes; the student has {student.classes} and the teacher {teacher.classes}"
            )
        own, other = (Branches(spec.stages, data.classes, self.blocks) for spec in (student, teacher))
        return Pair(own, other, self.prepared)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        import torch

        if not self.parts.ready:
            raise ValueError("hsakd has no trained branches of the teacher: set `prepared` before `bind`")
        shown, taught = student.views["rotations"], teacher.views["rotations"]
        features = shown.features if self.branch_gradients else [feature.detach() for feature in shown.features]
        with torch.no_grad():
            targets = self.parts.teacher(taught.features)
        return hsakd(self.parts.student(features), targets, shown.logits, taught.logits, temperature=self.temperature)
