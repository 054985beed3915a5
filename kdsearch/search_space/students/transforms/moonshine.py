"""Moonshine: cheap blocks in place of full convolutions."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kdsearch.parameters import Choice
from kdsearch.search_space.students.transforms import StudentTransform, register

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)


@register
class Moonshine(StudentTransform):
    """Replaces every k×k convolution but the first by a cheaper block of the same shape; the skeleton stays.

    For N input and M output channels, B = M / bottleneck and g = `group`, `block` is one of

    =======  ==========================================================  ========================
    block    in place of the convolution                                 parameters
    =======  ==========================================================  ========================
    Conv2x2  2×2, dilated to the same field of view                      4NM
    DConv    depthwise, pointwise                                        k²N + 2N + NM
    DConvG   g channels in a group, pointwise                            k²Ng + 2N + NM
    DConvA   g groups, pointwise                                         k²N²/g + 2N + NM
    DConv3D  depthwise, three weights that slide over the channels       k²N + 2N + 3M
    ConvB    pointwise to B, full, pointwise                             NB + 4B + k²B² + BM
    GB       pointwise to B, g channels in a group, pointwise            NB + 4B + k²Bg + BM
    AB       pointwise to B, g groups, pointwise                         NB + 4B + k²B²/g + BM
    DConvB   pointwise to B, depthwise, pointwise                        NB + 4B + k²B + BM
    =======  ==========================================================  ========================

    with batch normalisation and ReLU between the parts. `group` matters to the G and A blocks, `bottleneck` to the B
    blocks. The published name G4B2 is GB at group 4 and bottleneck 2. Convolutions that are grouped or dilated already,
    that are not square, or whose channels `group` and `bottleneck` do not divide stay as they are; the log says which.

    A follow-up of the authors scales the weight decay by the share of weights that is left; this is left to the recipe.

    Source: Crowley, Gray, Storkey, Moonshine: Distilling with Cheap Convolutions, NeurIPS 2018, section 3. Conv2x2,
    DConvA, DConv3D and AB are variants of the authors' code.
    """

    name = "moonshine"
    title = "Moonshine: Distilling with Cheap Convolutions"
    paper = "arXiv 1711.02613"
    year = 2018

    block: str = Choice("GB", ("Conv2x2", "DConv", "DConvG", "DConvA", "DConv3D", "ConvB", "GB", "AB", "DConvB"))
    group: int = Choice(4, (2, 4, 8, 16), doc="channels in a group (G), or number of groups (A)")
    bottleneck: int = Choice(2, (2, 4, 8, 16), searched=(2, 4), doc="output channels over bottleneck channels (B)")

    def apply(self, model: nn.Module) -> nn.Module:
        from kdsearch.search_space.students.networks.cheap import replace_convolutions

        done, kept = replace_convolutions(model, self.block, self.group, self.bottleneck)
        reasons = "; ".join(f"{path}: {reason}" for path, reason in kept.items())
        if not done:
            raise ValueError(f"moonshine {self.block} can replace no convolution of this student ({reasons or 'none'})")
        if kept:
            log.info(
                "moonshine %s left %d of %d convolutions as they are: %s",
                self.block,
                len(kept),
                len(kept) + done,
                reasons,
            )
        return model
