"""Growing transformers: whole multiples of the width, and depth."""

from __future__ import annotations

import pytest

from tests.search_space.grown import Hyper, fresh, learns, preserved, trained

GROWN: list[tuple[str, Hyper, Hyper]] = [
    ("vit", {"depth": 1, "dim": 12}, {"depth": 1, "dim": 36}),
    ("vit", {"depth": 1, "dim": 12}, {"depth": 3, "dim": 12}),
    ("vit", {"depth": 1, "dim": 12}, {"depth": 2, "dim": 24}),
]


@pytest.mark.parametrize(("family", "less", "more"), GROWN, ids=lambda v: v if isinstance(v, str) else "")
def test_outputs_stay(family: str, less: Hyper, more: Hyper) -> None:
    preserved(trained(fresh(family, less)).double(), fresh(family, more).double())


def test_outputs_stay_where_images_are_padded_and_heads_are_two() -> None:
    shape, branches = (3, 7, 7), frozenset({"distillation_token"})
    small = trained(fresh("vit", {"depth": 1, "dim": 12}, shape, branches=branches)).double()
    preserved(small, fresh("vit", {"depth": 2, "dim": 24}, shape, branches=branches).double(), shape)


def test_what_has_grown_trains() -> None:
    learns(fresh("vit", {"depth": 1, "dim": 12}), fresh("vit", {"depth": 2, "dim": 24}), "blocks.1.")
