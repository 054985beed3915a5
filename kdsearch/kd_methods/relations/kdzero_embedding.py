"""KD-Zero on embeddings: three transforms, a distance, a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.decomposed.names import DISTANCES, ON_VECTORS
from kdsearch.kd_methods.method import RelationMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.parameters import Choice, Float

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
class KDZeroEmbedding(RelationMethod):
    """A candidate distiller of KD-Zero's space on the pooled embeddings; see `kdzero_features`.

    Where widths differ and the comparison needs them equal, a linear layer brings the student to the teacher's.
    Transforms of maps are left out; the Gram matrices that they make of the batch are here too.
    """

    name = "kdzero_embedding"
    title = "KD-Zero: Evolving Knowledge Distiller, on embeddings"
    paper = "NeurIPS 2023"
    year = 2023
    needs = Needs.of(Need.EMBEDDING)
    searched = False
    functional = staticmethod(kdzero_embedding)

    weight: float = Float(1.0, low=0.1, high=1000, log=True)
    first: str = Choice("identity", ON_VECTORS, doc="transform of both sides")
    second: str = Choice("identity", ON_VECTORS, doc="of what the first gives")
    third: str = Choice("identity", ON_VECTORS, doc="of what the second gives")
    distance: str = Choice("l2", DISTANCES, doc="between what the third gives")

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        from kdsearch.kd_methods.decomposed.candidate import rule
        from kdsearch.kd_methods.decomposed.joining import JoinedVectors

        if student.embedding is None or teacher.embedding is None:
            raise ValueError("kdzero_embedding compares embeddings; student and teacher must both have one")
        names = (self.first, self.second, self.third)
        return JoinedVectors(student.embedding, teacher.embedding, *rule(names, self.distance))

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        s, t = self.parts(student.embedding, teacher.embedding)
        return kdzero_embedding(
            s,
            t,
            first=self.first,
            second=self.second,
            third=self.third,
            distance=self.distance,
            generator=batch.generator,
        )
