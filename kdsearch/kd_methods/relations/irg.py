"""Instance relationship graph: samples as vertices, their distances as edges, and how layers transform them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import RelationMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.parameters import Choice, Float

if TYPE_CHECKING:
    from torch import Tensor, nn


def irg(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    student_vertices: Tensor,
    teacher_vertices: Tensor,
    *,
    vertex_weight: float = 0.1,
    edge_weight: float = 5.0,
    transform_weight: float = 5.0,
    edges: str = "all",
    transformation: str = "instances",
) -> Tensor:
    """Weighted sum of mean squared differences of vertices, of edges and of transformations.

    The edges of a layer are the squared distances of all pairs of samples over the largest of them. Between two layers
    that follow one another, a sample's transformation is the squared distance of its two outputs, over the largest of
    the batch; the larger map is average-pooled to the smaller, neighbouring channels are averaged to the fewer.

    Args:
        student_features, teacher_features: maps [B, C, H, W], in order of depth; one student layer a teacher layer.
        student_embedding, teacher_embedding: [B, D], a last layer that has edges, and no transformation.
        student_vertices, teacher_vertices: [B, C] of one C, the logits; read where `vertex_weight` is not 0.
        vertex_weight, edge_weight, transform_weight: of the three parts.
        edges: of "all" layers, averaged over them, or of the "embedding" alone.
        transformation: of "instances", averaged over the pairs of layers, or of whole "graphs": the mean squared change
            of the edges from layer to layer, one number for each two layers (1 and 2, 3 and 4, and so on), summed.

    Layers with equal outputs for all samples have edges and transformations of zero, without a gradient.

    Source: Liu et al., Knowledge Distillation via Instance Relationship Graph, CVPR 2019, equations 2 to 9.

    Raises:
        ValueError: unknown `edges` or `transformation`, or layers that do not pair up.
    """
    from kdsearch.kd_methods.numerics import widen

    if edges not in ("all", "embedding"):
        raise ValueError(f"irg: edges must be 'all' or 'embedding', not {edges!r}")
    if transformation not in ("instances", "graphs"):
        raise ValueError(f"irg: transformation must be 'instances' or 'graphs', not {transformation!r}")
    if len(student_features) != len(teacher_features):
        raise ValueError(f"irg: {len(student_features)} student layers for {len(teacher_features)} teacher layers")
    graphs = transformation == "graphs" and transform_weight > 0
    layers = len(student_features) if edges == "all" else len(student_features) // 2 * 2 if graphs else 0
    s_edges = [_edges(x) for x in (*student_features[:layers], student_embedding)]
    t_edges = [_edges(x) for x in (*teacher_features[:layers], teacher_embedding)]
    compared = zip(s_edges, t_edges, strict=True) if edges == "all" else [(s_edges[-1], t_edges[-1])]
    total = edge_weight * _mean([(s - t).square().mean() for s, t in compared])
    if vertex_weight:
        total = total + vertex_weight * (widen(student_vertices) - widen(teacher_vertices)).square().mean()
    if transform_weight and len(student_features) > 1:
        if graphs:
            parts = [(s - t).square() for s, t in zip(_changes(s_edges[:-1]), _changes(t_edges[:-1]), strict=True)]
            total = total + transform_weight * len(parts) * _mean(parts)
        else:
            s_steps, t_steps = _transformations(student_features), _transformations(teacher_features)
            parts = [(s - t).square().mean() for s, t in zip(s_steps, t_steps, strict=True)]
            total = total + transform_weight * _mean(parts)
    return total


def _mean(parts: list[Tensor]) -> Tensor:
    import torch

    return torch.stack(parts).mean()


def _over_largest(x: Tensor) -> Tensor:
    import torch

    largest = x.amax()
    return x / torch.where(largest > 0, largest, 1.0)


def _edges(features: Tensor) -> Tensor:
    """[B, B]."""
    import torch

    from kdsearch.kd_methods.numerics import peak_of, rows, widen

    x = rows(widen(features))
    # The largest distance takes the scale out. Shifted by the mean, distances stay, and fewer of their digits cancel.
    # Since nothing depends on them, both are constants, and one pass over x applies them.
    peak = peak_of(x)
    scale = 1.0 / torch.where(peak > 0, peak, 1.0)
    x = torch.addcmul(-(x.detach() * scale).mean(0), x, scale)
    products = x @ x.T
    squares = products.diagonal()
    distances = (squares[:, None] + squares - 2 * products).clamp(min=0)
    distances = distances.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0.0)
    # Under this the distances of equal rows are rounding, which must not be blown up to edges.
    noise = 64 * torch.finfo(x.dtype).eps * squares.detach().amax()
    return _over_largest(torch.where(distances > noise, distances, 0.0))


def _changes(graphs: Sequence[Tensor]) -> list[Tensor]:
    return [(a - b).square().mean() for a, b in zip(graphs[::2], graphs[1::2], strict=False)]


def _transformations(layers: Sequence[Tensor]) -> list[Tensor]:
    """[B] between each layer and the next."""
    return [_over_largest(_moved(a, b)) for a, b in pairwise(layers)]


def _moved(before: Tensor, after: Tensor) -> Tensor:
    """Squared distance [B] of two maps."""
    import torch
    import torch.nn.functional as F

    from kdsearch.kd_methods.adapters import to_smaller
    from kdsearch.kd_methods.numerics import peak_of, widen

    a, b = (x.flatten(2).transpose(1, 2) for x in to_smaller(widen(before), widen(after)))
    channels = min(a.shape[2], b.shape[2])
    a, b = (x if x.shape[2] == channels else F.adaptive_avg_pool1d(x, channels) for x in (a, b))
    peak = torch.maximum(peak_of(a), peak_of(b))
    return ((a - b) / torch.where(peak > 0, peak, 1.0)).square().sum((1, 2))


@register
class IRG(RelationMethod):
    """Vertices of the logits, edges of stages and embedding, transformations between the stages.

    Weights 0.1, 5 and 5 of the three parts are those of a known port of the paper's one-to-one mode; its modes in which
    one student layer learns from several teacher layers are left out. The authors' Caffe files have the embedding's
    edges alone (`edges="embedding"`, weight 0.005) and transformations within stages, where channels agree; stages are
    compared here, whose channels differ, and brought together by averaging as the port does. The largest distance has
    its part in the gradient, as in both ports; the authors hold it constant. `transformation="graphs"` is the other
    port's, which compares one number for each two layers.
    """

    name = "irg"
    title = "Knowledge Distillation via Instance Relationship Graph"
    paper = "CVPR 2019, Liu et al."
    year = 2019
    needs = Needs.of(Need.LOGITS, Need.FEATURES, Need.EMBEDDING)
    pairing = "all"
    same_classes = True
    functional = staticmethod(irg)

    weight: float = Float(1.0, low=0.05, high=20, log=True)
    vertex_weight: float = Float(0.1, low=0, high=1, doc="of the logits' difference")
    edge_weight: float = Float(5.0, low=0.5, high=50, log=True, doc="of the distances between samples")
    transform_weight: float = Float(5.0, low=0, high=20, doc="of what happens to a sample between two stages")
    edges: str = Choice("all", ("all", "embedding"), doc="which layers have edges")
    transformation: str = Choice(
        "instances", ("instances", "graphs"), searched=("instances",), doc="what is compared between two stages"
    )

    def __init__(self, **hyper: Any) -> None:
        super().__init__(**hyper)
        if not self.vertex_weight:
            # The class states what the default reads; this instance compares no logits.
            self.same_classes = False  # type: ignore[misc]

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module | None:
        if student.embedding is None or teacher.embedding is None:
            raise ValueError("irg compares embeddings; student and teacher must both have one")
        if self.vertex_weight and student.classes != teacher.classes:
            raise ValueError(
                f"irg compares logits, and the student has {student.classes} classes where the teacher has "
                f"{teacher.classes}; vertex_weight=0 leaves them out"
            )
        from kdsearch.kd_methods.adapters import Layout

        return Layout(student.stages, teacher.stages)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        assert student.embedding is not None
        assert teacher.embedding is not None
        s, t = self.parts(student.features, teacher.features)
        return irg(
            s,
            t,
            student.embedding,
            teacher.embedding,
            student.logits,
            teacher.logits,
            vertex_weight=self.vertex_weight,
            edge_weight=self.edge_weight,
            transform_weight=self.transform_weight,
            edges=self.edges,
            transformation=self.transformation,
        )
