"""Any list of timm names is a family: read from a config, drawn, built, and refused by name where there is no such."""

from __future__ import annotations

import pytest
import torch

from kdsearch.search_space import students
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace
from kdsearch.search_space.students import STUDENTS

MODELS = ["mobilenetv2_035", "resnet18d", "deit_tiny_patch16_224"]


def test_a_list_of_names_is_a_choice() -> None:
    space = SearchSpace.from_dict({"student": {"timm": {"model": MODELS}, "cnn": {}}})
    recipes = [space.sample(seed) for seed in range(60)]
    assert {r.student.name for r in recipes} == {"timm", "cnn"}
    assert {r.student.hyper["model"] for r in recipes if r.student.name == "timm"} == set(MODELS)
    assert SearchSpace.from_dict(space.to_dict()).to_dict() == space.to_dict()
    for recipe in recipes[:5]:
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        space.params_of(recipe)


def test_one_name_is_held() -> None:
    space = SearchSpace.from_dict({"student": {"timm": {"model": "mobilenetv2_035"}}})
    assert {space.sample(seed).student.hyper["model"] for seed in range(10)} == {"mobilenetv2_035"}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)], ids=["digits", "cifar"])
def test_every_name_of_a_list_is_built_for_the_data(model: str, shape: tuple[int, int, int]) -> None:
    if model.startswith("deit") and shape[1] < 16:
        with pytest.raises(ValueError, match="deit_tiny_patch16_224"):
            students.create("timm", model=model).build(shape, 10)(torch.randn(2, *shape))
        return
    network = students.create("timm", model=model).build(shape, 10).eval()
    assert network(torch.randn(2, *shape)).shape == (2, 10)


def test_names_are_no_part_of_a_space_that_lists_none() -> None:
    assert "timm" in STUDENTS
    assert "timm" not in SearchSpace.from_dict({}).options["student"]
