"""ACmix: self-attention and convolution from shared projections, in place of convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.parameters import Choice
from kdsearch.search_space.students.transforms import StudentTransform, register

if TYPE_CHECKING:
    from torch import nn


@register
class ACmix(StudentTransform):
    """Replaces full 3×3 convolutions, all but the first, by ACmix modules of the same shape.

    A module has 3 (channels + 1) width + 3 width / heads + 27 heads + 81 width + 2 parameters: fewer than the
    convolution's 9 · channels · width from 16 channels on, a third of them in the limit. Multiply-accumulates are
    counted as everywhere, without the window's products (2 · window² · width a pixel).

    Where `heads` does not divide a layer's channels, it has the most heads below that do. Reflection needs a map larger
    than half the window: on smaller ones the window shrinks to what the map has, 2·side - 1. Grouped and dilated
    convolutions stay as they are; the log says which.

    The authors' code claims a bias for the grouped convolution and then has none; there is none here.

    Source: Pan et al., On the Integration of Self-Attention and Convolution, CVPR 2022, section 4.
    """

    name = "acmix"
    title = "On the Integration of Self-Attention and Convolution"
    paper = "arXiv 2111.14556"
    year = 2022

    window: int = Choice(7, (3, 5, 7, 9, 11), searched=(3, 5, 7), doc="side of the attention window")
    heads: int = Choice(4, (1, 2, 4, 8, 16), searched=(2, 4, 8), doc="attention heads at most")
    where: str = Choice("all", ("all", "late"), doc="all 3×3 convolutions, or the deeper half of them")

    def apply(self, model: nn.Module) -> nn.Module:
        from kdsearch.search_space.students.networks import acmix
        from kdsearch.search_space.students.networks.replacing import heads_for, replace_3x3

        def module(conv: nn.Conv2d) -> nn.Module:
            heads = heads_for(conv.out_channels, self.heads)
            stride = (conv.stride[0], conv.stride[1])
            return acmix.ACmix(conv.in_channels, conv.out_channels, window=self.window, heads=heads, stride=stride)

        return replace_3x3(model, self.name, module, late=self.where == "late")
