"""Neuron selectivity transfer: channels light up at the same places, taken as a distribution over channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import FeatureMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Signals
from kdsearch.parameters import Choice, Float

if TYPE_CHECKING:
    from torch import Tensor, nn

KERNELS = ("polynomial", "linear", "gaussian")


def nst(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], *, kernel: str = "polynomial"
) -> Tensor:
    """Squared maximum mean discrepancy of L2-normalised channel maps, averaged over the batch, summed over the pairs.

    A sample's channels are a set of points, one spatial map each. The larger map of a pair is average-pooled to the
    smaller first; channels may differ. A channel that is zero everywhere is the origin.

    Args:
        student_features, teacher_features: maps [B, C, H, W], one pair an entry.
        kernel: "polynomial", (x·y)²; "linear", x·y; or "gaussian", exp(-|x - y|² / 2σ²) with σ² the mean squared
            distance of student to teacher channels in each sample, taken as a constant.

    Source: Huang, Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017, section 4.

    Raises:
        ValueError: an unknown kernel.
    """
    import torch

    from kdsearch.kd_methods.adapters import to_smaller
    from kdsearch.kd_methods.numerics import rescale, unit, widen

    if kernel not in KERNELS:
        raise ValueError(f"nst: kernel must be one of {', '.join(KERNELS)}, not {kernel!r}")
    losses = []
    for student, teacher in zip(student_features, teacher_features, strict=True):
        s, t = (unit(rescale(x).flatten(2), dim=2) for x in to_smaller(widen(student), widen(teacher)))
        if kernel == "linear":  # the mean of all products is the product of the means
            losses.append((s.mean(1) - t.mean(1)).square().sum(1).mean())
        elif kernel == "polynomial":
            losses.append(_polynomial(s, t).mean())
        else:
            losses.append(_gaussian(s, t).mean())
    return torch.stack(losses).sum()


def _polynomial(s: Tensor, t: Tensor) -> Tensor:
    """[B], from channels [B, C, H·W]."""
    if s.shape[2] <= max(s.shape[1], t.shape[1]):
        # (x·y)² is the product of the outer products xxᵀ and yyᵀ: with few positions their means are the cheaper way.
        difference = s.transpose(1, 2) @ s / s.shape[1] - t.transpose(1, 2) @ t / t.shape[1]
        return difference.square().sum((1, 2))
    own, other, mixed = s @ s.transpose(1, 2), t @ t.transpose(1, 2), s @ t.transpose(1, 2)
    return own.square().mean((1, 2)) + other.square().mean((1, 2)) - 2 * mixed.square().mean((1, 2))


def _gaussian(s: Tensor, t: Tensor) -> Tensor:
    """[B], from channels [B, C, H·W]."""
    import torch

    own, other, mixed = _distances(s, s), _distances(t, t), _distances(s, t)
    # Unit vectors are at most 4 apart, so this is a bandwidth below which a distance is rounding.
    floor = torch.finfo(s.dtype).eps ** 0.5
    scale = -0.5 / mixed.detach().mean((1, 2), keepdim=True).clamp_min(floor)
    means = [(scale * distances).exp().mean((1, 2)) for distances in (own, other, mixed)]
    return means[0] + means[1] - 2 * means[2]


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances [B, C of a, C of b]; its gradient needs no root, and is zero where two points meet."""
    lengths = a.square().sum(2).unsqueeze(2) + b.square().sum(2).unsqueeze(1)
    return (lengths - 2 * a @ b.transpose(1, 2)).clamp_min(0)


@register
class NST(FeatureMethod):
    """The distribution of channel maps, matched by maximum mean discrepancy.

    Weight 50 is the authors' for the polynomial kernel, whose code leaves out the teacher's own part: a constant. Where
    a sample has fewer positions than channels, the polynomial kernel is computed through the H·W × H·W means of the
    outer products, which is the same number.
    """

    name = "nst"
    title = "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer"
    paper = "arXiv 1707.01219"
    year = 2017
    additive = True
    spatial = True
    functional = staticmethod(nst)

    weight: float = Float(50.0, low=1, high=1000, log=True)
    kernel: str = Choice("polynomial", KERNELS, doc="between two channel maps")

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        from kdsearch.kd_methods.adapters import Layout

        return Layout(student.stages, teacher.stages)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        s, t = self.parts(student.features, teacher.features)
        return nst(s, t, kernel=self.kernel)
