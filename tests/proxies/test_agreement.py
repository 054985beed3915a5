"""Agreement of scores with accuracies, against counts by hand, scipy, and published figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from kdsearch.proxies.agreement import agreement, iso_accuracy, kendall, lower_bound, spearman
from kdsearch.runs.truth import read
from kdsearch.search_space.students import measure

S1 = Path(__file__).parents[2] / "benchmarks" / "s1"


def test_tau_and_rho_by_hand() -> None:
    # pairs of (1, 3, 2, 4) against (1, 2, 3, 4): five agree, one does not
    assert kendall([1, 3, 2, 4], [1, 2, 3, 4]) == pytest.approx(4 / 6)
    assert spearman([1, 3, 2, 4], [1, 2, 3, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    # one of three pairs is tied: 2 / √(2 · 3)
    assert kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6))
    assert kendall([5, 4], [1, 2]) == -1
    assert spearman([5, 4], [1, 2]) == pytest.approx(-1)


@pytest.mark.parametrize("seed", range(5))
def test_ties_as_scipy_takes_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, 30), rng.integers(0, 9, 30)
    assert kendall(x, y) == pytest.approx(kendalltau(x, y).statistic)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)


@pytest.mark.parametrize("missing", [math.nan, -math.inf, math.inf, None])
def test_what_is_not_finite_is_worst(missing: float | None) -> None:
    truth = [1.0, 2.0, 3.0, 0.5]
    assert kendall([-4.0, -3.0, -2.0, missing], truth) == pytest.approx(1)
    assert kendall([-4.0, -3.0, missing, -5.0], truth) == pytest.approx(0)
    assert kendall([missing, missing, 3.0], [1, 2, 3]) == kendall([0, 0, 3], [1, 2, 3])
    assert iso_accuracy([missing, missing, 1.0], [1, 2, 3], [10, 10, 10]) == (pytest.approx(2.5 / 3), 3)
    assert math.isnan(kendall([missing, missing], [1, 2]))


def test_pairs_of_one_size_by_hand() -> None:
    sizes, truth = [100, 95, 90, 50, 46], [5.0, 4.0, 3.0, 2.0, 2.0]
    # within 10 % of the larger: (100, 95), (95, 90) and (50, 46); 100 and 90 are not; the last pair has no right order
    assert iso_accuracy([3, 2, 1, 0, 0], truth, sizes) == (1.0, 2)
    assert iso_accuracy([1, 2, 1, 0, 0], truth, sizes) == (0.5, 2)
    assert iso_accuracy([2, 2, 1, 0, 0], truth, sizes) == (0.75, 2)
    assert iso_accuracy([1, 2, 3, 0, 0], truth, sizes, within=0.2) == (0.0, 3)
    found, pairs = iso_accuracy([1, 2], [1, 2], [1, 2])
    assert math.isnan(found)
    assert pairs == 0


def test_the_lower_bound_is_below_tau_and_covers() -> None:
    rng = np.random.default_rng(0)
    assert lower_bound(range(20), range(20)) == pytest.approx(1)
    covered = 0
    for _ in range(200):  # correlation .8: tau is 2/π · arcsin(.8)
        x = rng.normal(size=25)
        covered += lower_bound(x, 0.8 * x + 0.6 * rng.normal(size=25)) <= 2 / math.pi * math.asin(0.8)
    assert covered >= 182  # 95 % of 200, less 2.6 standard deviations
    assert math.isnan(lower_bound([1, 1, 1], [1, 2, 3]))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="two columns of one length"):
        kendall([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="not a finite number"):
        spearman([1, 2], [1, math.nan])
    with pytest.raises(ValueError, match="positive numbers"):
        iso_accuracy([1, 2], [1, 2], [0, 1])


@pytest.mark.parametrize(("file", "tau"), [("kd", 0.873), ("cls", 0.789)])
def test_the_bar_of_s1(file: str, tau: float) -> None:
    """The parameter count and the MACs on the 64 networks, as an independent implementation found them."""
    truth = read(S1 / f"{file}.txt")
    modules = [student.build((3, 32, 32), 100) for _, student in truth.students]
    sizes = [measure.parameters(module) for module in modules]
    found = agreement(sizes, truth.accuracy, sizes)
    assert round(found.tau, 3) == tau
    if file == "kd":
        assert (round(found.rho, 3), round(found.iso, 3), found.pairs) == (0.968, 0.702, 225)
        blocks = [sum(student.hyper[f"blocks{k}"] for k in (1, 2, 3)) for _, student in truth.students]  # type: ignore[misc]
        by_blocks = agreement(blocks, truth.accuracy, sizes)
        assert (round(by_blocks.tau, 3), round(by_blocks.rho, 3)) == (0.657, 0.814)
