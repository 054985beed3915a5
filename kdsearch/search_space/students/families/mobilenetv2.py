"""MobileNetV2 for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from kdsearch.parameters import Float, Int
from kdsearch.search_space.students.family import InputShape, StudentFamily, register

if TYPE_CHECKING:
    from torch import nn

WIDTHS = (16, 24, 32, 64, 96, 160, 320)
REPEATS = (1, 2, 3, 4, 3, 3, 1)


@register
class MobileNetV2(StudentFamily):
    """Inverted residuals with linear bottlenecks, in seven stages.

    The stem has 32 channels and the stages 16 to 320 times `width`; `last` does not grow with it (the paper's width 1.4
    has 1792 there). The defaults are the MobileNetV2 of the distillation literature: half the width, 812,836
    parameters for 100 classes. As there, activations are ReLU where the paper has ReLU6, and the first stage keeps
    its 1×1 convolution before the depthwise one, which most code for ImageNet leaves out since it does not widen.

    Stem and stages 3, 4 and 6 halve the resolution: 32×32 images end at 2×2. Smaller images are spared the first of
    these, so that 8×8 digits end at 2×2 too; above 64 pixels stage 2 halves as well, as in the paper.

    Source: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, table 2; strides for
    small images as in the knowledge-distillation literature since Tian et al., ICLR 2020.
    """

    name = "mobilenetv2"
    title = "MobileNetV2 for small images"
    paper = "arXiv 1801.04381"
    year = 2018

    width: float = Float(0.5, low=0.25, high=1.0, log=True, domain=(1 / 32, 16), doc="factor on stem and stages")
    expansion: int = Int(6, low=2, high=6, domain=(1, 64), doc="channels inside a block over those around it")
    depth: float = Float(1.0, low=0.5, high=1.5, domain=(1 / 8, 64), doc="factor on the blocks of each stage")
    last: int = Int(1280, low=320, high=1280, log=True, domain=(1, 65536), doc="channels of the last 1×1 convolution")

    def network(self, input_shape: InputShape, classes: int, branches: frozenset[str]) -> nn.Module:
        from kdsearch.search_space.students.networks.mobilenetv2 import MobileNetV2 as Network

        stem, *widths = (max(1, round(channels * self.width)) for channels in (32, *WIDTHS))
        repeats = [max(1, round(blocks * self.depth)) for blocks in REPEATS]
        return Network(input_shape, classes, stem, widths, repeats, self.expansion, self.last)

    def thinned(self, keep: float) -> Self | None:
        return self._scaled(keep)

    def widened(self, factor: float) -> Self | None:
        return self._scaled(factor)

    def _scaled(self, factor: float) -> Self | None:
        return self.changed(width=self.width * factor, last=max(1, round(self.last * factor)))
