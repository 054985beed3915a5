"""always and eskd: how strongly distillation acts over the training."""

from __future__ import annotations

from typing import Any

import pytest

from kdsearch import kd_methods


def test_always() -> None:
    method: Any = kd_methods.create("always")
    assert {method.distillation_weight(p / 10) for p in range(10)} == {1.0}


def test_eskd_stops_once() -> None:
    method: Any = kd_methods.create("eskd", stop=0.5)
    weights = [method.distillation_weight(p / 100) for p in range(100)]
    assert weights == [1.0] * 50 + [0.0] * 50


@pytest.mark.parametrize(("stop", "weight"), [(0.0, 0.0), (1.0, 1.0)])
def test_eskd_ends_of_the_domain(stop: float, weight: float) -> None:
    method: Any = kd_methods.create("eskd", stop=stop)
    assert {method.distillation_weight(p) for p in (0.0, 0.5, 0.999)} == {weight}


def test_eskd_domain() -> None:
    with pytest.raises(ValueError, match=r"eskd\.stop must lie in \[0, 1\], not 60"):
        kd_methods.create("eskd", stop=60)
