"""Binary cross-entropy: every class a yes or no of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import TargetMethod
from kdsearch.kd_methods.signals import Batch, Need, Needs, Signals
from kdsearch.kd_methods.softening import reduce
from kdsearch.parameters import Choice, Float

if TYPE_CHECKING:
    from torch import Tensor


def bce(
    student_logits: Tensor,
    target: Tensor,
    *,
    smoothing: float = 0.0,
    average: str = "elements",
    reduction: str = "mean",
) -> Tensor:
    """Binary cross-entropy of each class's logit with its label.

    Args:
        student_logits: [B, C].
        target: [B] labels, or [B, C] mixed labels.
        smoothing: share of the label spread evenly over all C classes.
        average: over the C classes ("elements"), or their sum ("samples"), C times as large.
        reduction: "mean" over the batch, or "none" for [B].

    Raises:
        ValueError: unknown `average` or `reduction`.

    Source: Wightman, Touvron, Jégou, ResNet strikes back, 2021, section 2.
    """
    import torch.nn.functional as F

    if target.ndim == 1:
        target = F.one_hot(target, student_logits.shape[1])
    target = target.to(student_logits.dtype)
    if smoothing:
        target = target * (1 - smoothing) + smoothing / student_logits.shape[1]
    rows = F.binary_cross_entropy_with_logits(student_logits, target, reduction="none")
    if average == "elements":
        return reduce(rows.mean(1), reduction)
    if average == "samples":
        return reduce(rows.sum(1), reduction)
    raise ValueError(f"average must be 'elements' or 'samples', not {average!r}")


@register
class BCE(TargetMethod):
    """Binary cross-entropy on hard or mixed labels, in place of the cross-entropy.

    Mixed labels stay mixed: the thresholds of the source that turn them into hard ones are left out. Mixed labels are
    smoothed as hard ones are (timm's loss leaves them to its mixing, which smooths them so).
    """

    name = "bce"
    title = "ResNet strikes back: An improved training procedure in timm"
    paper = "arXiv 2110.00476"
    year = 2021
    reads_labels = True
    of_labels = True
    needs = Needs.of(student=(Need.LOGITS,))
    functional = staticmethod(bce)

    weight: float = Float(1.0, low=0.1, high=10, log=True)
    smoothing: float = Float(0.0, low=0.0, high=0.2, domain=(0, 0.999))
    average: str = Choice("elements", ["elements", "samples"], searched=["elements"], doc="over the classes")

    def label_weight(self) -> float:
        return 0.0

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        target = batch.target if batch.soft_target is None else batch.soft_target
        return bce(student.logits, target, smoothing=self.smoothing, average=self.average)
