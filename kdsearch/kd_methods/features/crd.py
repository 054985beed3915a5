"""Contrastive representation distillation: a sample's two embeddings against those of many other samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import FeatureMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.parameters import Choice, Float, Int

if TYPE_CHECKING:
    from torch import Tensor, nn

EPS = 1e-7


def crd(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    *,
    student_bank: Tensor,
    teacher_bank: Tensor,
    index: Tensor,
    temperature: float = 0.07,
    log_z: tuple[Tensor | float, Tensor | float] | None = None,
) -> Tensor:
    """Noise-contrastive loss of student embeddings against the teacher's bank, and the other way round.

    With scores x = exp(u · v / T) / Z, noise rate c = K / N + 1e-7 and the positive in column 0:
    -mean_b [log x₀ / (x₀ + c) + Σ_k log (K / N) / (x_k + c)], both directions added.

    Args:
        student_embedding, teacher_embedding: [B, D], projected and of length one.
        student_bank, teacher_bank: [N, D], a memory of every sample.
        index: [B, 1 + K] rows of the banks, the positive first.
        temperature: T.
        log_z: logarithms of the constant Z, for student and for teacher anchors; None takes this batch's own, which
            is what the first batch of a training does.

    Both banks are read by one matrix product each, and the scores of `index` gathered from it: fifteen times as fast
    as gathering the rows, with the same values.

    Source: Tian, Krishnan, Isola, Contrastive Representation Distillation, 2020, equations 10 to 19; Z and the
    epsilon are the authors' code's.
    """
    student_scores = _scores(student_embedding, teacher_bank, index, temperature)
    teacher_scores = _scores(teacher_embedding, student_bank, index, temperature)
    samples = len(student_bank)
    z_s, z_t = log_z if log_z is not None else (None, None)
    return _contrast(student_scores, samples, z_s) + _contrast(teacher_scores, samples, z_t)


def _scores(embedding: Tensor, bank: Tensor, index: Tensor, temperature: float) -> Tensor:
    return ((embedding.to(bank.dtype) / temperature) @ bank.T).gather(1, index)


def _log_z(scores: Tensor, samples: int) -> Tensor:
    """log Z such that the mean of exp(score) / Z over this batch is 1 / N."""
    scores = scores.detach()
    return scores.flatten().logsumexp(0) - math.log(scores.numel()) + math.log(samples)


def _contrast(scores: Tensor, samples: int, log_z: Tensor | float | None) -> Tensor:
    """In logarithms throughout, where exp(1 / T) of a low temperature would leave float32."""
    import torch.nn.functional as F

    negatives = scores.shape[1] - 1
    noise = negatives / samples
    shift = math.log(noise + EPS)
    odds = scores - ((_log_z(scores, samples) if log_z is None else log_z) + shift)
    told_apart = F.logsigmoid(odds[:, 0]).sum() + F.logsigmoid(-odds[:, 1:]).sum()
    return negatives * (shift - math.log(noise)) - told_apart / len(scores)


@register
class CRD(FeatureMethod):
    """Contrast of the embeddings, with one memory of all training samples a side; weight 0.8 as published.

    Linear heads with L2 normalisation on both sides are trained along; after the scores of a step its slots of the
    memories move, keeping `nce_m` of what they were. Negatives of a sample are drawn without replacement; under
    `negatives="other_classes"` none is of its own class. `mode` is the authors': "exact" takes the sample itself as the
    positive, "relax" any of its class.
    """

    name = "crd"
    title = "Contrastive Representation Distillation"
    paper = "arXiv 1910.10699"
    year = 2020
    needs = Needs.of(Need.EMBEDDING)
    functional = staticmethod(crd)

    weight: float = Float(0.8, low=0.05, high=5, log=True)
    feat_dim: int = Int(128, low=32, high=256, step=32, domain=(1, math.inf), doc="width of the compared embeddings")
    nce_k: int = Int(
        16384, low=256, high=16384, log=True, domain=(1, math.inf), doc="negatives, at most what the data has"
    )
    nce_t: float = Float(0.07, low=0.03, high=0.3, log=True, domain=(1e-3, math.inf), doc="temperature of the scores")
    nce_m: float = Float(0.5, low=0.1, high=0.9, domain=(0.0, 1.0), doc="share of the old memory that is kept")
    negatives: str = Choice("other_classes", ("other_classes", "any"), doc="where negatives come from")
    mode: str = Choice("exact", ("exact", "relax"), searched=("exact",), doc="the positive: the sample, or its class")

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        if student.embedding is None or teacher.embedding is None:
            raise ValueError("crd compares embeddings; student and teacher must both have one")
        if data.labels is None and (self.negatives == "other_classes" or self.mode == "relax"):
            raise ValueError("crd needs the labels of the training data, unless negatives='any' and mode='exact'")
        if data.partly and (self.negatives == "other_classes" or self.mode == "relax"):
            raise ValueError("crd reads the label of every sample, and some have none; take negatives='any'")
        from kdsearch.kd_methods.features._crd import Memory

        return Memory(
            student.embedding,
            teacher.embedding,
            data.samples,
            data.labels,
            width=self.feat_dim,
            negatives=self.nce_k,
            temperature=self.nce_t,
            momentum=self.nce_m,
            other_classes=self.negatives == "other_classes",
            relax=self.mode == "relax",
        )

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return self.parts(student.embedding, teacher.embedding, batch.ids, batch.generator)
