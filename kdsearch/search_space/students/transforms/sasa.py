"""Stand-alone self-attention in place of convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.parameters import Choice
from kdsearch.search_space.students.transforms import StudentTransform, register

if TYPE_CHECKING:
    from torch import nn


@register
class SASA(StudentTransform):
    """Replaces full 3×3 convolutions, all but the first, by local self-attention; strides become average pools.

    A layer has 3 · channels · width + window · width parameters against the convolution's 9 · channels · width.
    Multiply-accumulates are counted as everywhere, without the window's products (3 · window² · width a pixel).
    Attention helps most in the later layers (abstract), which is what `where` is for.

    Where `heads` does not divide a layer's channels into heads of at least two, it has the most heads below that do.
    Windows end at the border of the map, so that small maps need no care. Grouped and dilated convolutions stay as they
    are; the log says which. The attention stem of the paper is not built: the first convolution stays.

    The paper leaves open what lies beyond the border and how weights start. The code that most people know, a third
    party's, has zeros there that take part in the softmax, a softmax for every channel of its own, and embeddings of
    rows for the first half of all channels.

    Source: Ramachandran et al., Stand-Alone Self-Attention in Vision Models, NeurIPS 2019, sections 2.2 and 3.1.
    """

    name = "sasa"
    title = "Stand-Alone Self-Attention in Vision Models"
    paper = "arXiv 1906.05909"
    year = 2019

    window: int = Choice(7, (3, 5, 7, 9, 11), searched=(3, 5, 7), doc="side of the attention window")
    heads: int = Choice(8, (1, 2, 4, 8, 16), searched=(2, 4, 8), doc="attention heads at most")
    where: str = Choice("all", ("all", "late"), doc="all 3×3 convolutions, or the deeper half of them")

    def apply(self, model: nn.Module) -> nn.Module:
        from kdsearch.search_space.students.networks.replacing import heads_for, replace_3x3
        from kdsearch.search_space.students.networks.sasa import SelfAttention2d

        def layer(conv: nn.Conv2d) -> nn.Module:
            return SelfAttention2d(
                conv.in_channels,
                conv.out_channels,
                window=self.window,
                heads=heads_for(conv.out_channels, self.heads, least=2),
                stride=(conv.stride[0], conv.stride[1]),
                bias=conv.bias is not None,
            )

        return replace_3x3(model, self.name, layer, late=self.where == "late")
