"""DIST: correlation of predictions between and within classes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import LogitMethod
from kdsearch.kd_methods.signals import Batch, Signals
from kdsearch.kd_methods.softening import temper
from kdsearch.parameters import Float

if TYPE_CHECKING:
    from torch import Tensor


def pearson(a: Tensor, b: Tensor, dim: int, eps: float = 1e-8) -> Tensor:
    """Pearson's correlation along `dim`; `eps` is added to the product of the norms, so a constant gives 0."""
    a = a - a.mean(dim, keepdim=True)
    b = b - b.mean(dim, keepdim=True)
    return (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + eps)


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float | Tensor | tuple[float | Tensor, float | Tensor] = 4.0,
    eps: float = 1e-8,
) -> Tensor:
    """T² · (beta · inter + gamma · intra): one minus the mean correlation over rows, and over columns, of the softmax.

    Args:
        student_logits, teacher_logits: [B, C], or dense [B, C, H, W], whose pixels count as samples.
        temperature: the paper's tau: float, [B, 1], or (student's, teacher's); dense logits take numbers only. The
            columns mix samples, so their part takes the mean of T² where it differs from row to row.
        eps: the authors' guard. It is absolute and columns of probabilities have small norms, so the loss is about
            1e-3 and not 0 at student = teacher with 100 classes.

    A batch of one has constant columns: intra is 1, without a gradient. No `reduction`, as columns mix samples.

    Source: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, section 3; the dense form and
    the factor T² are the authors' code's.
    """
    if student_logits.ndim > 2:
        student_logits = student_logits.movedim(1, -1).flatten(0, -2)
        teacher_logits = teacher_logits.movedim(1, -1).flatten(0, -2)
    s, t, factor = temper(student_logits, teacher_logits, temperature)
    p, q = s.softmax(1), t.softmax(1)
    inter = (factor * (1 - pearson(p, q, 1, eps))).mean()
    intra = (1 - pearson(p, q, 0, eps)).mean() * (factor if isinstance(factor, int | float) else factor.mean())
    return beta * inter + gamma * intra


@register
class DIST(LogitMethod):
    """DIST. Defaults: cross-entropy + 2 · (inter + intra) at tau = 4, CIFAR-100's; ImageNet has tau = 1."""

    name = "dist"
    title = "Knowledge Distillation from A Stronger Teacher"
    paper = "arXiv 2205.10536"
    year = 2022
    functional = staticmethod(dist)

    weight: float = Float(2.0, low=0.2, high=10, log=True)
    beta: float = Float(1.0, low=0.1, high=4, log=True)
    gamma: float = Float(1.0, low=0.1, high=4, log=True)
    temperature: float = Float(4.0, low=1, high=10, log=True, domain=(1e-3, math.inf))

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        soft = self.soften(student, teacher, batch)
        return dist(soft.student, soft.teacher, beta=self.beta, gamma=self.gamma, temperature=soft.temperature)
