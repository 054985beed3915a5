"""Statistics in float64 where a device has it, and without it as well as can be."""

from __future__ import annotations

import pytest
import torch

from kdsearch.kd_methods import numerics
from kdsearch.kd_methods.features._mobileid import rank_neurons
from kdsearch.kd_methods.features._ofd import find_margins
from kdsearch.kd_methods.features._quant_mimic import measure
from kdsearch.kd_methods.numerics import doubled, widest
from kdsearch.kd_methods.relations._bingo import principal_axes

from .frozen_teacher import FrozenTeacher
from .test_ofd import Teacher


def test_the_type_goes_by_the_device() -> None:
    assert widest(torch.device("cpu")) is widest(torch.device("cuda", 0)) is torch.float64
    assert widest(torch.device("mps")) is torch.float32
    x = torch.rand(3)
    assert torch.equal(doubled(x), x.double())
    assert doubled(torch.empty(3, device="meta")).device.type == "meta"  # no farther than it must


def test_what_is_prepared_without_float64_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 3, 2, 1, 0.5]) + 9
    wanted = find_margins(Teacher()), measure(FrozenTeacher()), principal_axes(points, 3), rank_neurons(Teacher(), 1.0)
    monkeypatch.setattr(numerics, "NARROW", frozenset({"cpu"}))
    assert widest(points.device) is torch.float32
    found = find_margins(Teacher()), measure(FrozenTeacher()), principal_axes(points, 3), rank_neurons(Teacher(), 1.0)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
