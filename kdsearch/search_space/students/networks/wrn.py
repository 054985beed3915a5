"""The wide residual network: pre-activation basic blocks."""

from __future__ import annotations

from torch import Tensor, nn

from kdsearch.search_space.students.networks.initialise import initialise


class PreActivationBlock(nn.Module):
    """Normalisation and activation before each of two 3×3 convolutions.

    A shortcut that changes shape reads the activated input.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """Stem, three stages of `blocks` blocks, normalisation and activation, global average pool, linear head."""

    def __init__(self, channels: int, classes: int, blocks: int, stem: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, stem, 3, 1, 1, bias=False)
        self.stage1 = _stage(stem, widths[0], blocks, 1)
        self.stage2 = _stage(widths[0], widths[1], blocks, 2)
        self.stage3 = _stage(widths[1], widths[2], blocks, 2)
        self.bn = nn.BatchNorm2d(widths[2])
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[2], classes)
        initialise(self)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.head(self.pool(self.relu(self.bn(x))).flatten(1))


def _stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreActivationBlock(channels, width, stride)
    return nn.Sequential(first, *(PreActivationBlock(width, width, 1) for _ in range(blocks - 1)))
