"""Correlations and eigenvalues in float64, whatever comes in: what is not finite stays so and raises nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def correlation(rows: Tensor) -> Tensor:
    """Pearson's correlations of the rows of [..., N, D], [..., N, N], clipped to [-1, 1]; NaN for a constant row."""
    centred = rows.double() - rows.double().mean(-1, keepdim=True)
    unit = centred / torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return (unit @ unit.mT).clamp(-1, 1)


def eigenvalues(symmetric: Tensor) -> Tensor:
    """Ascending, [..., N]; NaN, all of them, where the matrix is not finite."""
    finite = symmetric.isfinite().all(-1).all(-1)
    safe = symmetric.double().where(finite[..., None, None], 0.0)
    return torch.linalg.eigvalsh(safe).where(finite[..., None], torch.nan)
