"""The fusion modules of knowledge review."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.kd_methods.adapters import BatchNorm2d, to_dtype_of, to_map
from kdsearch.kd_methods.signals import ModelSpec

WIDEST = 512


class ABF(nn.Module):
    """Attention-based fusion of one level with the residual of the next deeper one.

    `reduce` brings the stage to the common width; where there is a residual, `attend` gives each pixel two weights in
    (0, 1), for the stage and for the residual; `expand` goes on to the teacher's width.
    """

    def __init__(self, channels: int, width: int, to: int, *, fuse: bool) -> None:
        super().__init__()
        self.width = width
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.reduce_norm = BatchNorm2d(width)
        self.attend = nn.Conv2d(2 * width, 2, 1) if fuse else None
        self.expand = nn.Conv2d(width, to, 3, padding=1, bias=False)
        self.expand_norm = BatchNorm2d(to)
        nn.init.kaiming_uniform_(self.reduce.weight, a=1)
        nn.init.kaiming_uniform_(self.expand.weight, a=1)

    def forward(self, x: Tensor, residual: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The level's output at the teacher's size and width, and the residual for the next shallower level."""
        x = self.reduce_norm(self.reduce(to_dtype_of(self.reduce.weight, x)))
        if self.attend is not None and residual is not None:
            # A pointwise convolution of two stacked maps is the sum of one on each, and commutes with repeating
            # pixels: neither the stacked map nor attention at full size on the residual is ever built.
            weight, bias = self.attend.weight, self.attend.bias
            mine = F.conv2d(x, weight[:, : self.width], bias)
            theirs = F.conv2d(residual, weight[:, self.width :])
            attention = torch.sigmoid(mine + _nearest(theirs, x.shape[-2:]))
            x = torch.addcmul(x * attention[:, :1], _nearest(residual, x.shape[-2:]), attention[:, 1:])
        x = _nearest(x, size)
        return self.expand_norm(self.expand(x)), x


def _nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest-neighbour resizing; a single pixel is not copied but repeated in place."""
    size = (size[0], size[1])
    if x.shape[-2:] == size:
        return x
    return x.expand(-1, -1, *size) if x.shape[-2:] == (1, 1) else F.interpolate(x, size=size, mode="nearest")


class Review(nn.Module):
    """One fusion a level, the pooled embedding last where both models have one. Levels are in order of depth."""

    def __init__(self, student: ModelSpec, teacher: ModelSpec) -> None:
        super().__init__()
        self.student, self.teacher = student.stages, teacher.stages
        channels = [stage.channels for stage in student.stages]
        to = [stage.channels for stage in teacher.stages]
        self.pooled = student.embedding is not None and teacher.embedding is not None
        if student.embedding is not None and teacher.embedding is not None:
            channels.append(student.embedding)
            to.append(teacher.embedding)
        width = min(WIDEST, channels[-1])
        self.levels = nn.ModuleList(
            ABF(c, width, t, fuse=level < len(to) - 1) for level, (c, t) in enumerate(zip(channels, to, strict=True))
        )

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        student_embedding: Tensor | None,
        teacher_embedding: Tensor | None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Fused student maps and the teacher maps they are to match."""
        inputs = [to_map(x, s) for x, s in zip(student, self.student, strict=True)]
        targets = [to_map(x, stage) for x, stage in zip(teacher, self.teacher, strict=True)]
        if self.pooled:
            if student_embedding is None or teacher_embedding is None:
                raise ValueError("reviewkd was bound to models with embeddings, and got none")
            inputs.append(to_map(student_embedding))
            targets.append(to_map(teacher_embedding))
        if inputs[0].device.type == "cpu":  # resizing and oneDNN are faster in this layout
            inputs = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
        residual: Tensor | None = None
        fused: list[Tensor] = []
        for level, x, target in zip(reversed(self.levels), reversed(inputs), reversed(targets), strict=True):
            out, residual = level(x, residual, (target.shape[-2], target.shape[-1]))
            fused.append(out)
        return fused[::-1], targets
