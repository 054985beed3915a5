"""Attention transfer: where a stage is active, not what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import FeatureMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Signals
from kdsearch.parameters import Choice, Flag, Float, Int

if TYPE_CHECKING:
    from torch import Tensor, nn


def at(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    p: int = 2,
    attention: str = "sum",
    signed: bool = False,
    distance: str = "mse",
) -> Tensor:
    """Distance between the L2-normalised spatial attention maps of both sides, summed over the pairs.

    The larger map of a pair is average-pooled to the smaller before attention is taken; channels may differ.

    Args:
        student_features, teacher_features: maps [B, C, H, W], one pair an entry.
        p: power of the activations; with `attention="sum"`, 1 gives the paper's plain sum of magnitudes.
        attention: over channels, "sum" of |A|^p or "max" of |A|^p.
        signed: A^p in place of |A|^p, as the authors' code has it; it differs for odd p only.
        distance: "mse", the squared difference averaged over batch and positions (the authors' code, and the paper's
            own scaling of its weight by map and batch size), or "norm", half the L2 norm of each sample's difference
            (the paper's formula), averaged over the batch.

    Source: Zagoruyko, Komodakis, Paying More Attention to Attention, 2017, section 3.1, equation 2.

    Raises:
        ValueError: an unknown `attention` or `distance`.
    """
    import torch

    from kdsearch.kd_methods.adapters import to_smaller

    if distance not in ("mse", "norm"):
        raise ValueError(f"at: distance must be 'mse' or 'norm', not {distance!r}")
    losses = []
    for student, teacher in zip(student_features, teacher_features, strict=True):
        s, t = to_smaller(student, teacher)
        difference = _map(s, p, attention, signed) - _map(t, p, attention, signed)
        if distance == "mse":
            losses.append(difference.square().mean())
        else:
            losses.append(0.5 * torch.linalg.vector_norm(difference, dim=1).mean())
    return torch.stack(losses).sum()


def _map(features: Tensor, p: int, attention: str, signed: bool) -> Tensor:
    """[B, H·W], of length one."""
    from kdsearch.kd_methods.features._at import energy
    from kdsearch.kd_methods.numerics import rescale, unit, widen

    if attention == "sum" and p == 2:
        return unit(energy(widen(features)).flatten(1))
    x = rescale(widen(features))  # a normalised map does not depend on the scale, and powers overflow
    if not signed and (p % 2 or attention == "max"):
        x = x.abs()
    if attention == "sum":
        x = x.pow(p).sum(1)
    elif attention == "max":
        x = x.amax(1).pow(p) if not signed else x.pow(p).amax(1)
    else:
        raise ValueError(f"at: attention must be 'sum' or 'max', not {attention!r}")
    return unit(x.flatten(1))


@register
class AT(FeatureMethod):
    """Spatial attention maps of the paired stages. Weight 1000 is the authors', for the averaged squared difference."""

    name = "at"
    title = "Paying More Attention to Attention: Attention Transfer"
    paper = "arXiv 1612.03928"
    year = 2017
    additive = True
    spatial = True
    functional = staticmethod(at)

    weight: float = Float(1000.0, low=50, high=5000, log=True)
    p: int = Int(2, low=1, high=4, domain=(1, 8), doc="power of the activations")
    attention: str = Choice("sum", ("sum", "max"), doc="how channels are put together")
    signed: bool = Flag(False, doc="powers keep their sign, as in the authors' code")
    distance: str = Choice("mse", ("mse", "norm"), searched=("mse",), doc="between two attention maps")

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module | None:
        if all(stage.kind == "map" for stage in student.stages + teacher.stages):
            return None
        from kdsearch.kd_methods.adapters import Layout

        return Layout(student.stages, teacher.stages)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        s, t = student.features, teacher.features
        if self.parts is not None:
            s, t = self.parts(s, t)
        return at(s, t, p=self.p, attention=self.attention, signed=self.signed, distance=self.distance)
