"""Moonshine's blocks: what may stand in place of a full convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdsearch.search_space.students.networks.initialise import initialise
from kdsearch.search_space.students.networks.replacing import check_full, put


class ChannelSlide(nn.Module):
    """Three weights per output that slide over the zero-padded channel axis, averaged over all positions.

    The average over positions is taken first: it leaves three maps, the sums over all channels but the last, over all,
    and over all but the first. A pointwise convolution of these is the same function at a fraction of the cost.
    """

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weights = nn.Conv2d(3, width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum(1, keepdim=True)
        return self.weights(torch.cat([total - x[:, -1:], total, total - x[:, :1]], 1) / x.shape[1])


def cheap(conv: nn.Conv2d, block: str, group: int, bottleneck: int) -> nn.Sequential:
    """A block of the same shape as `conv`, freshly initialised.

    Raises:
        ValueError: the channels cannot be divided as the block wants it; the message says which.
    """
    wide, width, bias = conv.in_channels, conv.out_channels, conv.bias is not None
    place: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding}
    kernel = conv.kernel_size[0]

    def spatial(channels: int) -> nn.Conv2d:
        groups = _groups(block, channels, group)
        return nn.Conv2d(channels, channels, kernel, groups=groups, bias=False, **place)

    def activation(channels: int) -> tuple[nn.Module, nn.Module]:
        return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)

    parts: list[nn.Module]
    if block == "Conv2x2":
        parts = [nn.Conv2d(wide, width, 2, dilation=kernel - 1, bias=bias, **place)]
    elif block.endswith("B"):
        if width % bottleneck:
            raise ValueError(f"{width} channels have no bottleneck of 1/{bottleneck}")
        narrow = width // bottleneck
        parts = [nn.Conv2d(wide, narrow, 1, bias=False), *activation(narrow)]
        parts += [spatial(narrow), *activation(narrow), nn.Conv2d(narrow, width, 1, bias=bias)]
    else:
        mix = ChannelSlide(width, bias) if block == "DConv3D" else nn.Conv2d(wide, width, 1, bias=bias)
        parts = [spatial(wide), *activation(wide), mix]
    built = nn.Sequential(*parts)
    initialise(built)
    return built


def replace_convolutions(model: nn.Module, block: str, group: int, bottleneck: int) -> tuple[int, dict[str, str]]:
    """Replace in place what can be: how many k×k convolutions were, and which others were not, with the reason."""
    convolutions = [(path, part) for path, part in model.named_modules() if isinstance(part, nn.Conv2d)]
    replaced, kept = 0, {}
    for path, conv in convolutions[1:]:  # the first reads the image
        if max(conv.kernel_size) == 1:
            continue
        try:
            check_full(conv)
            substitute = cheap(conv, block, group, bottleneck).to(conv.weight)
        except ValueError as error:
            kept[path] = str(error)
            continue
        put(model, path, substitute)
        replaced += 1
    return replaced, kept


def _groups(block: str, channels: int, group: int) -> int:
    """Groups of the spatial convolution of a block on so many channels."""
    if block == "ConvB":
        return 1
    if block in ("DConv", "DConv3D", "DConvB"):
        return channels
    if channels % group:
        raise ValueError(f"{channels} channels cannot be divided by {group}")
    return channels // group if block in ("DConvG", "GB") else group
