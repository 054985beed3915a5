"""Universal self-distillation: the label smoothed by the student's own confidence, the other classes ranked by Zipf."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import TargetMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.kd_methods.softening import reduce
from kdsearch.parameters import Choice, Float

if TYPE_CHECKING:
    from torch import Tensor, nn


def uskd(
    student_logits: Tensor,
    weak_logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.1,
    beta: float = 0.1,
    mu: float = 0.1,
    ranking: str = "probabilities",
    smoothing: float = 0.1,
    reduction: str = "mean",
) -> Tensor:
    """alpha · target part + beta · non-target part + mu · cross-entropy of the weak head on smoothed labels.

    The target part is the cross-entropy with the weight p² + 1 - mean over the batch of p², p being the student's
    probability of the label, as a constant. The non-target part is the cross-entropy of the softmax over the other
    classes to Zipf weights 1 / rank, where student and weak head are ranked together; ranks count the label too.

    Args:
        student_logits, weak_logits: [B, C] with C of at least 2; the weak ones come from a middle feature.
        target: [B] labels, or [B, C] mixed labels, whose two largest shares count as labels.
        ranking: what is added to rank classes. "probabilities" of both sides, each over its sum without the label, is
            the paper's. "log_probabilities" is the authors' code, where the student's have been replaced by their
            logarithms when they are added: two rankings that agree in few positions.
        smoothing: of the weak head's labels.
        reduction: "mean", or "none" for [B].

    Raises:
        ValueError: an unknown `ranking`, or fewer than two classes.

    Source: Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023, section 3.
    """
    import torch

    from kdsearch.kd_methods.numerics import widen

    classes = student_logits.shape[1]
    if classes < 2:
        raise ValueError(f"uskd needs at least 2 classes, not {classes}")
    if ranking not in ("probabilities", "log_probabilities"):
        raise ValueError(f"ranking must be 'probabilities' or 'log_probabilities', not {ranking!r}")
    s, w = widen(student_logits), widen(weak_logits)
    if target.ndim == 2:
        share, label = target.to(s.dtype).topk(2, dim=1)
    else:
        label = target.unsqueeze(1)
        share = torch.ones_like(label, dtype=s.dtype)
    is_label = torch.zeros_like(s, dtype=torch.bool).scatter_(1, label, share > 0)

    log_p, log_w = s.log_softmax(1), w.log_softmax(1)
    picked = log_p.gather(1, label)
    confidence = picked.detach().exp().square()
    soft = torch.where(share > 0, confidence + share - confidence.mean(0), 0.0)
    of_target = -(soft * picked).sum(1)

    on_label = (target.to(s.dtype) * log_w).sum(1) if target.ndim == 2 else log_w.gather(1, label).squeeze(1)
    of_weak = -((1 - smoothing) * on_label + smoothing * log_w.mean(1))

    rows = alpha * of_target + mu * of_weak
    if classes > label.shape[1]:  # two classes, both of them labels, leave no other
        zipf = _zipf(log_p.detach(), log_w.detach(), is_label, ranking)
        others = s.masked_fill(is_label, -math.inf).logsumexp(1)
        rows = rows + beta * (others - (zipf * s).sum(1))
    return reduce(rows, reduction)


def _zipf(log_p: Tensor, log_w: Tensor, is_label: Tensor, ranking: str) -> Tensor:
    """[B, C]: 1 / rank without the labels, normalised."""
    import torch

    if ranking == "probabilities":
        # p / (1 - p of the labels), without the difference that a confident student rounds to 0.
        s, w = ((x - x.masked_fill(is_label, -math.inf).logsumexp(1, keepdim=True)).exp() for x in (log_p, log_w))
    else:
        p_w = log_w.exp()
        w = p_w / (1 - (p_w * is_label).sum(1, keepdim=True) + 1e-6)
        s = log_p / (1 - (log_p * is_label).sum(1, keepdim=True) + 1e-6)
    order = (s + w).argsort(stable=True, dim=1, descending=True)
    law = torch.arange(1, order.shape[1] + 1, dtype=log_p.dtype, device=log_p.device).reciprocal()
    weights = torch.zeros_like(log_p).scatter_(1, order, law.expand_as(log_p)).masked_fill_(is_label, 0.0)
    return weights / weights.sum(1, keepdim=True)


@register
class USKD(TargetMethod):
    """uskd beside full cross-entropy. No teacher; the weak head on the last stage but one is not exported.

    alpha = beta = mu = 0.1 are CIFAR-100's; ImageNet has 1, 0.1 and 0.005. The feature is the stage's mean over
    positions, or its class token where it has one. The authors' code ranks by other scores than the paper: `ranking`.
    """

    name = "uskd"
    title = "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss"
    paper = "arXiv 2303.13005"
    year = 2023
    reads_labels = True
    needs = Needs.of(student=(Need.LOGITS, Need.FEATURES))
    pairing = "all"
    functional = staticmethod(uskd)

    weight: float = Float(1.0, low=0.1, high=10, log=True)
    alpha: float = Float(0.1, low=0.01, high=2, log=True, doc="weight of the target part")
    beta: float = Float(0.1, low=0.01, high=1, log=True, doc="weight of the non-target part")
    mu: float = Float(0.1, low=0.001, high=1, log=True, doc="weight of the weak head's cross-entropy")
    ranking: str = Choice(
        "probabilities", ["probabilities", "log_probabilities"], searched=["probabilities"], doc="what is ranked"
    )

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        """The weak head.

        Raises:
            ValueError: fewer than two classes.
        """
        if student.classes < 2:
            raise ValueError(f"uskd needs at least 2 classes, not {student.classes}")
        from kdsearch.kd_methods.targets._uskd import WeakHead

        return WeakHead(student.stages[-2:][0], student.classes)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return uskd(
            student.logits,
            self.parts(student.features[-2:][0]),
            batch.target if batch.soft_target is None else batch.soft_target,
            alpha=self.alpha,
            beta=self.beta,
            mu=self.mu,
            ranking=self.ranking,
        )
