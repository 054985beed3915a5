"""What cannot be grown is refused, and the large network left as it was."""

from __future__ import annotations

import pytest
import torch

from kdsearch.search_space import students
from kdsearch.search_space.students.growth.growing import grow
from tests.search_space.grown import DIGITS, Hyper, fresh, seeded


@pytest.mark.parametrize(
    ("family", "less", "more", "reason"),
    [
        ("cnn", {"stages": 2}, {"stages": 3}, "stages.stage3.conv .* changes the resolution"),
        ("cnn", {"channels": 8}, {"channels": 4}, "8 units cannot be widened to 4"),
        ("cnn", {"stages": 3}, {"stages": 2}, "the larger network has no stages.stage3.conv:in"),
        (
            "wrn",
            {"depth": 10, "width": 0.5},
            {"depth": 10, "width": 2.0},
            "stage1.0.shortcut cannot begin as an identity",
        ),
        (
            "vit",
            {"depth": 1, "dim": 24},
            {"depth": 1, "dim": 36},
            "24 units .* into a multiple of them only, not into 36",
        ),
        ("vit", {"depth": 1, "dim": 24, "heads": 2}, {"depth": 1, "dim": 24, "heads": 4}, "more heads"),
        ("shufflenetv2", {"width": 0.5, "last": 9}, {"width": 1.0, "last": 9}, "no counterpart in the smaller network"),
        ("rnn", {"hidden": 8}, {"hidden": 16}, "cannot be followed through lstm"),
        (
            "nasbench201",
            {"channels": 4, "cells": 1, "edge03": "none"},
            {"channels": 4, "cells": 2, "edge03": "none"},
            "stages.stage1.1 cannot begin as an identity",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) and " " not in v else "",
)
def test_what_cannot_be_grown_is_refused_and_left(family: str, less: Hyper, more: Hyper, reason: str) -> None:
    small, large = fresh(family, less), fresh(family, more)
    before = {name: value.clone() for name, value in large.state_dict().items()}
    with pytest.raises(ValueError, match=reason):
        grow(small, large, DIGITS, generator=seeded(2))
    assert all(torch.equal(value, before[name]) for name, value in large.state_dict().items())


def test_other_refusals() -> None:
    small, large = fresh("cnn", {"channels": 3}), fresh("cnn", {"channels": 6})
    with pytest.raises(ValueError, match="noise must be finite and not negative"):
        grow(small, large, DIGITS, generator=seeded(2), noise=-0.1)
    more = students.create("cnn", channels=6).build(DIGITS, 12)
    with pytest.raises(ValueError, match="12 classes cannot be grown from 10"):
        grow(small, more, DIGITS, generator=seeded(2))
    small.head.bias.data.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(ValueError, match="not finite"):
        grow(small, large, DIGITS, generator=seeded(2))
