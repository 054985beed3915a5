"""Zipf's label smoothing: soft labels by the rank of the other classes, as the positions of the image vote for them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.logits._last_map import last_map
from kdsearch.kd_methods.method import TargetMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.parameters import Flag, Float

if TYPE_CHECKING:
    from torch import Tensor, nn


def zipf_ls(
    student_logits: Tensor,
    target: Tensor,
    *,
    votes: Tensor | None = None,
    power: float = 1.0,
    mask: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """KL of the softmax over the classes other than the label to a Zipf distribution over their ranks.

    Ranks are taken over all classes, ties sharing the best one; the label's column is dropped afterwards and the
    rest, rank ** -power, normalised. So classes without a vote all have the same probability.

    Args:
        student_logits: [B, C] with C of at least 2.
        target: [B] labels.
        votes: [B, V] class indices, counted; None ranks by the sample's own logits.
        power: exponent of the law.
        mask: only samples that are classified correctly take part; 0 where there are none.
        reduction: "mean", over the samples that take part, or "none" for [B], zero where a sample does not.

    Raises:
        ValueError: fewer than two classes, or an unknown reduction.

    Source: Liang et al., Efficient One Pass Self-distillation with Zipf's Label Smoothing, ECCV 2022, section 3.
    """
    import torch

    from kdsearch.kd_methods.numerics import widen

    classes = student_logits.shape[1]
    if classes < 2:
        raise ValueError(f"zipf_ls needs at least 2 classes, not {classes}")
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', not {reduction!r}")
    s, label = widen(student_logits), target.unsqueeze(1)
    with torch.no_grad():
        scores = s.detach()
        if votes is not None:
            scores = torch.zeros_like(s).scatter_add_(1, votes, torch.ones_like(votes, dtype=s.dtype))
        # One more than the number of classes that score higher.
        rank = 1 + classes - torch.searchsorted(scores.sort(1).values, scores.contiguous(), right=True)
        soft = rank.to(s.dtype).pow(-power).scatter(1, label, 0.0)
        soft = soft / soft.sum(1, keepdim=True)
        entropy = torch.special.entr(soft).sum(1)
    others = s.scatter(1, label, -math.inf).logsumexp(1)
    rows = others - (soft * s).sum(1) - entropy
    if not mask:
        return rows.mean() if reduction == "mean" else rows
    right = (s.argmax(1) == target).to(s.dtype)
    rows = rows * right
    return rows.sum() / right.sum().clamp(min=1) if reduction == "mean" else rows


def ballots(feature_map: Tensor, weight: Tensor, bias: Tensor | None, *, enlarge: bool = False) -> Tensor:
    """The vote of every position of a map [B, D, H, W], [B, H · W], or four times as many where it is enlarged."""
    import torch
    import torch.nn.functional as F

    with torch.no_grad():
        if enlarge:
            feature_map = F.interpolate(feature_map, scale_factor=2, mode="bilinear", align_corners=False)
        return F.linear(feature_map.to(weight.dtype).flatten(2).transpose(1, 2), weight, bias).argmax(2)


@register
class ZipfLS(TargetMethod):
    """Cross-entropy + `weight` · zipf_ls + `alpha` · cross-entropy of auxiliary heads. No teacher, one forward pass.

    Every position of the last map votes through the classifier, and every position of the two stages before the last
    through a linear head of its own, which is trained along and not exported. Defaults are CIFAR-100's; the authors
    have weight 1 and alpha 0.5 on Tiny-ImageNet, weight 0.1 and no heads on ImageNet. Votes are counted and ranked
    where the tensors are; the authors do so in a loop on the CPU. Under mixup the label of the larger share counts.
    Without `dense`, each sample's own logits are ranked, and no map is read.
    """

    name = "zipf_ls"
    title = "Efficient One Pass Self-distillation with Zipf's Label Smoothing"
    paper = "arXiv 2207.12980"
    year = 2022
    reads_labels = True
    needs = Needs.of(student=(Need.LOGITS, Need.FEATURES, Need.MAP, Need.CLASSIFIER))
    pairing = "all"
    functional = staticmethod(zipf_ls)

    weight: float = Float(0.1, low=0.02, high=2, log=True, domain=(1e-6, math.inf), doc="the paper's lambda")
    alpha: float = Float(0.1, low=0, high=1, doc="weight of the heads' cross-entropy; without it nothing trains them")
    power: float = Float(1.0, low=0.5, high=2, log=True, doc="exponent of Zipf's law")
    dense: bool = Flag(True, doc="rank by the votes of positions, not by the logits")
    enlarge: bool = Flag(True, doc="maps are enlarged twice before the vote")
    mask: bool = Flag(False, doc="only samples that are classified correctly")

    def __init__(self, **hyper: Any) -> None:
        super().__init__(**hyper)
        if not self.dense:
            # The class states what the default reads; this instance needs no map.
            self.needs = Needs.of(student=(Need.LOGITS, Need.FEATURES))  # type: ignore[misc]

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module | None:
        """The auxiliary heads; None for a student of a single stage, or with alpha = 0.

        Raises:
            ValueError: the student has no last map to vote, or fewer than two classes.
        """
        if student.classes < 2:
            raise ValueError(f"zipf_ls needs at least 2 classes, not {student.classes}")
        if self.dense:
            last_map("zipf_ls", "student", student)
        middle = student.stages[-3:-1]
        if not middle or not self.alpha:
            return None
        from kdsearch.kd_methods.targets._zipf_ls import Heads

        return Heads(middle, student.classes)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        import torch
        import torch.nn.functional as F

        maps = [] if self.parts is None else self.parts.maps(student.features[-3:-1])
        votes = None
        if self.dense:
            assert student.map is not None
            assert student.classifier is not None
            cast = [ballots(student.map, *student.classifier, enlarge=self.enlarge)]
            if self.parts is not None:
                cast += [
                    ballots(x, head.weight, head.bias, enlarge=self.enlarge)
                    for x, head in zip(maps, self.parts.heads, strict=True)
                ]
            votes = torch.cat(cast, 1)
        value = zipf_ls(student.logits, batch.target, votes=votes, power=self.power, mask=self.mask)
        if self.parts is not None:
            target = batch.target if batch.soft_target is None else batch.soft_target
            exits = torch.stack([F.cross_entropy(logits, target) for logits in self.parts(maps)]).sum()
            value = value + self.alpha / self.weight * exits  # the term as a whole is multiplied by the weight
        return value
