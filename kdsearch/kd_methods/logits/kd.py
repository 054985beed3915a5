"""Knowledge distillation: softened Kullback-Leibler divergence."""

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


def kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor | tuple[float | Tensor, float | Tensor] = 4.0,
    reduction: str = "mean",
) -> Tensor:
    """T² · KL(softmax(t / T) ‖ softmax(s / T)), mean over the batch.

    Args:
        student_logits, teacher_logits: [B, C].
        temperature: float, [B, 1], or (student's, teacher's).
        reduction: "mean", or "none" for [B].

    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, section 2.
    """
    import torch.nn.functional as F

    s, t, factor = temper(student_logits, teacher_logits, temperature)
    log_t = F.log_softmax(t, dim=1)
    rows = F.kl_div(F.log_softmax(s, dim=1), log_t, reduction="none", log_target=True).sum(1)
    return reduce(factor * rows, reduction)


@register
class KD(LogitMethod):
    """Soft targets. Defaults: weight 0.9 beside 0.1 of cross-entropy at T = 4, as the CIFAR-100 literature runs it."""

    name = "kd"
    title = "Distilling the Knowledge in a Neural Network"
    paper = "arXiv 1503.02531"
    year = 2015
    ce_weight = 0.1
    functional = staticmethod(kd)

    weight: float = Float(0.9, low=0.1, high=10, log=True)
    temperature: float = Float(4.0, low=1, high=20, log=True, domain=(1e-3, math.inf))

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        soft = self.soften(student, teacher, batch)
        return kd(soft.student, soft.teacher, temperature=soft.temperature)
