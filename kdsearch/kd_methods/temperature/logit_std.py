"""Logit standardisation: z-scored logits, so that only their relations are matched."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.logits.kd import kd
from kdsearch.kd_methods.method import TemperatureMethod
from kdsearch.kd_methods.signals import Batch, Need, Needs, Softened
from kdsearch.parameters import Float

if TYPE_CHECKING:
    from torch import Tensor


def standardise(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """(z - mean) / (std + eps) over the classes, with the unbiased deviation.

    A row whose deviation is mere rounding (below a millionth of its largest entry) is centred and not divided: it has
    no direction to keep, and the authors' code would scale its gradient by 1 / eps.
    """
    std = logits.std(1, keepdim=True)
    constant = std.detach() <= 1e-6 * logits.detach().abs().amax(1, keepdim=True)
    return (logits - logits.mean(1, keepdim=True)) / (std + eps).masked_fill(constant, 1.0)


def logit_std(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor | tuple[float | Tensor, float | Tensor] = 2.0,
    eps: float = 1e-7,
    reduction: str = "mean",
) -> Tensor:
    """T² · KL of the softened z-scores, mean over the batch. The gradient passes through mean and deviation.

    Args:
        student_logits, teacher_logits: [B, C].
        temperature: the base temperature: float, [B, 1], or (student's, teacher's).
        eps: added to the deviation.
        reduction: "mean", or "none" for [B].

    Constant rows count as all zeros and take kd's own gradient (see `standardise`); the authors' is 1e7 times larger.

    Source: Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024, algorithms 1 and 2.
    """
    return kd(
        standardise(student_logits, eps), standardise(teacher_logits, eps), temperature=temperature, reduction=reduction
    )


@register
class LogitStd(TemperatureMethod):
    """Every logit term of the recipe sees z-scores at one base temperature.

    The authors give kd a weight of 9 beside 0.1 of cross-entropy, and multiply dkd's alpha and beta by 9 likewise:
    z-scores make small losses, so a recipe that takes this policy wants a larger weight than its term's own default.
    """

    name = "logit_std"
    title = "Logit Standardization in Knowledge Distillation"
    paper = "arXiv 2403.01427"
    year = 2024
    needs = Needs.of(Need.LOGITS)
    functional = staticmethod(logit_std)

    temperature: float = Float(2.0, low=1, high=6, log=True, domain=(1e-3, math.inf))

    def soften(self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> Softened:
        return Softened(standardise(student_logits), standardise(teacher_logits), self.temperature)
