"""Self-distillation from the last mini-batch: each batch is seen twice, and learns the second time from the first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.logits.kd import kd
from kdsearch.kd_methods.method import TargetMethod
from kdsearch.kd_methods.signals import Batch, Companion, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.kd_methods.softening import reduce
from kdsearch.parameters import Float

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

SHARE = 0.5
"""Of the cross-entropy over a step's 2B rows: what falls to the B rows of the last mini-batch."""


def dlb(
    student_logits: Tensor,
    last_logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 3.0,
    alpha: float = 0.5,
    labels: float = SHARE,
    reduction: str = "mean",
) -> Tensor:
    """labels · cross-entropy + alpha · T² · KL to the logits of the step before, both on the last mini-batch's rows.

    Args:
        student_logits: [B, C], the last mini-batch shown again in another view.
        last_logits: [B, C], what the student answered to it in the step before; detached.
        target: [B] labels, or [B, C] mixed labels.
        temperature: T.
        alpha: weight of the consistency.
        labels: these rows' share of the step's cross-entropy, a mean over the last and the present mini-batch.
        reduction: "mean", or "none" for [B].

    Source: Shen et al., Self-Distillation from the Last Mini-Batch for Consistency Regularization, CVPR 2022,
    section 3.
    """
    import torch.nn.functional as F

    rows = labels * F.cross_entropy(student_logits, target, reduction="none")
    rows = rows + alpha * kd(student_logits, last_logits.detach(), temperature=temperature, reduction="none")
    return reduce(rows, reduction)


@register
class DLB(TargetMethod):
    """The last mini-batch again, in another view, beside the present one: two forwards a sample, and no teacher.

    The cross-entropy is a mean over both, so that the recipe's own counts half. T and alpha are not stated in the
    authors' code; 3 and 0.5 stand in the names of its results. In the very first step there is no last mini-batch: it
    shows the first one's other view, with labels alone, where the authors show nothing. A plain student that is to be
    compared at equal cost trains twice as long.
    """

    name = "dlb"
    title = "Self-Distillation from the Last Mini-Batch"
    paper = "arXiv 2203.16172"
    year = 2022
    reads_labels = True
    needs = Needs.of(student=(Need.LOGITS,))
    functional = staticmethod(dlb)

    weight: float = Float(1.0, low=0.1, high=3, log=True, doc="of the labels and the consistency of these rows")
    temperature: float = Float(3.0, low=1, high=10, log=True, domain=(1e-3, math.inf))
    alpha: float = Float(0.5, low=0.1, high=3, log=True, doc="weight of the consistency")

    def label_weight(self) -> float:
        return 1.0 - SHARE

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        from kdsearch.kd_methods.targets._dlb import LastBatch

        return LastBatch(data.batch, student.classes)

    def companions(self) -> tuple[Companion, ...]:
        return (Companion("last", self._previous),)

    def _previous(self, ids: Tensor, generator: Generator | None) -> Tensor:
        previous: Tensor = self.parts.previous(ids)
        return previous

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        import torch

        again, shown = student.views["last"].logits, batch.views["last"]
        value = dlb(
            again,
            self.parts.of(shown.ids, again.detach()),
            shown.target if shown.soft_target is None else shown.soft_target,
            temperature=self.temperature,
            alpha=self.alpha,
        )
        if self.parts.training and torch.is_grad_enabled():
            self.parts.remember(batch.ids, student.logits)
        return value
