"""Knowledge projection: the teacher's features, brought into the student's shape by a layer that the task trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import FeatureMethod, Stage, alone_first
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Signals
from kdsearch.parameters import Flag, Float

if TYPE_CHECKING:
    from torch import Tensor, nn


def kpn(
    student_features: Sequence[Tensor],
    projected_features: Sequence[Tensor],
    path_logits: Sequence[Tensor],
    target: Tensor,
) -> Tensor:
    """For each projection path: squared difference of features, plus the path's own cross-entropy; mean over paths.

    The difference moves the student alone, the cross-entropy the projection and what follows it alone.

    Args:
        student_features: at the injection layers, [B, C, H, W].
        projected_features: the teacher's after their projection, of the same shapes.
        path_logits: [B, classes] of the projected features' way on to the end.
        target: labels [B] or label shares [B, classes].

    Source: Zhang, Ning, He, Knowledge Projection for Effective Design of Thinner and Faster Deep Neural Networks, 2017.
    """
    return path_losses(student_features, projected_features, path_logits, target).mean()


def path_losses(
    student_features: Sequence[Tensor],
    projected_features: Sequence[Tensor],
    path_logits: Sequence[Tensor],
    target: Tensor,
) -> Tensor:
    """[paths]: what `kpn` averages, and what paths are judged by."""
    import torch
    import torch.nn.functional as F

    from kdsearch.kd_methods.numerics import widen

    return torch.stack(
        [
            F.mse_loss(widen(student), widen(projected).detach()) + F.cross_entropy(widen(logits), target)
            for student, projected, logits in zip(student_features, projected_features, path_logits, strict=True)
        ]
    )


@register
class KPN(FeatureMethod):
    """Projection paths learn the task in the student's shape; the student learns to give what they give.

    Rebuilt from the abstract and notes; neither the method section nor code could be had. A path is a 1×1 convolution
    with batch normalisation and ReLU (none for a student of tokens) from a paired teacher stage, resized to the student
    stage, and a late part after it. In the paper's first stage that late part is the student's own. A method here
    cannot run half a student, so a stand-in with the widths and strides of the student's later stages takes its place
    and is thrown away: the student's late part learns nothing in the first stage, and no gradient of the task reaches
    its early part, as published. The second stage is the paper's joint training from the first one's weights. The
    projections go on learning from the task there.

    Candidates are the recipe's pairs (`cross` gives all of them). With `prune`, each path's own loss is averaged over
    the steps and the worse half of the paths leaves, again and again, until one is left at `prune_share` of the first
    stage; of equal paths the deeper stays. The paper judges by held-out data, this by the training batches. The weight
    is our choice, as is the share of the first stage; the projections' cross-entropy bears the weight too, which only
    changes how fast they learn.
    """

    name = "kpn"
    title = "Knowledge Projection for Effective Design of Thinner and Faster Deep Neural Networks"
    paper = "arXiv 1710.09505"
    year = 2017
    reads_labels = True
    functional = staticmethod(kpn)

    weight: float = Float(0.5, low=0.1, high=10, log=True)
    staged: bool = Flag(True, searched=(True, False), doc="a stage of projection alone, before the joint training")
    projection_share: float = Float(
        0.4, low=0.2, high=0.6, domain=(0.01, 0.99), doc="the projection stage's share of the budget"
    )
    prune: bool = Flag(True, searched=(True, False), doc="the worse half of the paths leaves until one is left")
    prune_share: float = Float(0.5, low=0.2, high=0.8, domain=(0.01, 1.0), doc="of a stage, when one path is left")

    def stages(self) -> tuple[Stage, ...]:
        return alone_first("projection", self.projection_share, "joint", terms="all") if self.staged else ()

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        from kdsearch.kd_methods.features._kpn import Paths

        return Paths(student.stages, teacher.stages, data.classes)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        target = batch.target if batch.soft_target is None else batch.soft_target
        ours, projected, logits = self.parts(student.features, teacher.features)
        losses = path_losses(ours, projected, logits, target)
        if self.prune:
            self.parts.judge(losses.detach(), batch.progress / self.prune_share)
        return losses.mean()
