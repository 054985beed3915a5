"""A plain convolutional network for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from kdsearch.search_space.students.networks.initialise import initialise
from kdsearch.search_space.students.networks.resolution import SMALLEST


class PlainCNN(nn.Module):
    """One convolution per stage, global average pool, linear head."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        channels, *sides = input_shape
        side = min(sides)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        for k, width in enumerate(widths):
            stride = 2 if k > 0 and side > SMALLEST else 1
            side = -(-side // stride)
            stages[f"stage{k + 1}"] = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(channels, width, 3, stride, 1, bias=False),
                    bn=nn.BatchNorm2d(width),
                    relu=nn.ReLU(inplace=True),
                )
            )
            channels = width
        self.stages = nn.Sequential(stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.stages(x)).flatten(1))
