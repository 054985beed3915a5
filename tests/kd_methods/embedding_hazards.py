"""Embeddings on which distances and angles go wrong."""

from __future__ import annotations

import torch


def duplicates() -> torch.Tensor:
    """[6, 8]: a row that equals another, and one that nearly does."""
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    x[1] = x[0]
    x[5] = x[4] * (1 + 1e-7)
    return x
