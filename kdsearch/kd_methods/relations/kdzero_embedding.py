"""KD-Zero on embeddings: three transforms, a distance, a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.decomposed.kdzero import Chain
from kdsearch.kd_methods.method import RelationMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


def kdzero_embedding(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    *,
    first: str = "identity",
    second: str = "identity",
    third: str = "identity",
    distance: str = "l2",
    generator: Generator | None = None,
) -> Tensor:
    """Distance of both sides' embeddings after the same three transforms.

    Args:
        student_embedding, teacher_embedding: [B, D] whose transformed shapes are equal.
        first, second, third: names in `decomposed.names.ON_VECTORS`; `decomposed.transforms` says what each computes.
        distance: a name in `decomposed.names.DISTANCES`.
        generator: of what `dropout` draws.

    Source: Li et al., KD-Zero: Evolving Knowledge Distiller for Any Teacher-Student Pairs, NeurIPS 2023.
    """
    from kdsearch.kd_methods.decomposed.candidate import candidate

    return candidate(student_embedding, teacher_embedding, (first, second, third), distance, generator)


@register
class KDZeroEmbedding(Chain, RelationMethod):
    """A candidate distiller of KD-Zero's space on the pooled embeddings; see `kdzero_features`.

    Where widths differ and the comparison needs them equal, a linear layer brings the student to the teacher's.
    Transforms of maps are left out; the Gram matrices that they make of the batch are here too.
    """

    name = "kdzero_embedding"
    title = "KD-Zero: Evolving Knowledge Distiller, on embeddings"
    needs = Needs.of(Need.EMBEDDING)
    functional = staticmethod(kdzero_embedding)

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        from kdsearch.kd_methods.decomposed.joining import JoinedVectors

        if student.embedding is None or teacher.embedding is None:
            raise ValueError("kdzero_embedding compares embeddings; student and teacher must both have one")
        return JoinedVectors(student.embedding, teacher.embedding, *self.rule())

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        s, t = self.parts(student.embedding, teacher.embedding)
        return kdzero_embedding(s, t, **self.steps, generator=batch.generator)
