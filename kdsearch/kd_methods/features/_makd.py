"""The decoders of masked distillation, the masks, and the global-context blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.kd_methods.adapters import resize, to_dtype_of, to_map
from kdsearch.kd_methods.features.makd import normalise
from kdsearch.kd_methods.numerics import widen
from kdsearch.kd_methods.signals import StageSpec

HEADS, MLP_RATIO = 8, 4
SEED = 0

Size = tuple[int, int]


def hidden_patches(grid: Size, ratio: float) -> int:
    """How many patches a mask hides: at least one stays visible."""
    patches = grid[0] * grid[1]
    return min(round(ratio * patches), patches - 1)


def draw_masks(count: int, grid: Size, ratio: float) -> Tensor:
    """[count, 1, h, w], 1 where a patch is hidden: the same number of patches in each, and at least one visible.

    Always the same masks, so that whoever hides patches and whoever restores them agree.
    """
    order = torch.rand(count, grid[0] * grid[1], generator=torch.Generator().manual_seed(SEED)).argsort(1)
    return (order < hidden_patches(grid, ratio)).float().unflatten(1, grid).unsqueeze(1)


class Decoder(nn.Module):
    """From the student's masked stage to the teacher's whole one.

    Args:
        grid: the common resolution of all levels, at which patches are hidden.
    """

    def __init__(self, student: StageSpec, teacher: StageSpec, grid: Size, layers: int, width: int) -> None:
        super().__init__()
        self.teacher = teacher
        self.width = min(width, teacher.channels)
        heads = math.gcd(self.width, HEADS)
        stride = (max(1, student.size[0] // grid[0]), max(1, student.size[1] // grid[1]))
        self.reduce = nn.Conv2d(student.channels, self.width, 1)
        self.align: nn.Module = nn.Conv2d(self.width, self.width, stride, stride) if max(stride) > 1 else nn.Identity()
        self.token = nn.Parameter(torch.empty(1, self.width, 1, 1).normal_(std=0.02))
        self.position = nn.Parameter(torch.empty(1, self.width, *grid).normal_(std=0.02))
        layer = [
            nn.TransformerEncoderLayer(
                self.width,
                heads,
                MLP_RATIO * self.width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        ]
        self.layers = nn.Sequential(*layer)
        self.scale = max(1, -(-teacher.size[0] // grid[0]), -(-teacher.size[1] // grid[1]))
        self.recover = nn.Conv2d(self.width, self.scale**2 * teacher.channels, 1)

    def forward(self, x: Tensor, hidden: Tensor, size: Size) -> Tensor:
        """[B, C, H, W] of this size, from a map x and the hidden patches [B, 1, h, w]."""
        grid = (hidden.shape[-2], hidden.shape[-1])
        x = self.align(self.reduce(to_dtype_of(self.reduce.weight, x)))
        x = torch.lerp(resize(x, grid), self.token, hidden.to(x.dtype)) + self.position
        x = self.layers(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, grid)
        return resize(F.pixel_shuffle(self.recover(x), self.scale), size)


class Context(nn.Module):
    """A map with its global context added: attention pooling, then a bottleneck whose last layer begins at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(1, channels // 2)
        self.attend = nn.Conv2d(channels, 1, 1)
        nn.init.kaiming_normal_(self.attend.weight, mode="fan_in")
        last = nn.Linear(narrow, channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.change = nn.Sequential(nn.Linear(channels, narrow), nn.LayerNorm(narrow), nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        share = self.attend(x).flatten(1).softmax(1)
        context = (x.flatten(2) @ share.unsqueeze(2)).squeeze(2)
        return x + self.change(context)[:, :, None, None]


class Decoders(nn.Module):
    """One decoder and two context blocks a pair, and the masks [batch, 1, h, w] of the places of a batch."""

    def __init__(
        self,
        student: Sequence[StageSpec],
        teacher: Sequence[StageSpec],
        batch: int,
        ratio: float,
        layers: int,
        width: int,
    ) -> None:
        super().__init__()
        self.student, self.teacher = tuple(student), tuple(teacher)
        grid = (min(stage.size[0] for stage in student), min(stage.size[1] for stage in student))
        self.masks: Tensor
        self.register_buffer("masks", draw_masks(batch, grid, ratio), persistent=False)
        pairs = list(zip(student, teacher, strict=True))
        self.decoders = nn.ModuleList(Decoder(s, t, grid, layers, width) for s, t in pairs)
        self.ours = nn.ModuleList(Context(t.channels) for t in teacher)
        self.theirs = nn.ModuleList(Context(t.channels) for t in teacher)

    def hidden(self, count: int) -> Tensor:
        """The masks of so many samples; beyond the largest batch they begin again."""
        whole = -(-count // len(self.masks))
        return (self.masks if whole == 1 else self.masks.repeat(whole, 1, 1, 1))[:count]

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Decoded maps and targets, both normalised, and both with their context."""
        targets = [to_map(widen(x), stage) for x, stage in zip(teacher, self.teacher, strict=True)]
        hidden = self.hidden(len(targets[0]))
        decoded = [
            normalise(decoder(to_map(x, stage), hidden, (t.shape[-2], t.shape[-1])))
            for decoder, x, stage, t in zip(self.decoders, student, self.student, targets, strict=True)
        ]
        targets = [normalise(t) for t in targets]
        ours = [block(x) for block, x in zip(self.ours, decoded, strict=True)]
        theirs = [block(x) for block, x in zip(self.theirs, targets, strict=True)]
        return decoded, targets, ours, theirs
