"""Growing plain and residual networks: what they compute stays, what is new trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdsearch.search_space.students import TRANSFORMS
from kdsearch.search_space.students.growth.growing import grow
from kdsearch.search_space.students.growth.tracing import trace
from tests.search_space.grown import DIGITS, Hyper, fit, fresh, learns, outputs, preserved, seeded, trained

GROWN: list[tuple[str, Hyper, Hyper]] = [
    ("cnn", {"channels": 3}, {"channels": 7}),
    ("cnn", {"channels": 3, "stages": 3}, {"channels": 3, "stages": 4}),
    ("cnn", {"channels": 3, "stages": 3}, {"channels": 5, "stages": 5}),
    ("resnet", {"depth": 8, "width": 0.25}, {"depth": 8, "width": 0.6}),
    ("resnet", {"depth": 8, "width": 0.25}, {"depth": 20, "width": 0.25}),
    ("resnet", {"depth": 8, "width": 0.25}, {"depth": 14, "width": 0.5}),
    ("resnet", {"depth": 8, "width": 0.5}, {"depth": 8, "width": 2.5}),  # the wider one has one shortcut more
    ("wrn", {"depth": 10, "width": 0.25}, {"depth": 10, "width": 0.6}),
    ("wrn", {"depth": 10, "width": 0.25}, {"depth": 22, "width": 0.25}),
    ("wrn", {"depth": 10, "width": 1.25}, {"depth": 16, "width": 1.5}),
]


@pytest.mark.parametrize(("family", "less", "more"), GROWN, ids=lambda v: v if isinstance(v, str) else "")
def test_outputs_stay(family: str, less: Hyper, more: Hyper) -> None:
    preserved(trained(fresh(family, less)).double(), fresh(family, more).double())


def test_single_precision_is_as_exact_as_it_can_be() -> None:
    small, large = trained(fresh("wrn", {"depth": 10, "width": 0.5})), fresh("wrn", {"depth": 16, "width": 1.0})
    grow(small, large, DIGITS, generator=seeded(2))
    images = torch.randn(5, *DIGITS, generator=seeded(3))
    with torch.no_grad():
        torch.testing.assert_close(large.eval()(images), small.eval()(images), rtol=1e-4, atol=1e-4)


def test_growth_leaves_the_smaller_network_and_the_modes_as_they_were() -> None:
    small, large = trained(fresh("resnet", {"depth": 8, "width": 0.25})), fresh("resnet", {"depth": 14, "width": 0.5})
    small.eval()
    before = {name: value.clone() for name, value in small.state_dict().items()}
    grow(small, large, DIGITS, generator=seeded(2))
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert not small.training
    assert all(module.training for module in large.modules())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in large.parameters())


def test_noise_parts_the_copies_and_little_else() -> None:
    transform: Any = TRANSFORMS["net2net"]
    small = trained(fresh("resnet", {"depth": 8, "width": 0.25}))
    exact, noisy, again = (fresh("resnet", {"depth": 8, "width": 0.5}) for _ in range(3))
    transform(noise=0.0).grow(small, exact, DIGITS, 3)
    transform(noise=0.01).grow(small, noisy, DIGITS, 3)
    transform(noise=0.01).grow(small, again, DIGITS, 3)
    weight: Tensor = exact.stage1[0].conv1.weight.detach()  # type: ignore[union-attr, index]
    moved: Tensor = noisy.stage1[0].conv1.weight.detach()  # type: ignore[union-attr, index]
    alike = (weight[:, None] == weight[None]).flatten(2).all(2).sum(1)
    assert int(alike.max()) > 1
    assert int((moved[:, None] == moved[None]).flatten(2).all(2).sum(1).max()) == 1
    assert float((moved - weight)[4:].std() / weight.std()) == pytest.approx(0.01, rel=0.3)
    before, after = outputs(exact), outputs(noisy)
    assert 1e-6 < float((before - after).abs().max()) < 0.2 * float(before.std())
    assert torch.equal(after, outputs(again))


@pytest.mark.parametrize(
    ("family", "less", "more", "new"),
    [
        ("resnet", {"depth": 8, "width": 0.25}, {"depth": 14, "width": 0.5}, "stage2.1."),
        ("wrn", {"depth": 10, "width": 0.25}, {"depth": 16, "width": 0.5}, "stage2.1."),
        ("cnn", {"channels": 3, "stages": 3}, {"channels": 4, "stages": 4}, "stages.stage4."),
    ],
)
def test_what_has_grown_trains(family: str, less: Hyper, more: Hyper, new: str) -> None:
    learns(fresh(family, less), fresh(family, more), new)


def test_an_identity_stage_is_almost_one_in_training_too() -> None:
    small, large = fresh("cnn", {"channels": 8, "stages": 3}), fresh("cnn", {"channels": 8, "stages": 4})
    images = torch.randn(64, *DIGITS, generator=seeded(3))
    labels = torch.randint(10, (64,), generator=seeded(4))
    fit(small, images, labels, 60)
    grow(small, large, DIGITS, generator=seeded(2))
    with torch.no_grad():
        before, after = small.train()(images), large.train()(images)
    assert float((after - before).square().mean()) < 0.05 * float(before.var())


def test_channels_that_are_added_are_one_unit() -> None:
    found = trace(fresh("resnet", {"depth": 8, "width": 0.25}), DIGITS)
    units = found.units()

    def at(site: str) -> list[int]:
        return [units[label] for label in found.sites[site].long().tolist()]

    # The first block's shortcut is the identity: stem and stage are the same channels, its inner ones are not.
    assert at("stem.conv:out") == at("stage1.0.conv2:out") == at("stage2.0.shortcut.0:in")
    assert not set(at("stage1.0.conv1:out")) & set(at("stem.conv:out"))
    assert at("stage3.0.bn2:units") == at("head:in")
