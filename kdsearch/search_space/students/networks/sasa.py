"""Stand-alone self-attention: a layer of local attention that takes a convolution's place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.search_space.students.networks.initialise import initialise
from kdsearch.search_space.students.networks.local_attention import local_attention


class SelfAttention2d(nn.Module):
    """Maps [B, channels, H, W] to [B, width, ceil(H / stride), ceil(W / stride)].

    Softmax over a window of q · k + q · r, summed over a head's channels, where r is the embedding of the row's offset
    in the first half of the channels and of the column's in the second. A stride is an average pool after the
    attention. 3 · channels · width + window · width parameters (the sum of both halves), and `width` for a bias.

    Raises:
        ValueError: `heads` does not divide `width`, or leaves a head a single channel.

    Source: Ramachandran et al., Stand-Alone Self-Attention in Vision Models, NeurIPS 2019, sections 2.2 and 3.1.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        window: int = 7,
        heads: int = 8,
        stride: tuple[int, int] = (1, 1),
        bias: bool = False,
    ) -> None:
        super().__init__()
        if width % heads or width < 2 * heads:
            raise ValueError(f"{width} channels cannot be divided among {heads} heads of at least two")
        self.heads, self.window, self.stride = heads, window, stride
        per_head = width // heads
        self.query = nn.Conv2d(channels, width, 1, bias=False)
        self.key = nn.Conv2d(channels, width, 1, bias=False)
        self.value = nn.Conv2d(channels, width, 1, bias=bias)
        # The formula has no 1 / sqrt(channels of a head): initial keys have it, so that no softmax starts saturated.
        self.rows = nn.Parameter(torch.randn(heads, (per_head + 1) // 2, window) * per_head**-0.5)
        self.columns = nn.Parameter(torch.randn(heads, per_head // 2, window) * per_head**-0.5)
        initialise(self)
        with torch.no_grad():
            self.key.weight.mul_(per_head**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        square = (-1, -1, self.window, self.window)
        position = torch.cat([self.rows[..., None].expand(square), self.columns[:, :, None].expand(square)], 1)
        out = local_attention(
            self.query(x),
            self.key(x),
            self.value(x),
            heads=self.heads,
            window=self.window,
            position=position.flatten(0, 1),
        )
        if max(self.stride) == 1:
            return out
        return F.avg_pool2d(out, self.stride, ceil_mode=True, count_include_pad=False)
