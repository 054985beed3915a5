"""Arithmetic that stays finite: wide enough, without overflow, and without dividing by nearly zero.

Needs torch; imported inside the functions that touch tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """At least float32: half-precision sums of squares overflow or lose their last digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


NARROW = frozenset({"mps"})
"""Types of devices that have no float64."""


def widest(device: torch.device) -> torch.dtype:
    """The type to add up in on a device: float64 where there is one."""
    return torch.float32 if device.type in NARROW else torch.float64


def doubled(x: Tensor) -> Tensor:
    """x in float64, on the CPU where its own device has none: for statistics, which are small."""
    return x.cpu().double() if x.device.type in NARROW else x.double()


def unit(x: Tensor, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """x divided by its L2 norm along `dim`; what is shorter than `eps` becomes zero and gets no gradient.

    `torch.nn.functional.normalize` divides short vectors by eps instead, so that a zero vector has a gradient of 1/eps.
    """
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    long = norm > eps
    # By the reciprocal, so that x itself is read once and nothing else of its size is made.
    return x * torch.where(long, 1.0 / torch.where(long, norm, 1.0), 0.0)


def rescale(x: Tensor) -> Tensor:
    """x divided by its largest magnitude, taken as a constant.

    For losses that do not depend on the scale of x: value and gradient stay the same, and squares cannot overflow.
    """
    peak = peak_of(x)
    return x / torch.where(peak > 0, peak, 1.0)


def peak_of(x: Tensor) -> Tensor:
    """The largest magnitude [] as a constant; 1 of no elements."""
    x = x.detach()
    return torch.maximum(x.amax(), -x.amin()) if x.numel() else x.new_ones(())  # without a tensor of magnitudes


def rows(x: Tensor) -> Tensor:
    """Samples [B, ...] as rows [B, N] in the order in which their values lie in memory, without a copy.

    For what does not depend on that order, such as products and distances of the rows among themselves.
    """
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.movedim(1, -1)
    return x.flatten(1)
