"""A combiner of proxies that is learned from finished trials and prunes nothing before it has earned it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdsearch.proxies._columns import Columns, Row, matrix, names_of
from kdsearch.proxies._ridge import Ridge, errors, fit
from kdsearch.proxies.agreement import kendall, lower_bound, spearman, worst_where_missing

Floats = NDArray[np.float64]
BAR = "params"
"""The proxy that every other has to beat."""
ENOUGH = 10  # networks, below which nothing is earned
THRESHOLD = 0.3  # what the lower confidence bound of the cross-validated tau has to reach
CONFIDENCE = 0.99  # of that bound: a search looks at it after every trial, and one lucky look is enough
FOLDS = 8
GAIN = 0.02  # a further proxy has to lower the leave-one-out error by this share
MOST = 5  # proxies of one regression
MEMBERS, SHARE = 10, 0.8  # regressions, and the share of the networks that each learns from
OUTLYING = 10.0  # robust standard deviations


@dataclass(frozen=True)
class Member:
    """One regression of a combiner: the proxies that joined (by their place), the most telling first."""

    columns: Columns
    chosen: tuple[int, ...]
    ridge: Ridge

    def predict(self, scores: Floats) -> Floats:
        """[N] of scores [N, P]."""
        design = _designs(self.columns(scores), np.array([self.chosen]))[0]
        return design @ self.ridge.weights + self.ridge.intercept


@dataclass(frozen=True)
class Combiner:
    """The mean of ten ridge regressions of accuracy on a few proxies and their squares, each learned from four fifths
    of the networks (bagging: Breiman 1996).

    Proxies join one after the other, each time the one that lowers the leave-one-out error most, while it falls by 2 %;
    at most one for six networks, and five in all. Sizes enter by their logarithms. The penalty is the one with
    the least leave-one-out error. Deterministic. The numbers are ours.

    Attributes:
        names: all proxies that were offered.
        members: those regressions in which some proxy predicts better than the mean does.
    """

    names: tuple[str, ...]
    members: tuple[Member, ...]

    @staticmethod
    def fit(rows: Sequence[Row], target: ArrayLike) -> Combiner:
        """Learn from the proxy scores of N networks and their validation scores, higher being better.

        Raises:
            ValueError: as many rows as targets are needed, and finite targets.
        """
        y = standardised(target)
        if len(rows) != len(y):
            raise ValueError(f"{len(rows)} networks with {len(y)} validation scores")
        names = names_of(rows)
        scores = matrix(rows, names)
        drawn = [np.random.default_rng(k).permutation(len(y))[: round(SHARE * len(y))] for k in range(MEMBERS)]
        found = (_member(scores[some], y[some]) for some in map(np.sort, drawn))
        return Combiner(names, tuple(member for member in found if member is not None))

    def predict(self, rows: Sequence[Row]) -> Floats:
        """Standardised scores of N networks, [N], higher being better; all zero where nothing could be learned."""
        scores = matrix(rows, self.names)
        return np.asarray(sum((m.predict(scores) for m in self.members), np.zeros(len(rows)))) / MEMBERS

    @property
    def proxies(self) -> dict[str, int]:
        """The proxies that joined, and how many of the ten regressions each is in, most first."""
        held = Counter(self.names[k] for member in self.members for k in member.chosen)
        return dict(sorted(held.items(), key=lambda item: (-item[1], item[0])))


def _member(scores: Floats, y: Floats) -> Member | None:
    most = min(MOST, len(y) // 6)
    if most == 0 or np.ptp(y) == 0:
        return None
    columns = Columns.learn(scores)
    standard = columns(scores)
    free = list(np.flatnonzero(columns.telling))
    chosen: list[int] = []
    # What the mean of the others leaves is where the first proxy has to start from.
    best = float(y.var()) * (len(y) / (len(y) - 1)) ** 2
    while free and len(chosen) < most:
        found = errors(_designs(standard, np.array([[*chosen, one] for one in free])), y).min(1)
        if found.min() >= (1 - GAIN) * best:
            break
        best = float(found.min())
        chosen.append(int(free.pop(int(found.argmin()))))
    return Member(columns, tuple(chosen), fit(_designs(standard, np.array([chosen]))[0], y)) if chosen else None


@dataclass(frozen=True)
class Standing:
    """What a combiner has shown by cross-validation on the networks at hand.

    Attributes:
        tau, rho: agreement of predictions with the networks' scores, each network predicted without itself.
        lower: one-sided 99 % lower confidence bound of tau.
        bar: tau of the parameter count on the same networks.
        n: networks.
        of: the proxies that a combiner of all networks holds, those in most of its regressions first.
        earned: whether it may prune.
    """

    tau: float
    rho: float
    lower: float
    bar: float
    n: int
    of: tuple[str, ...]
    earned: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data, what is not finite as None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def cross_validated(rows: Sequence[Row], target: ArrayLike, *, folds: int = FOLDS, seed: int = 0) -> Floats:
    """What each of N networks is predicted to score by a combiner of the networks of the other folds, [N].

    The selection of proxies, the penalty and every normalisation are learned anew without the fold.
    """
    y = np.asarray(target, dtype=np.float64)
    order = np.random.default_rng(seed).permutation(len(y))
    out = np.zeros(len(y))
    for k in range(min(folds, len(y))):
        held = order[k::folds]
        rest = np.setdiff1d(order, held)
        combiner = Combiner.fit([rows[i] for i in rest], y[rest])
        out[held] = combiner.predict([rows[i] for i in held])
    return out


def standing(
    rows: Sequence[Row], target: ArrayLike, *, threshold: float = THRESHOLD, minimum: int = ENOUGH
) -> Standing:
    """Whether a combiner of these networks may prune.

    It may where there are `minimum` networks, the lower confidence bound of its cross-validated tau reaches
    `threshold`, and that tau is above the parameter count's.
    """
    y = np.asarray(target, dtype=np.float64)
    predicted = cross_validated(rows, y)
    tau, lower = kendall(predicted, y), lower_bound(predicted, y, confidence=CONFIDENCE)
    bar = kendall(worst_where_missing([row.get(BAR) for row in rows]), y)
    beats = not math.isfinite(bar) or tau > bar
    earned = len(y) >= minimum and math.isfinite(lower) and lower >= threshold and beats
    of = tuple(Combiner.fit(rows, y).proxies)
    return Standing(tau, spearman(predicted, y), lower, bar, len(y), of, earned)


def standardised(target: ArrayLike) -> Floats:
    """Distances from the median in robust standard deviations (1.4826 times the median one), at most ten: a collapsed
    training may not outweigh all others.

    Raises:
        ValueError: not a column of finite numbers.
    """
    y = np.asarray(target, dtype=np.float64)
    if y.ndim != 1 or not np.isfinite(y).all():
        raise ValueError("validation scores must be one column of finite numbers")
    if len(y) == 0 or np.ptp(y) == 0:
        return np.zeros(len(y))
    away = y - np.median(y)
    spread = 1.4826 * float(np.median(np.abs(away))) or float(away.std())
    return np.clip(away / spread, -OUTLYING, OUTLYING)


def _designs(standard: Floats, places: NDArray[np.int_]) -> Floats:
    """K designs [K, N, 2D] of the columns at places [K, D], each beside its square: accuracy saturates. Squares count
    half, so that the penalty prefers straight lines.
    """
    taken = standard[:, places].transpose(1, 0, 2)
    return np.concatenate([taken, (taken**2 - 1) / 2], axis=2)
