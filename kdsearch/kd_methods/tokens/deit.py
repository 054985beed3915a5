"""DeiT: a distillation token whose head learns from the teacher."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import TokenMethod
from kdsearch.kd_methods.signals import Batch, Need, Needs, Signals, Softened
from kdsearch.kd_methods.softening import reduce, temper
from kdsearch.parameters import Choice, Float

if TYPE_CHECKING:
    from torch import Tensor


def deit(
    distillation_logits: Tensor,
    teacher_logits: Tensor,
    *,
    kind: str = "hard",
    temperature: float | Tensor | tuple[float | Tensor, float | Tensor] = 3.0,
    average: str = "samples",
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy with the teacher's decision, or T² · KL(softmax(t / T) ‖ softmax(s / T)), on the distillation head.

    Args:
        distillation_logits, teacher_logits: [B, C], the former from the head of the distillation token.
        kind: "hard" or "soft".
        temperature: of the soft kind: float, [B, 1], or (student's, teacher's). The hard kind has none.
        average: of the soft kind: "samples", the paper's, or "elements", as the authors' code divides, by B · C.
        reduction: "mean", or "none" for [B].

    Source: Touvron et al., Training Data-Efficient Image Transformers, 2021, equations 2 and 3. The cross-entropy of
    the class token, which shares the objective half and half (0.9 and 0.1 for the soft kind), is not in here.

    Raises:
        ValueError: an unknown kind, average or reduction.
    """
    import torch.nn.functional as F

    from kdsearch.kd_methods.numerics import widen

    if kind not in ("hard", "soft"):
        raise ValueError(f"deit: kind must be 'hard' or 'soft', not {kind!r}")
    if average not in ("samples", "elements"):
        raise ValueError(f"deit: average must be 'samples' or 'elements', not {average!r}")
    if kind == "hard":
        return reduce(
            F.cross_entropy(widen(distillation_logits), teacher_logits.argmax(1), reduction="none"), reduction
        )
    s, t, factor = temper(widen(distillation_logits), widen(teacher_logits), temperature)
    divergence = F.kl_div(F.log_softmax(s, 1), F.log_softmax(t, 1), reduction="none", log_target=True)
    return reduce(factor * (divergence.sum(1) if average == "samples" else divergence.mean(1)), reduction)


@register
class DeiT(TokenMethod):
    """The teacher's decision as a label of the distillation token. Weight 0.5 stands beside 0.5 of cross-entropy.

    The soft kind was published with weight 0.1 beside 0.9 of cross-entropy, at T = 3.
    """

    name = "deit"
    title = "Training Data-Efficient Image Transformers & Distillation Through Attention"
    paper = "arXiv 2012.12877"
    year = 2021
    needs = Needs.of(student=(Need.DISTILLATION_HEAD,), teacher=(Need.LOGITS,))
    branches = frozenset({"distillation_token"})
    same_classes = True
    ce_weight = 0.5
    functional = staticmethod(deit)

    weight: float = Float(0.5, low=0.05, high=5, log=True)
    kind: str = Choice("hard", ("hard", "soft"), doc="the teacher's decision, or its softened distribution")
    temperature: float = Float(3.0, low=1, high=20, log=True, domain=(1e-3, math.inf), doc="of the soft kind")
    average: str = Choice("samples", ("samples", "elements"), searched=("samples",), doc="of the soft kind")

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        if student.distillation_head is None:
            raise ValueError("deit reads the student's distillation head, and got none")
        soft = Softened(student.distillation_head, teacher.logits, self.temperature)
        if self.kind == "soft" and batch.soften is not None:
            soft = batch.soften(student.distillation_head, teacher.logits, batch)
        return deit(soft.student, soft.teacher, kind=self.kind, temperature=soft.temperature, average=self.average)
