"""How well scores order networks whose accuracies are known. Arrays in, numbers out; needs no torch.

Scores that are not finite are the worst there are, and tied with one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
WITHIN = 0.1
"""Pairs whose parameter counts differ by less than this share of the larger one count as of equal size."""


@dataclass(frozen=True)
class Agreement:
    """How one column of scores orders n networks.

    Attributes:
        tau, rho: Kendall's tau-b and Spearman's rho with the accuracies; NaN where a side is constant.
        iso: share of `pairs`, the pairs of nearly equal parameter counts, that the scores order rightly; 0.5 is chance.
        n: networks.
    """

    tau: float
    rho: float
    iso: float
    pairs: int
    n: int


def agreement(scores: ArrayLike, truth: ArrayLike, sizes: ArrayLike) -> Agreement:
    """All of it at once: scores, accuracies and parameter counts of the same networks, [N] each."""
    iso, pairs = iso_accuracy(scores, truth, sizes)
    return Agreement(kendall(scores, truth), spearman(scores, truth), iso, pairs, len(np.asarray(truth)))


def kendall(scores: ArrayLike, truth: ArrayLike) -> float:
    """Kendall's tau-b, which takes ties into account; NaN for fewer than two networks or a side of one value.

    Raises:
        ValueError: columns of different lengths, or an accuracy that is not finite.
    """
    return _tau(*_signs(*_checked(scores, truth)))


def spearman(scores: ArrayLike, truth: ArrayLike) -> float:
    """Spearman's rho: the correlation of ranks, ties at their mean rank; NaN as for `kendall`.

    Raises:
        ValueError: as `kendall`.
    """
    x, y = (_ranks(column) for column in _checked(scores, truth))
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def iso_accuracy(scores: ArrayLike, truth: ArrayLike, sizes: ArrayLike, *, within: float = WITHIN) -> tuple[float, int]:
    """The share of pairs of nearly equal size that are ordered rightly, and how many such pairs there are.

    A pair counts where its sizes differ by less than `within` of the larger one. Tied scores are half right; pairs
    of equal accuracy have no right order and are left out. NaN where no pair is left.

    Raises:
        ValueError: as `kendall`; or a size that is not positive.
    """
    x, y = _checked(scores, truth)
    size = np.asarray(sizes, dtype=np.float64)
    if size.shape != y.shape or not (np.isfinite(size) & (size > 0)).all():
        raise ValueError(f"sizes must be {len(y)} positive numbers, not {sizes!r}")
    first, second = np.triu_indices(len(y), 1)
    gap = np.abs(size[first] - size[second]) / np.maximum(size[first], size[second])
    right = np.sign(x[first] - x[second]) * np.sign(y[first] - y[second])
    chosen = right[(gap < within) & (y[first] != y[second])]
    return (float((chosen + 1).mean() / 2), len(chosen)) if len(chosen) else (math.nan, 0)


def lower_bound(scores: ArrayLike, truth: ArrayLike, *, confidence: float = 0.95) -> float:
    """The one-sided lower confidence bound of Kendall's tau over networks drawn at random; NaN where tau is.

    Tau is a mean over pairs, so that the jackknife gives its standard error; the quantile is Student's t with n - 1
    degrees of freedom.
    """
    from scipy.special import stdtrit

    x, y = _signs(*_checked(scores, truth))
    tau, n = _tau(x, y), len(x)
    if n < 3 or not math.isfinite(tau):
        return math.nan
    agree, x_apart, y_apart = (x * y), np.abs(x), np.abs(y)
    # Without network i its row and its column of each matrix of pairs are gone.
    sums = [matrix.sum() - 2 * matrix.sum(1) for matrix in (agree, x_apart, y_apart)]
    with np.errstate(invalid="ignore", divide="ignore"):
        without = np.nan_to_num(sums[0] / np.sqrt(sums[1] * sums[2]))
    error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    return tau - float(stdtrit(n - 1, confidence)) * error


def worst_where_missing(scores: ArrayLike | Sequence[float | None]) -> Floats:
    """The scores with everything that is not finite (None included) below the worst of the rest."""
    x = np.array([math.nan if s is None else s for s in np.asarray(scores, dtype=object)], dtype=np.float64)
    finite = np.isfinite(x)
    worst = float(x[finite].min()) if finite.any() else 0.0
    x[~finite] = worst - max(1.0, abs(worst))
    return x


def _checked(scores: ArrayLike, truth: ArrayLike) -> tuple[Floats, Floats]:
    x, y = worst_where_missing(scores), np.asarray(truth, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"scores and accuracies must be two columns of one length, not {x.shape} and {y.shape}")
    if not np.isfinite(y).all():
        raise ValueError("an accuracy of the ground truth is not a finite number")
    return x, y


def _ranks(column: Floats) -> Floats:
    """From 0, ties at their mean rank."""
    _, place, count = np.unique(column, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count + 1) / 2)[place], dtype=np.float64)


def _signs(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    return np.sign(x[:, None] - x[None, :]), np.sign(y[:, None] - y[None, :])


def _tau(x: Floats, y: Floats) -> float:
    """Tau-b of two matrices of signs."""
    apart = float(np.abs(x).sum()) * float(np.abs(y).sum())
    return float((x * y).sum()) / math.sqrt(apart) if apart > 0 else math.nan
