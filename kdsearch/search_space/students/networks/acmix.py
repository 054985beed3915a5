"""ACmix: attention and convolution that share their projections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdsearch.search_space.students.networks.initialise import initialise
from kdsearch.search_space.students.networks.local_attention import local_attention

TAPS = 9
"""Weights of a 3×3 kernel: so many shifted maps make a convolution."""


class ACmix(nn.Module):
    """Maps [B, channels, H, W] to [B, width, ceil(H / stride), ceil(W / stride)].

    Three pointwise projections feed both paths. Attention: over a window of the reflected map; the difference of
    positions enters the scores. Convolution: a linear layer makes nine maps of the 3 · heads projected ones, and a
    grouped 3×3 convolution, which starts as the nine shifts by a pixel, adds them up. Two learned rates, one half each
    at first, weigh the paths.

    3 (channels + 1) width + 3 width / heads + 27 heads + 81 width + 2 parameters, whatever the window. The bias of the
    positions is among them and does nothing: it cancels in their difference.

    Raises:
        ValueError: `heads` does not divide `width`.

    Source: Pan et al., On the Integration of Self-Attention and Convolution, CVPR 2022, section 4.
    """

    def __init__(
        self, channels: int, width: int, *, window: int = 7, heads: int = 4, stride: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{width} channels cannot be divided among {heads} heads")
        self.heads, self.window, self.stride = heads, window, stride
        per_head = width // heads
        self.query = nn.Conv2d(channels, width, 1)
        self.key = nn.Conv2d(channels, width, 1)
        self.value = nn.Conv2d(channels, width, 1)
        self.position_weight = nn.Parameter(torch.empty(per_head, 2).uniform_(-1, 1) * 2**-0.5)
        self.position_bias = nn.Parameter(torch.zeros(per_head))
        self.taps = nn.Conv2d(3 * heads, TAPS, 1, bias=False)
        self.shifts = nn.Conv2d(TAPS * per_head, width, 3, stride, 1, groups=per_head, bias=False)
        self.attention_rate = nn.Parameter(torch.full((1,), 0.5))
        self.convolution_rate = nn.Parameter(torch.full((1,), 0.5))
        initialise(self)
        with torch.no_grad():
            self.shifts.weight.copy_(torch.eye(TAPS).view(TAPS, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x), self.key(x), self.value(x)
        batch, width, *sides = query.shape
        maps = torch.cat([query, key, value], 1).view(batch, 3 * self.heads, width // self.heads, -1)
        taps = self.taps(maps).transpose(1, 2).reshape(batch, -1, *sides)
        attended = local_attention(
            query[:, :, :: self.stride[0], :: self.stride[1]] * (width // self.heads) ** -0.5,
            # The query's own position is the same for its whole window, and the softmax does not see it.
            key - self._position(sides, x.device).repeat(self.heads, 1, 1),
            value,
            heads=self.heads,
            window=self.window,
            padding="reflect",
        )
        return self.attention_rate * attended + self.convolution_rate * self.shifts(taps)

    def _position(self, sides: list[int], device: torch.device) -> Tensor:
        """[width / heads, H, W]: linear in the coordinates, which run from -1 to 1.

        Written out: in the low precision that autocast gives a linear layer, differences of neighbours would be lost.
        """
        down, across = (torch.linspace(-1, 1, side, device=device, dtype=self.position_bias.dtype) for side in sides)
        right, below = self.position_weight.view(-1, 2, 1, 1).unbind(1)
        return right * across + below * down[:, None] + self.position_bias.view(-1, 1, 1)
