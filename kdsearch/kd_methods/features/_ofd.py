"""The margins of a frozen teacher's channels, and the connectors of the student's stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdsearch.kd_methods.adapters import to_map
from kdsearch.kd_methods.features._connectors import Connectors
from kdsearch.kd_methods.method import Frozen
from kdsearch.kd_methods.numerics import doubled, widest
from kdsearch.kd_methods.signals import Need, StageSpec

RARE = 0.001
"""A channel that is negative no more often than this has no mean below zero worth the name."""

NEEDS = frozenset({Need.PREACT})


def margins_of_norm(weight: Tensor, bias: Tensor) -> Tensor:
    """The mean below zero of a normal of this mean (bias) and deviation (|weight|), by channel [C]; float64.

    Minus three deviations where it is below zero no more often than `RARE`.
    """
    mean, deviation = doubled(bias), doubled(weight).abs().clamp_min(1e-12)
    z = -mean / deviation
    below = torch.special.ndtr(z)
    density = (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi)
    return torch.where(below > RARE, mean - deviation * density / below.clamp_min(RARE), -3 * deviation)


def margins_of_sums(count: int, sums: Tensor) -> Tensor:
    """The same from measured values: `sums` [4, C] of x, of x², of those below zero and of 1 for each of these."""
    total, squares, negative, often = sums
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    return torch.where(often > RARE * count, negative / often.clamp_min(1), -3 * deviation)


def norms_before(teacher: Frozen) -> list[_BatchNorm | None]:
    """By paired stage, the batch normalisation whose output is what enters the stage's last activation, if one is.

    Told by the values: an addition in place between the two leaves the same memory with other contents.
    """
    seen: list[tuple[_BatchNorm, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, _BatchNorm)
        seen.append((module, output.detach().clone()))

    norms = [m for m in teacher.module.modules() if isinstance(m, _BatchNorm) and m.affine]
    handles = [norm.register_forward_hook(keep) for norm in norms]
    try:
        ids = torch.arange(min(2, teacher.data.samples), device=teacher.device)
        ((_, signals),) = teacher.signals(NEEDS, order=ids)
    finally:
        for handle in handles:
            handle.remove()
    return [
        next((norm for norm, value in seen if value.shape == x.shape and torch.equal(value.to(x.dtype), x)), None)
        for x in signals.preact
    ]


def find_margins(teacher: Frozen) -> list[Tensor]:
    """The margins [C] of every paired stage: of the normalisation before its activation, else measured in one pass."""
    norms = norms_before(teacher)
    stages = teacher.spec.stages
    measured = [k for k, norm in enumerate(norms) if norm is None]
    sums = {k: doubled(torch.zeros(4, stages[k].channels, device=teacher.device)) for k in measured}
    counts = dict.fromkeys(measured, 0)
    for _, signals in teacher.signals(NEEDS) if measured else ():
        for k in measured:
            x = to_map(signals.preact[k], stages[k])
            below = x.clamp_max(0)
            parts = [part.sum((0, 2, 3), dtype=widest(x.device)) for part in (x, x.square(), below, x < 0)]
            sums[k] += doubled(torch.stack(parts))
            counts[k] += x.numel() // x.shape[1]
    return [
        margins_of_sums(counts[k], sums[k]).float()
        if norm is None
        else margins_of_norm(norm.weight.detach(), norm.bias.detach()).float()
        for k, norm in enumerate(norms)
    ]


class Overhaul(nn.Module):
    """Connectors of the student's stages and the margins of the teacher's; without `prepared` these are not known."""

    def __init__(
        self, student: Sequence[StageSpec], teacher: Sequence[StageSpec], prepared: Mapping[str, Tensor] | None
    ) -> None:
        super().__init__()
        self.connect = Connectors(student, teacher)
        self.ready = prepared is not None
        for k, stage in enumerate(teacher):
            margin = torch.zeros(stage.channels) if prepared is None else prepared[str(k)].float()
            self.register_buffer(f"margin{k}", margin)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Connected student maps, teacher maps and margins of every pair."""
        connected, targets = self.connect(student, teacher)
        return connected, targets, [self.get_buffer(f"margin{k}") for k in range(len(targets))]
