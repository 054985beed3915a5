"""KD-Zero on stage features: three transforms, a distance, a weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.decomposed.kdzero import Chain
from kdsearch.kd_methods.decomposed.names import TRANSFORMS
from kdsearch.kd_methods.method import FeatureMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Signals
from kdsearch.parameters import Choice

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


def kdzero_features(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    first: str = "identity",
    second: str = "identity",
    third: str = "identity",
    distance: str = "l2",
    generator: Generator | None = None,
) -> Tensor:
    """Distance of both sides' maps after the same three transforms, summed over the pairs.

    Args:
        student_features, teacher_features: maps [B, C, H, W], one pair an entry, whose transformed shapes are equal.
        first, second, third: names in `decomposed.names.TRANSFORMS`; `decomposed.transforms` says what each computes.
        distance: a name in `decomposed.names.DISTANCES`.
        generator: of what `mask` and `dropout` draw.

    Source: Li et al., KD-Zero: Evolving Knowledge Distiller for Any Teacher-Student Pairs, NeurIPS 2023.
    """
    import torch

    from kdsearch.kd_methods.decomposed.candidate import candidate

    names = (first, second, third)
    pairs = zip(student_features, teacher_features, strict=True)
    return torch.stack([candidate(s, t, names, distance, generator) for s, t in pairs]).sum()


@register
class KDZeroFeatures(Chain, FeatureMethod):
    """A candidate distiller of KD-Zero's space on the paired stages; the published input is the last one.

    A chain that does not fit its stages, or says the same of every student, is invalid. Where shapes differ, both maps
    are brought to the smaller size and the student to the teacher's width by a 1×1 convolution with batch
    normalisation, as far as the comparison needs it. The operators are those of the authors' later code, which is the
    likeliest source: the paper's own code is not public. Its factors on the weight are left out: the teacher's softmax
    over the batch has the mean 1 / B whatever it reads, and the cosine makes the loss grow with the similarity. The
    default chain is the plain squared difference, which is ours.
    """

    name = "kdzero_features"
    title = "KD-Zero: Evolving Knowledge Distiller, on features"
    additive = True
    spatial = True
    functional = staticmethod(kdzero_features)

    first: str = Choice("identity", TRANSFORMS, doc="transform of both sides")
    second: str = Choice("identity", TRANSFORMS, doc="of what the first gives")
    third: str = Choice("identity", TRANSFORMS, doc="of what the second gives")

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        from kdsearch.kd_methods.decomposed.joining import JoinedStages

        return JoinedStages(student.stages, teacher.stages, *self.rule())

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        pairs = self.parts(student.features, teacher.features)
        s, t = [s for s, _ in pairs], [t for _, t in pairs]
        return kdzero_features(s, t, **self.steps, generator=batch.generator)
