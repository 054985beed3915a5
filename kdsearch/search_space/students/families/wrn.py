"""Wide residual networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from kdsearch.parameters import Float, Int, Value
from kdsearch.search_space.students.family import InputShape, StudentFamily, register

if TYPE_CHECKING:
    from torch import nn


@register
class WideResNet(StudentFamily):
    """Pre-activation residual network: wrn_40_2 is depth 40 at width 2.

    The stem has 16 channels, the stages 16, 32 and 64 times `width`, each times a factor of its own; the stem is no
    wider than the first stage.

    Source: Zagoruyko, Komodakis, Wide Residual Networks, BMVC 2016, table 1.
    """

    name = "wrn"
    title = "Wide residual network"
    paper = "arXiv 1605.07146"
    year = 2016

    depth: int = Int(16, low=10, high=40, step=6, domain=(10, 1204), doc="layers, 6n + 4")
    width: float = Float(1.0, low=0.5, high=4.0, log=True, domain=(1 / 16, 64), doc="widening factor k")
    width1: float = Float(1.0, low=0.5, high=2.0, log=True, domain=(1 / 16, 16), doc="further factor on stage 1")
    width2: float = Float(1.0, low=0.5, high=2.0, log=True, domain=(1 / 16, 16), doc="further factor on stage 2")
    width3: float = Float(1.0, low=0.5, high=2.0, log=True, domain=(1 / 16, 16), doc="further factor on stage 3")

    @classmethod
    def check(cls, hyper: Mapping[str, Any]) -> dict[str, Value]:
        checked = super().check(hyper)
        depth = int(checked["depth"])
        if (depth - 4) % 6:
            below = depth - (depth - 4) % 6
            raise ValueError(f"{cls.name}.depth must be 6n + 4, not {depth}; nearest: {below} and {below + 6}")
        return checked

    def network(self, input_shape: InputShape, classes: int, branches: frozenset[str]) -> nn.Module:
        from kdsearch.search_space.students.networks.wrn import WideResNet as Network

        factors = (self.width1, self.width2, self.width3)
        first, second, third = (
            max(1, round(channels * self.width * factor))
            for channels, factor in zip((16, 32, 64), factors, strict=True)
        )
        return Network(input_shape[0], classes, (self.depth - 4) // 6, min(16, first), (first, second, third))

    def thinned(self, keep: float) -> Self | None:
        return self.changed(width=self.width * keep)

    def widened(self, factor: float) -> Self | None:
        return self.changed(width=self.width * factor)
