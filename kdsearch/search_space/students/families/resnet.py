"""The residual networks of the CIFAR literature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from kdsearch.parameters import Float, Int, Value
from kdsearch.search_space.students.family import InputShape, StudentFamily, register

if TYPE_CHECKING:
    from torch import nn


@register
class ResNet(StudentFamily):
    """Three stages of basic blocks at full, half and quarter resolution.

    resnet20 is depth 20, resnet8x4 is depth 8 at width 4. Stages have 16, 32 and 64 channels times `width`, each times
    a factor of its own. The stem has 16; where the first stage is wider than 32 it has half of that stage, as the
    literature's ×4 networks do. Shortcuts that change shape are 1×1 convolutions.

    Source: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2; widths and
    shortcuts as in the knowledge-distillation literature since Tian et al., ICLR 2020.
    """

    name = "resnet"
    title = "Residual network for small images"
    paper = "arXiv 1512.03385"
    year = 2016

    depth: int = Int(20, low=8, high=56, step=6, domain=(8, 1202), doc="layers, 6n + 2")
    width: float = Float(1.0, low=0.25, high=2.0, log=True, domain=(1 / 16, 64), doc="factor on all channels")
    width1: float = Float(1.0, low=0.5, high=2.0, log=True, domain=(1 / 16, 16), doc="further factor on stage 1")
    width2: float = Float(1.0, low=0.5, high=2.0, log=True, domain=(1 / 16, 16), doc="further factor on stage 2")
    width3: float = Float(1.0, low=0.5, high=2.0, log=True, domain=(1 / 16, 16), doc="further factor on stage 3")

    @classmethod
    def check(cls, hyper: Mapping[str, Any]) -> dict[str, Value]:
        checked = super().check(hyper)
        depth = int(checked["depth"])
        if (depth - 2) % 6:
            below = depth - (depth - 2) % 6
            raise ValueError(f"{cls.name}.depth must be 6n + 2, not {depth}; nearest: {below} and {below + 6}")
        return checked

    def network(self, input_shape: InputShape, classes: int, branches: frozenset[str]) -> nn.Module:
        from kdsearch.search_space.students.networks.resnet import ResNet as Network

        factors = (self.width1, self.width2, self.width3)
        first, second, third = (
            max(1, round(channels * self.width * factor))
            for channels, factor in zip((16, 32, 64), factors, strict=True)
        )
        stem = max(min(16, first), first // 2)
        return Network(input_shape[0], classes, [(self.depth - 2) // 6] * 3, stem, (first, second, third))

    def thinned(self, keep: float) -> Self | None:
        return self.changed(width=self.width * keep)

    def widened(self, factor: float) -> Self | None:
        return self.changed(width=self.width * factor)
