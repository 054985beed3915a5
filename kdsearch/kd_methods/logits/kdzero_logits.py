"""KD-Zero on logits: three transforms, a distance, a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.decomposed.kdzero import Chain
from kdsearch.kd_methods.decomposed.names import DISTANCES
from kdsearch.kd_methods.method import LogitMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Signals
from kdsearch.parameters import Choice

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


def kdzero_logits(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    first: str = "identity",
    second: str = "identity",
    third: str = "identity",
    distance: str = "kl_t4",
    generator: Generator | None = None,
) -> Tensor:
    """Distance of both sides' logits after the same three transforms.

    Args:
        student_logits, teacher_logits: [B, C].
        first, second, third: names in `decomposed.names.ON_VECTORS`; `decomposed.transforms` says what each computes.
        distance: a name in `decomposed.names.DISTANCES`; a divergence has its temperature in its name.
        generator: of what `dropout` draws.

    No `reduction`: transforms may mix samples.

    Source: Li et al., KD-Zero: Evolving Knowledge Distiller for Any Teacher-Student Pairs, NeurIPS 2023.
    """
    from kdsearch.kd_methods.decomposed.candidate import candidate

    return candidate(student_logits, teacher_logits, (first, second, third), distance, generator)


@register
class KDZeroLogits(Chain, LogitMethod):
    """A candidate distiller of KD-Zero's space on the logits; see `kdzero_features`.

    Temperatures belong to the distances, as published, so that temperature policies leave it alone. The default is
    plain KD at T = 4.
    """

    name = "kdzero_logits"
    title = "KD-Zero: Evolving Knowledge Distiller, on logits"
    functional = staticmethod(kdzero_logits)

    distance: str = Choice("kl_t4", DISTANCES, doc="between what the third gives")

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module | None:
        from kdsearch.kd_methods.decomposed.joining import JoinedVectors

        JoinedVectors(student.classes, teacher.classes, *self.rule())
        return None

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return kdzero_logits(student.logits, teacher.logits, **self.steps, generator=batch.generator)
