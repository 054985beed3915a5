"""Residual networks whose stages differ: in width, by factors of their own, and in depth, as S1 has them."""

from __future__ import annotations

from typing import Any

import pytest

from kdsearch.kd_methods.probe import probe
from kdsearch.search_space import students
from kdsearch.search_space.space import SearchSpace
from kdsearch.search_space.students import measure
from kdsearch.search_space.students.families.resnet_s1 import ResNetS1

CIFAR = (3, 32, 32)


@pytest.mark.parametrize("name", ["resnet", "wrn"])
def test_each_stage_has_a_width_of_its_own(name: str) -> None:
    family = students.create(name, depth=8 if name == "resnet" else 10, width=2, width1=0.5, width2=0.75, width3=1.5)
    spec = probe(family.build(CIFAR, 10), CIFAR)
    assert [s.channels for s in spec.stages] == [16, 48, 192]
    assert spec.embedding == 192
    thin = family.thinned(0.5)
    assert thin is not None
    assert thin.hyper == {**family.hyper, "width": 1.0}
    assert [s.channels for s in probe(thin.build(CIFAR, 10), CIFAR).stages] == [8, 24, 96]


@pytest.mark.parametrize(("name", "width1", "stem"), [("resnet", 1.0, 32), ("resnet", 0.25, 16), ("wrn", 0.125, 8)])
def test_the_stem_follows_the_first_stage(name: str, width1: float, stem: int) -> None:
    model: Any = students.create(name, depth=8 if name == "resnet" else 10, width=4, width1=width1).build(CIFAR, 10)
    assert getattr(model.stem, "conv", model.stem).out_channels == stem


@pytest.mark.parametrize("name", ["resnet", "wrn"])
def test_widths_of_stages_are_searched_and_can_be_held(name: str) -> None:
    space = SearchSpace.from_dict({"student": {name: {}}})
    widths = [[space.sample(seed).student.hyper[f"width{k}"] for seed in range(30)] for k in (1, 2, 3)]
    for values in widths:
        assert len(set(values)) == 30
        assert all(0.5 <= float(value) <= 2 for value in values)
    held = SearchSpace.from_dict({"student": {name: {"width1": 1.0, "width2": 1.0, "width3": 1.0}}})
    assert {held.sample(seed).student.hyper["width2"] for seed in range(30)} == {1.0}


@pytest.mark.parametrize(
    ("code", "size", "cost"),
    [
        ("111", 83_892, 12_507_392),
        ("713", 259_892, 50_256_128),
        ("333", 278_324, 40_818_944),
        ("777", 667_188, 97_442_048),
    ],
)
def test_networks_of_s1(code: str, size: int, cost: int) -> None:
    model: Any = ResNetS1.from_code(code).build(CIFAR, 100)
    assert [len(model.stage1), len(model.stage2), len(model.stage3)] == [int(digit) for digit in code]
    assert measure.parameters(model) == size
    assert measure.macs(model, CIFAR) == cost


def test_equal_blocks_are_the_ordinary_networks() -> None:
    for code, depth in (("111", 8), ("333", 20), ("777", 44)):
        same = students.create("resnet", depth=depth).build(CIFAR, 100)
        shapes = {name: value.shape for name, value in same.state_dict().items()}
        built = ResNetS1.from_code(code).build(CIFAR, 100)
        assert {name: value.shape for name, value in built.state_dict().items()} == shapes


def test_its_space_holds_the_64_networks() -> None:
    space = SearchSpace.from_dict({"student": {"resnet_s1": {"width": 1.0}}})
    drawn = {tuple(space.sample(seed).student.hyper[f"blocks{k}"] for k in (1, 2, 3)) for seed in range(600)}
    assert len(drawn) == 64
    assert {n for blocks in drawn for n in blocks} == {1, 3, 5, 7}


@pytest.mark.parametrize("code", ["33", "3333", "303", "3a3", ""])
def test_other_codes_are_refused(code: str) -> None:
    with pytest.raises(ValueError, match="resnet_s1 takes three digits from 1 to 9, such as '713'"):
        ResNetS1.from_code(code)
