"""Decoupled knowledge distillation: the target class and the others, weighted apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import LogitMethod
from kdsearch.kd_methods.signals import Batch, Signals
from kdsearch.kd_methods.softening import reduce, temper
from kdsearch.kd_methods.warmup import ramp
from kdsearch.parameters import Float

if TYPE_CHECKING:
    from torch import Tensor


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float | Tensor | tuple[float | Tensor, float | Tensor] = 4.0,
    reduction: str = "mean",
) -> Tensor:
    """T² · (alpha · TCKD + beta · NCKD), mean over the batch.

    TCKD is the divergence of (p_y, 1 - p_y), NCKD that of the softmax over the classes other than y. With
    m = z_y - logsumexp of the others the two probabilities are sigmoid(±m), so both parts are finite at any scale of
    the logits; the authors' code takes the logarithm of a sum of probabilities and overflows in float32 where the
    logits' deviation passes about 20 at T = 1.

    Args:
        student_logits, teacher_logits: [B, C] with C of at least 2.
        target: [B] labels.
        temperature: float, [B, 1], or (student's, teacher's).
        reduction: "mean", or "none" for [B].

    Raises:
        ValueError: fewer than two classes.

    Source: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, equations 5 to 7.
    """
    import torch
    import torch.nn.functional as F

    if student_logits.shape[1] < 2:
        raise ValueError(f"dkd needs at least 2 classes, not {student_logits.shape[1]}")
    s, t, factor = temper(student_logits, teacher_logits, temperature)
    label = target.unsqueeze(1)
    others_s = s.scatter(1, label, -math.inf).logsumexp(1, keepdim=True)
    others_t = t.scatter(1, label, -math.inf)
    total_t = others_t.logsumexp(1, keepdim=True)

    margin_s = (s.gather(1, label) - others_s).squeeze(1)
    margin_t = (t.gather(1, label) - total_t).squeeze(1)
    tckd = torch.sigmoid(margin_t) * (F.logsigmoid(margin_t) - F.logsigmoid(margin_s))
    tckd = tckd + torch.sigmoid(-margin_t) * (F.logsigmoid(-margin_t) - F.logsigmoid(-margin_s))

    # The target's own column has weight exp(-inf) = 0 and a finite difference, so it drops out without a mask.
    nckd = ((others_t - total_t).exp() * ((t - total_t) - (s - others_s))).sum(1)
    return reduce(factor * (alpha * tckd + beta * nckd), reduction)


@register
class DKD(LogitMethod):
    """DKD with the authors' warm-up: the loss grows linearly over the first 20 of 240 epochs.

    Defaults are CIFAR-100's for pairs of unlike families; the authors set beta to 2 for ResNet-56 to ResNet-20 and 6
    for the wide ResNets, and 0.5 at T = 1 on ImageNet.
    """

    name = "dkd"
    title = "Decoupled Knowledge Distillation"
    paper = "arXiv 2203.08679"
    year = 2022
    reads_labels = True
    functional = staticmethod(dkd)

    weight: float = Float(1.0, low=0.1, high=10, log=True)
    alpha: float = Float(1.0, low=0.2, high=4, log=True)
    beta: float = Float(8.0, low=0.5, high=16, log=True)
    temperature: float = Float(4.0, low=1, high=20, log=True, domain=(1e-3, math.inf))
    warmup: float = Float(20 / 240, low=0, high=0.25, domain=(0, 1), doc="share of the training")

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        soft = self.soften(student, teacher, batch)
        value = dkd(
            soft.student,
            soft.teacher,
            batch.target,
            alpha=self.alpha,
            beta=self.beta,
            temperature=soft.temperature,
        )
        return ramp(batch.progress, self.warmup) * value
