"""Relational knowledge distillation: distances and angles among the samples of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import RelationMethod
from kdsearch.kd_methods.signals import Batch, Need, Needs, Signals
from kdsearch.parameters import Flag, Float

if TYPE_CHECKING:
    from torch import Tensor


def rkd(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    squared: bool = False,
) -> Tensor:
    """Huber losses between the distances of all pairs and between the angles of all triplets.

    Distances are divided by their mean over distinct rows, each side by its own; both losses are averaged over all
    B² and B³ entries, degenerate ones included.

    Args:
        student_embedding, teacher_embedding: [B, D]; D may differ, maps are flattened.
        distance_weight, angle_weight: of the two parts.
        squared: squared distances.

    Equal rows have distance zero and no direction: their angles are zero, without a gradient. A batch of one gives 0.

    Source: Park, Kim, Lu, Cho, Relational Knowledge Distillation, 2019, equations 4 to 9.
    """
    import torch.nn.functional as F

    s_distance, s_angle = _relations(student_embedding, squared)
    t_distance, t_angle = _relations(teacher_embedding, squared)
    distance = F.smooth_l1_loss(s_distance, t_distance)
    angle = F.smooth_l1_loss(s_angle, t_angle)
    return distance_weight * distance + angle_weight * angle


def _relations(embedding: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
    """Distances over their mean [B, B], and cosines [B, B, B] of the angle at the first index."""
    import torch

    from kdsearch.kd_methods.numerics import rescale, widen

    x = rescale(widen(embedding).flatten(1))  # neither relation depends on the scale
    differences = x[None, :] - x[:, None]
    length = torch.linalg.vector_norm(differences, dim=2)
    # Under this length a difference is rounding, and its direction noise with a gradient of one over that length.
    apart = length > 8 * torch.finfo(x.dtype).eps
    length = torch.where(apart, length, 0.0)
    directions = torch.where(apart, 1.0 / torch.where(apart, length, 1.0), 0.0)[:, :, None] * differences
    cosines = directions @ directions.transpose(1, 2)
    distances = length.square() if squared else length
    mean = distances.sum() / apart.sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1.0), cosines


@register
class RKD(RelationMethod):
    """Distances (25) and angles (50) of the embeddings, with the weights of the CIFAR-100 benchmarks."""

    name = "rkd"
    title = "Relational Knowledge Distillation"
    paper = "arXiv 1904.05068"
    year = 2019
    needs = Needs.of(Need.EMBEDDING)
    functional = staticmethod(rkd)

    weight: float = Float(1.0, low=0.05, high=20, log=True)
    distance_weight: float = Float(25.0, low=1, high=100, log=True, doc="of the pairs' distances")
    angle_weight: float = Float(50.0, low=1, high=200, log=True, doc="of the triplets' angles")
    squared: bool = Flag(False, doc="squared distances")

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        if student.embedding is None or teacher.embedding is None:
            raise ValueError("rkd reads the embeddings of student and teacher, and got none")
        return rkd(
            student.embedding,
            teacher.embedding,
            distance_weight=self.distance_weight,
            angle_weight=self.angle_weight,
            squared=self.squared,
        )
