"""The regressors of FitNets."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.kd_methods.adapters import BatchNorm2d, resize, to_dtype_of, to_map
from kdsearch.kd_methods.signals import StageSpec

LARGEST_KERNEL = 7
"""A kernel as wide as the difference of two sizes is meant for small differences; past this the map is pooled."""


class Regressor(nn.Module):
    """Convolution from a guided stage to its hint, with optional batch normalisation and ReLU.

    Twice the hint's size: 3×3 at stride 2. Half of it: transposed 4×4 at stride 2. A little larger: as wide as the
    difference plus one, unpadded. Everything else: 1×1, on the map brought to the hint's size.
    """

    def __init__(self, student: StageSpec, teacher: StageSpec, *, norm: bool = True, relu: bool = True) -> None:
        super().__init__()
        self.student, self.relu = student, relu
        width, to = student.channels, teacher.channels
        difference = (student.size[0] - teacher.size[0], student.size[1] - teacher.size[1])
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        self.resize_first = False
        if all(s == 2 * t for s, t in zip(student.size, teacher.size, strict=True)):
            self.conv = nn.Conv2d(width, to, 3, stride=2, padding=1)
        elif all(2 * s == t for s, t in zip(student.size, teacher.size, strict=True)):
            self.conv = nn.ConvTranspose2d(width, to, 4, stride=2, padding=1)
        elif min(difference) >= 0 and max(difference) < LARGEST_KERNEL:
            self.conv = nn.Conv2d(width, to, (1 + difference[0], 1 + difference[1]))
        else:
            self.conv = nn.Conv2d(width, to, 1)
            self.resize_first = True
        self.bn = BatchNorm2d(to) if norm else nn.Identity()

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = to_map(to_dtype_of(self.conv.weight, x), self.student)
        x = self.bn(self.conv(resize(x, size) if self.resize_first else x))
        # Trained at another resolution than measured, the sizes need not meet.
        x = resize(x, size)
        return F.relu(x) if self.relu else x


class Regressors(nn.Module):
    """One regressor a pair; gives regressed features and hints as maps."""

    def __init__(
        self, student: Sequence[StageSpec], teacher: Sequence[StageSpec], *, norm: bool = True, relu: bool = True
    ) -> None:
        super().__init__()
        self.teacher = tuple(teacher)
        self.regressors = nn.ModuleList(
            # Tokens have no rectifier behind them: a rectified regressor could not reach their negative half.
            Regressor(s, t, norm=norm, relu=relu and t.kind == "map")
            for s, t in zip(student, teacher, strict=True)
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        hints = [to_map(x, stage) for x, stage in zip(teacher, self.teacher, strict=True)]
        guided = [
            regressor(x, (hint.shape[-2], hint.shape[-1]))
            for regressor, x, hint in zip(self.regressors, student, hints, strict=True)
        ]
        return guided, hints
