"""The grid that a frozen teacher's stages are rounded to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kdsearch.kd_methods.adapters import to_map
from kdsearch.kd_methods.features._connectors import Connectors
from kdsearch.kd_methods.method import Frozen
from kdsearch.kd_methods.numerics import doubled, widest
from kdsearch.kd_methods.signals import Need, StageSpec

FINEST = 1e-12


def measure(teacher: Frozen) -> dict[str, Tensor]:
    """Over the training images, by paired stage: `deviation` [K] of all values, and `least` [K], the smallest one."""
    stages = teacher.spec.stages
    sums = doubled(torch.zeros(2, len(stages), device=teacher.device))
    least = torch.full((len(stages),), math.inf, device=teacher.device)
    counts = torch.zeros(len(stages), dtype=torch.float64)
    for _, signals in teacher.signals(frozenset({Need.FEATURES})):
        maps = [to_map(x, stage) for x, stage in zip(signals.features, stages, strict=True)]
        parts = [[part.sum(dtype=widest(x.device)) for part in (x, x.square())] for x in maps]
        sums += doubled(torch.stack([torch.stack(part) for part in parts], 1))
        least = torch.minimum(least, torch.stack([x.amin() for x in maps]))
        counts += torch.tensor([x.numel() for x in maps], dtype=torch.float64)
    mean, squares = sums / counts.to(sums.device)
    return {"deviation": (squares - mean.square()).clamp_min(0).sqrt().float(), "least": least}


class Grids(nn.Module):
    """Regressors of the student's stages, and step and floor of every pair's grid; unknown without `prepared`."""

    step: Tensor
    floor: Tensor

    def __init__(
        self,
        student: Sequence[StageSpec],
        teacher: Sequence[StageSpec],
        prepared: Mapping[str, Tensor] | None,
        *,
        share: float,
    ) -> None:
        super().__init__()
        self.regress = Connectors(student, teacher)
        self.ready = prepared is not None
        step, floor = torch.ones(len(teacher)), torch.zeros(len(teacher))
        if prepared is not None:
            step = (share * prepared["deviation"].float()).clamp_min(FINEST)
            floor = torch.where(prepared["least"].float() < 0, -math.inf, 0.0)
        self.register_buffer("step", step)
        self.register_buffer("floor", floor)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """Regressed student maps, teacher maps, steps and floors of every pair."""
        return *self.regress(student, teacher), self.step, self.floor
