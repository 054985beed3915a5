"""A small plain convolutional network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from kdsearch.parameters import Int
from kdsearch.search_space.students.family import InputShape, StudentFamily, register

if TYPE_CHECKING:
    from torch import nn


@register
class PlainCNN(StudentFamily):
    """3×3 convolutions, batch normalisation and ReLU, one per stage; the channels double from stage to stage.

    From the second stage on the resolution is halved while it exceeds two pixels, so that 8×8 digits are as welcome
    as 32×32 photographs.

    Source: the design of LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document Recognition,
    1998, with the normalisation and activation of today.
    """

    name = "cnn"
    title = "Plain convolutional network"
    paper = "doi 10.1109/5.726791"
    year = 1998

    channels: int = Int(16, low=2, high=64, log=True, domain=(2, 4096), doc="channels of the first stage")
    stages: int = Int(3, low=2, high=3, domain=(1, 8), doc="convolutions")

    def network(self, input_shape: InputShape, classes: int, branches: frozenset[str]) -> nn.Module:
        from kdsearch.search_space.students.networks.cnn import PlainCNN as Network

        widths = [self.channels * 2**k for k in range(self.stages)]
        return Network(input_shape, classes, widths)

    def thinned(self, keep: float) -> Self | None:
        return self.changed(channels=max(2, round(self.channels * keep)))

    def widened(self, factor: float) -> Self | None:
        return self.changed(channels=max(2, round(self.channels * factor)))
