"""Networks of NAS-Bench-201: one cell of four nodes, stacked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdsearch.kd_methods.adapters import BatchNorm2d
from kdsearch.search_space.students.networks.initialise import initialise

NODES = 4
EDGE = "edge{}{}"
"""From node, to node."""

ZERO = "none"


class Cell(nn.Module):
    """Each node is the sum of what the edges from all nodes before it bring; the last node is the output."""

    def __init__(self, edges: Mapping[str, str], channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict({e: _operation(name, channels) for e, name in edges.items() if name != ZERO})

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for k in range(1, NODES):
            leading = [(j, EDGE.format(j, k)) for j in range(k)]
            brought = [self.edges[edge](nodes[j]) for j, edge in leading if edge in self.edges]
            total = brought[0] if brought else torch.zeros_like(x)
            for term in brought[1:]:
                total = total + term
            nodes.append(total)
        return nodes[-1]


class Reduction(nn.Module):
    """A residual block at half the resolution; its shortcut is an average pooling and a 1×1 convolution."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, width, 3, 2)
        self.conv2 = _convolution(width, width, 3)
        # Where a side is odd, the last window is smaller, so that both ways end at the same size.
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(channels, width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv2(self.conv1(x))


class NASBench201(nn.Module):
    """Stem, three stages of `cells` cells with a reduction before the second and third, normalisation and activation,
    global average pool, linear head."""

    def __init__(self, channels: int, classes: int, width: int, cells: int, edges: Mapping[str, str]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(channels, width, 3, 1, 1, bias=False), bn=BatchNorm2d(width))
        )
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        for k in range(3):
            wide = width * 2**k
            first = [Reduction(wide // 2, wide)] if k else []
            stages[f"stage{k + 1}"] = nn.Sequential(*first, *(Cell(edges, wide) for _ in range(cells)))
        self.stages = nn.Sequential(stages)
        self.bn = BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        return self.head(self.pool(self.relu(self.bn(x))).flatten(1))


def _operation(name: str, channels: int) -> nn.Module:
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return _convolution(channels, channels, 1 if name == "nor_conv_1x1" else 3)


def _convolution(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Activation, convolution, normalisation. The input is another edge's as well: it is not activated in place."""
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=conv, bn=BatchNorm2d(width)))
