"""The representation gap of Auto-KD: how alike two networks' embeddings of the same samples are.

Needs torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdsearch.kd_methods.numerics import doubled, rescale


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    """Linear centred kernel alignment, a scalar in [0, 1]: ‖BᵀA‖² / (‖AᵀA‖ · ‖BᵀB‖), columns of mean zero.

    It does not change under rotations and scales of either side. Zero where a side is constant.

    Args:
        a, b: [N, D] of the same N samples; D may differ.

    Raises:
        ValueError: other samples on either side, or none.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019, section 3.
    """
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or not len(a):
        raise ValueError(f"linear_cka compares [N, D] of the same samples, not {list(a.shape)} and {list(b.shape)}")
    x, y = (rescale(doubled(z) - doubled(z).mean(0)) for z in (a, b))
    if len(x) < min(x.shape[1], y.shape[1]):  # products of samples are the smaller matrices
        p, q = x @ x.T, y @ y.T
        shared, own, others = (p * q).sum(), p.norm(), q.norm()
    else:
        shared, own, others = (y.T @ x).square().sum(), (x.T @ x).norm(), (y.T @ y).norm()
    total = own * others
    return torch.where(total > 0, shared / torch.where(total > 0, total, 1.0), 0.0)
