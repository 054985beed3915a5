"""Arithmetic that stays finite: wide enough, without overflow, and without dividing by nearly zero.

Needs torch; imported inside the functions that touch tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """At least float32: half-precision sums of squares overflow or lose their last digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit(x: Tensor, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """x divided by its L2 norm along `dim`; what is shorter than `eps` becomes zero and gets no gradient.

    `torch.nn.functional.normalize` divides short vectors by eps instead, so that a zero vector has a gradient of 1/eps.
    """
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    long = norm > eps
    return torch.where(long, x / torch.where(long, norm, 1.0), 0.0)


def rescale(x: Tensor) -> Tensor:
    """x divided by its largest magnitude, taken as a constant.

    For losses that do not depend on the scale of x: value and gradient stay the same, and squares cannot overflow.
    """
    peak = x.detach().abs().amax() if x.numel() else x.new_ones(())
    return x / torch.where(peak > 0, peak, 1.0)
