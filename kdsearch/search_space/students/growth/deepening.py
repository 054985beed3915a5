"""Net2Net's deeper network: further layers that begin as identities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def deeper(
    width: int, kernel: Sequence[int] = (), *, groups: int = 1, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer, or of a convolution with a `kernel`, that gives back what it is given.

    The network stays the same where the activation after the layer leaves its own values alone, as ReLU does.

    Args:
        width: units in and out.
        kernel: odd sides, to be padded by half of them; empty for a linear layer.
        groups: 1, or `width` for a depthwise convolution.

    Returns:
        [width, width / groups, *kernel], [width].

    Raises:
        ValueError: an even side, or other groups.

    Source: Chen, Goodfellow, Shlens, Net2Net, ICLR 2016, section 2.3.
    """
    if any(side % 2 == 0 for side in kernel):
        raise ValueError(f"a kernel with an even side has no centre: {tuple(kernel)}")
    if groups not in (1, width):
        raise ValueError(f"groups must be 1 or {width}, not {groups}")
    weight = torch.zeros(width, width // groups, *kernel, dtype=dtype)
    place: tuple[Any, ...] = (..., *(side // 2 for side in kernel))
    centre = weight[place]
    centre.copy_(torch.eye(width, dtype=dtype) if groups == 1 else torch.ones_like(centre))
    return weight, torch.zeros(width, dtype=dtype)


def undoing(mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Scale and shift with which a batch normalisation of these statistics gives back what it is given.

    Source: Net2Net, section 2.3.
    """
    return (variance + eps).sqrt(), mean.clone()


def rectified(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of max(x, 0), where x is normally distributed with these."""
    deviation = variance.sqrt().clamp_min(1e-12)
    ratio = mean / deviation
    below = torch.special.ndtr(ratio)
    density = torch.exp(-ratio.square() / 2) / (2 * torch.pi) ** 0.5
    first = mean * below + deviation * density
    second = (mean.square() + variance) * below + mean * deviation * density
    return first, (second - first.square()).clamp_min(0)
