"""ShuffleNetV2: half of the channels pass by, the other half is worked on, and the two are shuffled."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdsearch.kd_methods.adapters import BatchNorm2d
from kdsearch.search_space.students.networks.initialise import initialise
from kdsearch.search_space.students.networks.resolution import LARGE, halvings


def shuffle(x: Tensor) -> Tensor:
    """Channels of the first and of the second half by turns, [B, C, H, W] with even C. Keeps the memory format."""
    if x.is_contiguous(memory_format=torch.channels_last):
        turned = x.permute(0, 2, 3, 1).unflatten(3, (2, -1)).transpose(3, 4)
        return turned.flatten(3).permute(0, 3, 1, 2)
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """The first half of the channels passes by; the second runs through three convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = _branch(width // 2, width // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        passing, worked = x.chunk(2, 1)
        return shuffle(torch.cat((passing, self.branch(worked)), 1))


class FirstUnit(nn.Module):
    """Both halves of the output are made of all of the input; here channels and resolution change."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        depthwise = _conv(channels, channels, 3, stride, groups=channels)
        self.shortcut = nn.Sequential(*depthwise, *_conv(channels, width // 2, 1), nn.ReLU(inplace=True))
        self.branch = _branch(channels, width // 2, stride)

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(torch.cat((self.shortcut(x), self.branch(x)), 1))


class ShuffleNetV2(nn.Module):
    """Stem, three stages of shuffle units, a last 1×1 convolution, global average pool, linear head."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        stem: int,
        kernel: int,
        widths: Sequence[int],
        repeats: Sequence[int],
        last: int,
    ) -> None:
        super().__init__()
        channels, *sides = input_shape
        side = min(sides)
        large = side > LARGE
        # A 1×1 convolution that is strided would not see three pixels of four.
        stride = 2 if large and kernel > 1 else 1
        self.stem = nn.Sequential(*_conv(channels, stem, kernel, stride), nn.ReLU(inplace=True))
        if large:
            for _ in range(2 // stride):
                self.stem.append(nn.MaxPool2d(3, 2, 1))
            side = -(-side // 4)
        even = len(widths) - halvings(side, len(widths))
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        wide = stem
        for k, (width, units) in enumerate(zip(widths, repeats, strict=True)):
            first = FirstUnit(wide, width, 1 if k < even else 2)
            stages[f"stage{k + 1}"] = nn.Sequential(first, *(ShuffleUnit(width) for _ in range(units - 1)))
            wide = width
        self.stages = nn.Sequential(stages)
        self.last = nn.Sequential(*_conv(wide, last, 1), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(last, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.stages(self.stem(x)))
        return self.head(self.pool(x).flatten(1))


def _branch(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *_conv(channels, width, 1),
        nn.ReLU(inplace=True),
        *_conv(width, width, 3, stride, groups=width),
        *_conv(width, width, 1),
        nn.ReLU(inplace=True),
    )


def _conv(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, BatchNorm2d(width)
