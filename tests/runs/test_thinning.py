"""Thinning: what comes out truly costs less, keeps its classes, and is a function of the seed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdsearch.runs import datasets
from kdsearch.runs.distil import distil
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.settings import Seeds, Settings
from kdsearch.runs.thinning import thin
from kdsearch.runs.world import World
from kdsearch.search_space import students
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.students import STUDENTS, TRANSFORMS, StudentFamily, measure

CIFAR = (3, 32, 32)
NONE = TRANSFORMS["none"]()


class TwoConvolutions(StudentFamily):
    """A user's family whose constructor knows no width."""

    name = "two_convolutions"
    title = "Two convolutions"
    paper = ""
    year = 2020

    def network(self, input_shape: tuple[int, int, int], classes: int, branches: frozenset[str]) -> nn.Module:
        body = (nn.Conv2d(input_shape[0], 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1))
        return nn.Sequential(*body, nn.Flatten(), nn.Linear(16, classes))


class FixedWidth(nn.Module):
    """Its forward pass counts on the channels it was built with."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, padding=1)
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.conv(x)
        if maps.shape[1] != 8:
            raise RuntimeError("this network wants eight channels")
        return self.head(maps.mean((2, 3)))


class Fussy(StudentFamily):
    """A user's family that cannot be thinned."""

    name = "fussy"
    title = "Fussy"
    paper = ""
    year = 2020

    def network(self, input_shape: tuple[int, int, int], classes: int, branches: frozenset[str]) -> nn.Module:
        return FixedWidth(input_shape[0], classes)


def full(family: StudentFamily, transform: Any = NONE, **options: Any) -> Any:
    return transform.apply(family.build(CIFAR, 10, **options))


@pytest.mark.parametrize("name", ["resnet", "wrn", "cnn", "vit"])
@pytest.mark.parametrize("keep", [0.25, 0.75])
def test_built_in_families(name: str, keep: float) -> None:
    family = students.create(name)
    model: Any
    model, note = thin(family, NONE, CIFAR, 10, keep, 0)
    assert note == ""
    share = measure.macs(model, CIFAR) / measure.macs(full(family), CIFAR)
    assert keep**2 * 0.7 < share < keep**2 * 1.7
    assert model(torch.randn(2, *CIFAR)).shape == (2, 10)


@pytest.mark.parametrize("name", ["mobilenetv2_050", "convnext_atto"])
def test_timm_networks(name: str) -> None:
    family = students.create("timm", model=name)
    model: Any
    model, note = thin(family, NONE, CIFAR, 10, 0.5, 0)
    assert note == ""
    assert measure.macs(model, CIFAR) < 0.45 * measure.macs(full(family), CIFAR)
    assert model.training
    model(torch.randn(4, *CIFAR)).square().mean().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_timm_attention_follows_its_heads() -> None:
    family = students.create("timm", model="deit_tiny_distilled_patch16_224")
    model: Any
    model, note = thin(family, NONE, CIFAR, 10, 0.5, 0)
    assert note == ""
    assert model(torch.randn(2, *CIFAR)).shape == (2, 10)
    attention: Any = model.blocks[0].attn
    assert attention.num_heads * attention.head_dim * 3 == attention.qkv.out_features
    assert attention.scale == pytest.approx(attention.head_dim**-0.5)
    assert attention.head_dim < 64
    assert model.head_dist.out_features == 10


def test_branches_and_transforms_are_kept() -> None:
    model: Any
    model, note = thin(
        students.create("vit", depth=3), NONE, CIFAR, 10, 0.5, 0, branches=frozenset({"distillation_token"})
    )
    assert note == ""
    assert model.head_dist.out_features == 10
    moonshine = TRANSFORMS["moonshine"]()
    family = students.create("resnet", depth=8)
    model, note = thin(family, moonshine, CIFAR, 10, 0.5, 0)
    assert note == ""
    assert isinstance(model.stage2[0].conv1, nn.Sequential)
    assert measure.macs(model, CIFAR) < measure.macs(full(family, moonshine), CIFAR)


@pytest.mark.parametrize("family", [students.create("cnn"), TwoConvolutions()], ids=["constructor", "cut"])
def test_a_function_of_the_seed_that_touches_no_global_generator(family: StudentFamily) -> None:
    state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state: Any = np.random.get_state()
    models = [thin(family, NONE, CIFAR, 10, 0.5, seed)[0] for seed in (1, 1, 2)]
    assert torch.equal(state, torch.get_rng_state())
    now: Any = np.random.get_state()
    assert np.array_equal(numpy_state[1], now[1])
    assert python_state == random.getstate()
    first, same, other = (list(m.state_dict().values()) for m in models)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_nothing_is_left_out_at_one() -> None:
    model: Any
    model, note = thin(students.create("cnn"), NONE, CIFAR, 10, 1.0, 0)
    assert note == ""
    assert measure.parameters(model) == measure.parameters(full(students.create("cnn")))


@pytest.mark.parametrize("name", ["cnn", "resnet", "wrn", "vit"])
def test_every_stage_keeps_its_own_share(name: str) -> None:
    family = students.create(name)
    model: Any
    model, note = thin(family, NONE, CIFAR, 10, (1.0, 0.5, 0.25), 0)
    assert note == ""
    share = measure.macs(model, CIFAR) / measure.macs(full(family), CIFAR)
    assert 0.1 < share < 0.8
    if name == "cnn":
        assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == [16, 16, 16]
    if name == "resnet":
        assert [stage[-1].conv2.out_channels for stage in (model.stage1, model.stage2, model.stage3)] == [16, 16, 16]


def test_a_cut_student_is_cut_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = students.create("cnn", channels=6), students.create("cnn", channels=6)
    made: Any = thin(first, NONE, CIFAR, 10, (1.0, 0.5), 3)[0]
    monkeypatch.setattr("kdsearch.runs.thinning._cut", lambda *args: pytest.fail("it was cut again"))
    again: Any = thin(second, NONE, CIFAR, 10, (1.0, 0.5), 3)[0]
    pairs = list(zip(made.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)


def test_the_time_limit_holds() -> None:
    family = students.create("timm", model="resnet50")
    model: Any
    model, note = thin(family, NONE, CIFAR, 10, 0.5, 0, time_limit=0.05)
    assert note == "student timm was not thinned: cutting out its channels took more than 0.05 s"
    assert measure.parameters(model) == measure.parameters(full(family))


def test_what_cannot_be_thinned_comes_back_whole_with_a_reason() -> None:
    model: Any
    model, note = thin(Fussy(), NONE, CIFAR, 10, 0.5, 0)
    assert note == "student fussy was not thinned: this network wants eight channels"
    assert model(torch.randn(2, *CIFAR)).shape == (2, 10)


def test_what_cannot_be_thinned_sees_less_beside_what_its_rung_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the side by the rung, and half of these pixels instead of half the channels."""
    monkeypatch.setitem(STUDENTS._classes, "fussy", Fussy)
    world = World(datasets.load("digits", image_size=32), None, Settings(epochs=1, evaluations=1), tmp_path)
    recipe = Recipe.from_dict({"student": "fussy"}).without_distillation()
    done = distil(recipe, world, Seeds.search(0), Fidelity("cheap", data=0.1, keep=0.5, resolution=0.5))
    assert done.trained.network.side == 11


def test_any_network_is_cut_where_its_constructor_knows_no_width() -> None:
    model: Any
    model, note = thin(TwoConvolutions(), NONE, CIFAR, 10, 0.25, 0)
    assert note == ""
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == [4, 4]
    assert model[-1].out_features == 10


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5, (), (1.0, 0.0)])
def test_shares_that_make_no_sense(keep: Any) -> None:
    with pytest.raises(ValueError, match=r"keep must lie in \(0, 1\]"):
        thin(students.create("cnn"), NONE, CIFAR, 10, keep, 0)
