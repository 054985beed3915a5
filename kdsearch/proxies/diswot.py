"""DisWOT: how alike an untrained student and its teacher see a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from kdsearch.parameters import Choice
from kdsearch.proxies.catalogue import Proxy, register

if TYPE_CHECKING:
    from torch import Tensor, nn


def relation_similarity(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """-Σ (difference of the row-normalised B×B Gram matrices)² / B² of the last maps before pooling, [B, C, H, W]
    each.
    """
    from kdsearch.kd_methods.relations.sp import sp

    return -sp(student_map, teacher_map)


def semantic_similarity(student_gradient: Tensor, teacher_gradient: Tensor) -> Tensor:
    """-Σ (difference of the row-normalised C×C outer products, class by class)² / (C K).

    Both are the cross-entropy's gradient on the classifier's weight, [K classes, C channels], of the same width C. The
    outer products themselves are never built: row i of g gᵀ, normalised, is sign(g_i) g / |g|.

    Raises:
        ValueError: the widths differ.
    """
    import torch
    import torch.nn.functional as F

    from kdsearch.kd_methods.relations.diswot_distiller import outer_distance

    if student_gradient.shape != teacher_gradient.shape:
        there, here = tuple(teacher_gradient.shape), tuple(student_gradient.shape)
        raise ValueError(f"semantic similarity needs classifiers of one shape; teacher {there}, student {here}")

    def rows(gradient: Tensor) -> Tensor:
        """Each row's sign and length after normalisation, [K, C]: 1 but for rows shorter than the norm's epsilon."""
        length = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        return gradient.sign() * (gradient.abs() * length / 1e-12).clamp(max=1)

    cosine = (F.normalize(student_gradient) * F.normalize(teacher_gradient)).sum(1)
    return -outer_distance(rows(student_gradient), rows(teacher_gradient), cosine)


@register
class DisWOT(Proxy):
    """Relation similarity plus semantic similarity of both networks at random initialisation, batch statistics in
    force.

    The two are added as the paper writes them; the semantic part is a hundred times larger, so that the sum orders
    as it does alone. The paper's pairs have classifiers of one width; where widths differ, the wider gradient's
    channels are averaged down to the narrower width (ours), so that all students are scored on one scale. A teacher
    of other classes leaves the relation alone. `init` is the paper's N(0, 1) or the layers' own.

    On the 64-network benchmark of the paper this orders students less well than their parameter count does: look at
    `params` beside it.

    Source: Dong, Li, Wei, DisWOT: Student Architecture Search for Distillation WithOut Training, CVPR 2023, section 3.
    """

    name = "diswot"
    title = "Semantic and relation similarity of untrained networks"
    paper = "arXiv 2303.15678"
    year = 2023
    needs_teacher = True

    part: str = Choice("sum", ["sum", "relation", "semantic"])
    init: str = Choice("gaussian", ["gaussian", "default"])

    def measure(
        self, student: nn.Module, teacher: nn.Module | None, images: Tensor, target: Tensor, *, seed: int
    ) -> float:
        from kdsearch.proxies._fresh import fresh
        from kdsearch.proxies._last import last_map_and_gradient

        assert teacher is not None
        gaussian = self.init == "gaussian"
        images, target = images.cpu().float(), target.cpu()
        s_map, s_gradient = last_map_and_gradient(fresh(student, seed, gaussian=gaussian), images, target)
        t_map, t_gradient = _of_teacher(teacher, images, target, seed, gaussian)
        parts = []
        if self.part != "semantic":
            parts.append(relation_similarity(s_map, t_map))
        if self.part == "semantic" or (self.part == "sum" and len(s_gradient) == len(t_gradient)):
            parts.append(semantic_similarity(*_one_width(s_gradient, t_gradient)))
        return float(sum(parts))


def _one_width(student_gradient: Tensor, teacher_gradient: Tensor) -> tuple[Tensor, Tensor]:
    import torch.nn.functional as F

    width = min(student_gradient.shape[1], teacher_gradient.shape[1])

    def narrow(gradient: Tensor) -> Tensor:
        return gradient if gradient.shape[1] == width else F.adaptive_avg_pool1d(gradient[None], width)[0]

    return narrow(student_gradient), narrow(teacher_gradient)


_Seen = tuple[int, bool, "Tensor", "Tensor", "tuple[Tensor, Tensor]"]
_TEACHERS: WeakKeyDictionary[nn.Module, _Seen] = WeakKeyDictionary()
"""What a teacher said of the batch it was shown last: its own weights play no part, and a search shows it the same."""


def _of_teacher(teacher: nn.Module, images: Tensor, target: Tensor, seed: int, gaussian: bool) -> tuple[Tensor, Tensor]:
    import torch

    from kdsearch.proxies._fresh import fresh
    from kdsearch.proxies._last import last_map_and_gradient

    seen = _TEACHERS.get(teacher)
    if (
        seen is None
        or seen[:2] != (seed, gaussian)
        or not (torch.equal(seen[2], images) and torch.equal(seen[3], target))
    ):
        # Another seed than the student's: equal architectures would be equal networks, and as alike as can be.
        found = last_map_and_gradient(fresh(teacher, seed + 1, gaussian=gaussian), images, target)
        seen = (seed, gaussian, images.clone(), target.clone(), found)
        _TEACHERS[teacher] = seen
    return seen[4]
