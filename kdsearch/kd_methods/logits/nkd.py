"""Normalised knowledge distillation: the target's probability, and the others renormalised among themselves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import LogitMethod
from kdsearch.kd_methods.signals import Batch, Signals
from kdsearch.kd_methods.softening import reduce, temper
from kdsearch.parameters import Float

if TYPE_CHECKING:
    from torch import Tensor


def target_part(student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
    """-p_t(y) · log p_s(y), [B]."""
    label = target.unsqueeze(1)
    confidence = teacher_logits.softmax(1).gather(1, label)
    return -(confidence * student_logits.log_softmax(1).gather(1, label)).squeeze(1)


def other_part(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    temperature: float | Tensor | tuple[float | Tensor, float | Tensor],
) -> Tensor:
    """T² · cross-entropy of the two softmaxes over the classes other than y, [B].

    Raises:
        ValueError: fewer than two classes.
    """
    if student_logits.shape[1] < 2:
        raise ValueError(f"nkd needs at least 2 classes, not {student_logits.shape[1]}")
    s, t, factor = temper(student_logits, teacher_logits, temperature)
    label = target.unsqueeze(1)
    total_s = s.scatter(1, label, -math.inf).logsumexp(1, keepdim=True)
    q = t.scatter(1, label, -math.inf).softmax(1)
    # q is 0 in the label's own column, where the other factor is finite: it drops out without a mask.
    return -factor * (q * (s - total_s)).sum(1)


def nkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 3.5,
    temperature: float | Tensor | tuple[float | Tensor, float | Tensor] = 3.0,
    reduction: str = "mean",
) -> Tensor:
    """-p_t(y) log p_s(y) at temperature 1, plus gamma · T² times the cross-entropy of the non-target softmaxes.

    Both parts are cross-entropies, so the loss is not zero at student = teacher. The second one's gradient is zero
    there; the first goes on raising the probability of the label.

    Args:
        student_logits, teacher_logits: [B, C] with C of at least 2.
        target: [B] labels; of [B, C] mixed labels the largest counts, as in the authors' code.
        gamma: weight of the non-target part.
        temperature: of the non-target part: float, [B, 1], or (student's, teacher's).
        reduction: "mean", or "none" for [B].

    Raises:
        ValueError: fewer than two classes.

    Source: Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023, section 3.
    """
    if target.ndim == 2:
        target = target.argmax(1)
    rows = target_part(student_logits, teacher_logits, target)
    return reduce(rows + gamma * other_part(student_logits, teacher_logits, target, temperature), reduction)


@register
class NKD(LogitMethod):
    """NKD. Defaults are CIFAR-100's (T = 3, gamma = 3.5); ImageNet has T = 1 and gamma = 1.5, or 1 for transformers.

    Full cross-entropy stands beside it, as published. A temperature policy acts on the non-target part alone: the
    target part compares plain predictions. Under mixup the label of the larger share is the target.
    """

    name = "nkd"
    title = "From Knowledge Distillation to Self-Knowledge Distillation"
    paper = "arXiv 2303.13005"
    year = 2023
    reads_labels = True
    functional = staticmethod(nkd)

    weight: float = Float(1.0, low=0.1, high=10, log=True)
    gamma: float = Float(3.5, low=0.5, high=8, log=True)
    temperature: float = Float(3.0, low=1, high=10, log=True, domain=(1e-3, math.inf))

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        soft = self.soften(student, teacher, batch)
        rows = target_part(student.logits, teacher.logits, batch.target)
        others = other_part(soft.student, soft.teacher, batch.target, soft.temperature)
        return (rows + self.gamma * others).mean()
