"""The cross-entropy with what a batch knows of its labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from kdsearch.kd_methods.signals import Batch


def label_loss(logits: Tensor, batch: Batch) -> Tensor:
    """The cross-entropy of logits [B, C] with the batch's labels, mixed ones where views are mixed.

    The mean is over what has a label, and 0 where nothing has: with few labels in a batch the learning rate keeps its
    meaning. (The code of Mean Teacher divides by the whole batch, at a learning rate tuned to that.)
    """
    import torch.nn.functional as F

    target = batch.target if batch.soft_target is None else batch.soft_target
    if not batch.partly:
        return F.cross_entropy(logits, target)
    known = batch.target.ge(0).sum() if batch.soft_target is None else batch.soft_target.sum()
    return F.cross_entropy(logits, target, reduction="sum") / known.clamp(min=1)
