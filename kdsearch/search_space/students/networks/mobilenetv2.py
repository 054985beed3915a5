"""MobileNetV2: inverted residuals with linear bottlenecks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from kdsearch.kd_methods.adapters import BatchNorm2d
from kdsearch.search_space.students.networks.initialise import initialise
from kdsearch.search_space.students.networks.resolution import LARGE, halvings

STEM = 0
HALVING = (STEM, 3, 4, 6)
"""The stages that halve the resolution, the stem being 0. Small images are spared the first of them."""


class InvertedResidual(nn.Module):
    """Widens by `expansion`, convolves each channel on its own, and narrows without an activation.

    The input is added where the shape allows it.
    """

    def __init__(self, channels: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = _unit(channels, wide, 1)
        self.depthwise = _unit(wide, wide, 3, stride, groups=wide)
        self.project = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(wide, width, 1, bias=False), bn=BatchNorm2d(width)),
        )
        self.adds = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.adds else out


class MobileNetV2(nn.Module):
    """Stem, seven stages of inverted residuals, a last 1×1 convolution, global average pool, linear head.

    The first stage does not widen.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        stem: int,
        widths: Sequence[int],
        repeats: Sequence[int],
        expansion: int,
        last: int,
    ) -> None:
        super().__init__()
        channels, *sides = input_shape
        places = ((2,) if min(sides) > LARGE else ()) + HALVING
        halved = places[len(places) - halvings(min(sides), len(places)) :]
        self.stem = _unit(channels, stem, 3, 2 if STEM in halved else 1)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        wide = stem
        for k, (width, blocks) in enumerate(zip(widths, repeats, strict=True), start=1):
            factor = 1 if k == 1 else expansion
            first = InvertedResidual(wide, width, factor, 2 if k in halved else 1)
            rest = (InvertedResidual(width, width, factor, 1) for _ in range(blocks - 1))
            stages[f"stage{k}"] = nn.Sequential(first, *rest)
            wide = width
        self.stages = nn.Sequential(stages)
        self.last = _unit(wide, last, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(last, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.stages(self.stem(x)))
        return self.head(self.pool(x).flatten(1))


def _unit(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=BatchNorm2d(width), relu=nn.ReLU(inplace=True)))
