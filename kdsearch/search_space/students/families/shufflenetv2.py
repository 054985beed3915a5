"""ShuffleNetV2 for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from kdsearch.parameters import Choice, Float, Int
from kdsearch.search_space.students.family import InputShape, StudentFamily, register

if TYPE_CHECKING:
    from torch import nn

SIZES = (0.0, 0.5, 1.0, 1.5, 2.0)
CHANNELS = (0.0, 48.0, 116.0, 176.0, 244.0)
"""Channels of the first stage at the published sizes; they double from stage to stage."""

STEM = 24
REPEATS = (4, 8, 4)


@register
class ShuffleNetV2(StudentFamily):
    """Half of the channels pass each unit by; then the halves are shuffled. Three stages.

    `width` is the published size: 0.5, 1, 1.5 and 2 have 48, 116, 176 and 244 channels in the first stage, doubled
    from stage to stage; between them, and beyond, the channels follow the straight line. `last` does not follow (the
    paper's size 2 has 2048 there). The defaults are the ShuffleV2 of the distillation literature: 1,355,528 parameters
    for 100 classes, with a stem of 1×1 convolutions; `stem` 3 is the paper's.

    Each stage halves the resolution: 32×32 images end at 4×4. 8×8 digits keep theirs in the first stage and end at
    2×2; images above 64 pixels are reduced in the stem first, as in the paper.

    Source: Ma, Zhang, Zheng, Sun, ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018,
    figure 3 and table 5; stem and strides for small images as in the knowledge-distillation literature since Tian et
    al., ICLR 2020.
    """

    name = "shufflenetv2"
    title = "ShuffleNetV2 for small images"
    paper = "arXiv 1807.11164"
    year = 2018

    width: float = Float(1.0, low=0.25, high=2.0, log=True, domain=(1 / 16, 64), doc="published size of the stages")
    depth: float = Float(1.0, low=0.5, high=1.5, domain=(1 / 8, 64), doc="factor on the 4, 8 and 4 units of the stages")
    last: int = Int(1024, low=256, high=1024, log=True, domain=(1, 65536), doc="channels of the last 1×1 convolution")
    stem: int = Choice(1, (1, 3), searched=(1,), doc="side of the stem's kernel")

    def network(self, input_shape: InputShape, classes: int, branches: frozenset[str]) -> nn.Module:
        from kdsearch.search_space.students.networks.shufflenetv2 import ShuffleNetV2 as Network

        half = max(1, round(_along(self.width, SIZES, CHANNELS) / 2))
        widths = [2 * half * 2**k for k in range(3)]
        repeats = [max(1, round(units * self.depth)) for units in REPEATS]
        # Thinner than the published ones, the stem shrinks as well.
        stem = max(1, min(STEM, half))
        return Network(input_shape, classes, stem, self.stem, widths, repeats, self.last)

    def thinned(self, keep: float) -> Self | None:
        return self._scaled(keep)

    def widened(self, factor: float) -> Self | None:
        return self._scaled(factor)

    def _scaled(self, factor: float) -> Self | None:
        channels = _along(self.width, SIZES, CHANNELS) * factor
        return self.changed(width=_along(channels, CHANNELS, SIZES), last=max(1, round(self.last * factor)))


def _along(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """The line through the points (xs, ys) at x; its last piece goes on."""
    k = next((k for k in range(1, len(xs) - 1) if x <= xs[k]), len(xs) - 1)
    return ys[k - 1] + (x - xs[k - 1]) * (ys[k] - ys[k - 1]) / (xs[k] - xs[k - 1])
