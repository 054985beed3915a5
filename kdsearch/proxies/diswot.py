"""DisWOT: how alike an untrained student and its teacher see a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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


def first_image_similarity(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """-Σ (difference of the row-normalised C×C Gram matrices)² / C² of the first image's maps alone.

    What the authors' scripts for S1 and NAS-Bench-201 compute: they pass tensors where the loss takes lists of them.

    Raises:
        ValueError: the maps differ in their channels.
    """
    from kdsearch.kd_methods.relations.sp import sp

    _same_channels(student_map, teacher_map)
    return -sp(student_map[0], teacher_map[0])


def channel_similarity(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """-Σ (difference of the row-normalised C×C Gram matrices of each image)² / (C B), the loss of ICKD.

    Raises:
        ValueError: the maps differ in their channels.
    """
    from torch.nn.functional import normalize

    def correlation(maps: Tensor) -> Tensor:
        rows = maps.flatten(2)
        return normalize(rows @ rows.mT, dim=2)

    _same_channels(student_map, teacher_map)
    apart = (correlation(student_map) - correlation(teacher_map)).square().sum()
    return -apart / (student_map.shape[0] * student_map.shape[1])


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


def z_scored_sum(relation_scores: Sequence[float] | Tensor, semantic_scores: Sequence[float] | Tensor) -> Tensor:
    """The two parts, each standardised over a population of students, and added: [N] scores of [N] and [N].

    The plain sum orders as the semantic part alone, which is a hundred times larger. Standardising needs a population,
    so this is a function of many students' scores and not an option of a single one's. A part that is the same for all
    counts for nothing; what is not finite stays out of both statistics and scores -inf.

    Raises:
        ValueError: other than two rows of one length.
    """
    import torch

    rows = [torch.as_tensor(scores, dtype=torch.float64) for scores in (relation_scores, semantic_scores)]
    if rows[0].ndim != 1 or rows[0].shape != rows[1].shape:
        shapes = [tuple(row.shape) for row in rows]
        raise ValueError(f"z_scored_sum takes two rows of one length, not shapes {shapes[0]} and {shapes[1]}")
    usable = rows[0].isfinite() & rows[1].isfinite()
    total = torch.full_like(rows[0], -torch.inf)
    total[usable] = 0.0
    for row in rows if usable.any() else []:
        centred = row[usable] - row[usable].mean()
        spread = centred.square().mean().sqrt()
        if spread > 1e-12 * row[usable].abs().max():  # else rounding
            total[usable] += centred / spread
    return total


@register
class DisWOT(Proxy):
    """Relation similarity plus semantic similarity of both networks at random initialisation, batch statistics in
    force.

    The batch is part of the score: the authors take 128 images for S1, 64 for NAS-Bench-201 on CIFAR-10, 32 for
    ImageNet. The two parts are added as the paper writes them; the semantic part is a hundred times larger, so that the
    sum orders as it does alone (`z_scored_sum` of many students' parts is the sum that hears both). The paper's pairs
    have classifiers of one width; where widths differ, the wider channels are averaged down to the narrower width
    (ours), so that all students are scored on one scale. A teacher of other classes leaves the relation alone. `init`
    is the paper's N(0, 1) or the layers' own.

    Variants of the published code: `similarity` "first_image" compares the channels of the first image only, as its
    scripts for S1 and NAS-Bench-201 do, and "channels" those of all images (ICKD, which the paper compares itself to);
    `gradient` "weight" takes the classifier's weights for their gradient, as its random search does.

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
    similarity: str = Choice("samples", ["samples", "channels", "first_image"], doc="what the relation part compares")
    gradient: str = Choice("loss", ["loss", "weight"], doc="what the semantic part reads off the classifier")
    init: str = Choice("gaussian", ["gaussian", "default"])

    def measure(
        self, student: nn.Module, teacher: nn.Module | None, images: Tensor, target: Tensor, *, seed: int
    ) -> float:
        import torch

        from kdsearch.proxies._teachers import remembered

        assert teacher is not None
        images, target = images.detach().cpu().float(), target.detach().cpu()
        with torch.enable_grad():
            s_map, s_read = self._seen(student, images, target, seed)
            question = (self.name, seed, self.init, self._reads)
            # Another seed than the student's: equal architectures would be equal networks, and as alike as can be.
            t_map, t_read = remembered(
                teacher, question, images, target, lambda: self._seen(teacher, images, target, seed + 1)
            )
        parts = []
        if self.part != "semantic":
            parts.append(self._relation(s_map, t_map))
        if s_read is not None and t_read is not None and (self.part == "semantic" or len(s_read) == len(t_read)):
            parts.append(semantic_similarity(*_one_width(s_read, t_read)))
        return float(sum(parts))

    @property
    def _reads(self) -> str | None:
        return None if self.part == "relation" else self.gradient

    def _seen(self, network: nn.Module, images: Tensor, target: Tensor, seed: int) -> tuple[Tensor, Tensor | None]:
        from kdsearch.proxies._fresh import fresh
        from kdsearch.proxies._last import map_and_classifier

        model = fresh(network, seed, gaussian=self.init == "gaussian")
        return map_and_classifier(model, images, target, self._reads)

    def _relation(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        if self.similarity == "samples":
            return relation_similarity(student_map, teacher_map)
        maps = _one_width(_channels_first(student_map), _channels_first(teacher_map))
        return (channel_similarity if self.similarity == "channels" else first_image_similarity)(*maps)


def _channels_first(found: Tensor) -> Tensor:
    """Maps [B, C, H, W] as they are, tokens [B, N, D] as [B, D, N], embeddings [B, C] as [B, C, 1]."""
    if found.ndim == 3:
        return found.mT
    return found.unsqueeze(-1) if found.ndim == 2 else found


def _one_width(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the channels, dimension 1, of the narrower one."""
    import torch.nn.functional as F

    width = min(student.shape[1], teacher.shape[1])

    def narrow(found: Tensor) -> Tensor:
        if found.shape[1] == width:
            return found
        return (
            F.adaptive_avg_pool1d(found.movedim(1, -1).flatten(1, -2) if found.ndim > 2 else found, width)
            .view(found.shape[0], *found.shape[2:], width)
            .movedim(-1, 1)
        )

    return narrow(student), narrow(teacher)


def _same_channels(student_map: Tensor, teacher_map: Tensor) -> None:
    if student_map.shape[1] != teacher_map.shape[1]:
        here, there = student_map.shape[1], teacher_map.shape[1]
        raise ValueError(f"maps of one width are compared; the student's has {here} channels, the teacher's {there}")
