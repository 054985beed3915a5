"""The distances: pure functions of a student's and a teacher's tensor of one shape, each a scalar that is zero where
both are equal.

KD-Zero's list (see `transforms`) and Auto-KD's distance of Gram matrices. Here differ: `cosine` is one minus the
similarity, which theirs is itself; `kl_raw` reads rows of numbers that are not negative as distributions, where theirs
takes the same values for logarithms on one side and for probabilities on the other. Left out are four of theirs that
are no distances: difference, product, matrix product (without a lower bound) and less-than (without a gradient).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.kd_methods.numerics import rescale, unit

TINY = 1e-12  # probability below which a logarithm has no gradient


def correlations(x: Tensor) -> Tensor:
    """Rows of length one of a Gram matrix: [B, B] of vectors, [B, C, C] of rows or maps."""
    x = rescale(x)  # normalised rows do not depend on the scale
    x = x if x.ndim == 2 else x.flatten(2)
    return unit(x @ x.mT, dim=-1)


def g_l2(s: Tensor, t: Tensor) -> Tensor:
    """Squared difference of row-normalised Gram matrices: between samples over B², between channels over B · C."""
    a, b = correlations(s), correlations(t)
    squared = (a - b).square().mean()
    return squared if a.ndim == 2 else a.shape[-1] * squared


def pairwise_l2(s: Tensor, t: Tensor) -> Tensor:
    """L2 norm of each sample's difference, averaged over the batch."""
    return torch.linalg.vector_norm((s - t).flatten(1), dim=1).mean()


def kl(s: Tensor, t: Tensor, temperature: float, dim: int = 1) -> Tensor:
    """T² · KL(softmax(t / T) ‖ softmax(s / T)) along `dim`, summed over all else and divided by the batch."""
    log_t = (t / temperature).log_softmax(dim)
    divergence = F.kl_div((s / temperature).log_softmax(dim), log_t, reduction="sum", log_target=True)
    return temperature**2 / len(s) * divergence


def kl_raw(s: Tensor, t: Tensor) -> Tensor:
    """KL of rows along the second dimension over their sums, summed over all else and divided by the batch."""
    q, p = _shares(s), _shares(t)
    return (p * (p.clamp(min=TINY).log() - q.clamp(min=TINY).log())).sum() / len(s)


def _shares(x: Tensor) -> Tensor:
    total = x.sum(1, keepdim=True)
    return x / torch.where(total > 0, total, 1.0)


def cosine(s: Tensor, t: Tensor) -> Tensor:
    """One minus the mean cosine along the second dimension."""
    return 1 - (unit(s) * unit(t)).sum(1).mean()


def pearson(s: Tensor, t: Tensor) -> Tensor:
    """One minus the mean correlation along the second dimension."""
    return cosine(s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True))


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "pairwise_l2": pairwise_l2,
    "g_l2": g_l2,
    "kl_raw": kl_raw,
    "kl_t1": lambda s, t: kl(s, t, 1.0),
    "kl_t4": lambda s, t: kl(s, t, 4.0),
    "kl_t8": lambda s, t: kl(s, t, 8.0),
    "cosine": cosine,
    "pearson": pearson,
}
