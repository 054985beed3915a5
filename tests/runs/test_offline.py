"""The offline teacher: cached equals live, files survive damage, the planner keeps to its limit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdsearch.kd_methods import Need, ViewPolicy
from kdsearch.runs.data import Data
from kdsearch.runs.distil import distil
from kdsearch.runs.offline import CACHED, LIVE, FixedTeacher, plan_supply
from kdsearch.runs.settings import Seeds
from kdsearch.runs.views import Augmentation, ViewSpec
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.recipe import Recipe

NEEDS = frozenset({Need.LOGITS, Need.EMBEDDING, Need.FEATURES, Need.PREACT, Need.CLASSIFIER})


def offline(teacher: TeacherModel, folder: Path, limit: int, views: int = 3) -> FixedTeacher:
    stages = [0, 2]
    supply = plan_supply(NEEDS, teacher.spec, stages, samples=900, views=views, limit=limit)
    fixed = FixedTeacher(teacher.network, teacher.spec, supply, NEEDS, stages)
    fixed.open(folder, 900, {"teacher": teacher.hash})
    fixed.listen()
    return fixed


@pytest.mark.parametrize("policy", [ViewPolicy(), ViewPolicy(mixup=1.0), ViewPolicy(mixup=1.0, cutmix=1.0)])
def test_cached_equals_live_under_augmentation_and_mixing(
    digits: Data, teacher: TeacherModel, tmp_path: Path, policy: ViewPolicy
) -> None:
    spec = ViewSpec(Augmentation(shift=1, flip=True), policy, 0, 900)
    stored = offline(teacher, tmp_path, 1 << 30)
    for ids in (torch.arange(0, 64), torch.randperm(900)[:64]):
        stored(digits.view(ids, 1, spec))  # fills
    step = digits.view(torch.arange(10, 40), 1, spec)
    assert not any(store.missing(1, step.ids.numpy()) for store in stored.stores.values())
    cached, live = stored(step), stored.live(step.images, step.target)
    torch.testing.assert_close(cached.logits, live.logits, rtol=2e-3, atol=2e-3)
    assert cached.embedding is not None
    assert live.embedding is not None
    torch.testing.assert_close(cached.embedding, live.embedding, rtol=2e-3, atol=2e-3)
    for a, b in zip(cached.features + cached.preact, live.features + live.preact, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)
    assert cached.classifier is not None
    assert torch.equal(cached.classifier[0], live.classifier[0])  # type: ignore[index]


def test_the_planner_caches_what_fits_and_is_live_otherwise(teacher: TeacherModel) -> None:
    everything = plan_supply(NEEDS, teacher.spec, [0, 2], samples=900, views=3, limit=1 << 30)
    assert set(everything.how.values()) == {CACHED, "parameters"}
    size = everything.bytes
    assert "MiB when full" in everything.describe()
    short = plan_supply(NEEDS, teacher.spec, [0, 2], samples=900, views=3, limit=size - 1)
    assert short.live
    assert short.how[Need.LOGITS] == LIVE
    assert short.bytes == 0
    gradient = plan_supply(frozenset({Need.INPUT_GRADIENT}), teacher.spec, [], samples=9, views=1, limit=1 << 30)
    assert gradient.how[Need.INPUT_GRADIENT] == LIVE


def test_a_trial_learns_the_same_from_a_full_cache_and_an_empty_one(world: World) -> None:
    recipe = Recipe.from_dict({"student": {"family": "cnn", "channels": 4}, "logits": "kd"})
    first = distil(recipe, world, Seeds.search(0)).trained
    second = distil(recipe, world, Seeds.search(0)).trained
    assert first.metrics == second.metrics
    assert first.losses == second.losses


@pytest.mark.parametrize("damage", ["truncate", "garbage", "remove"])
def test_a_damaged_cache_is_made_again(digits: Data, teacher: TeacherModel, tmp_path: Path, damage: str) -> None:
    spec = ViewSpec(Augmentation(shift=1), ViewPolicy(), 0, 900)
    step = digits.view(torch.arange(64), 0, spec)
    before = offline(teacher, tmp_path, 1 << 30)(step).logits
    rows = next(tmp_path.glob("logits*.f16"))
    if damage == "truncate":
        rows.write_bytes(rows.read_bytes()[:100])
    elif damage == "remove":
        rows.unlink()
    else:
        next(tmp_path.glob("logits*.json")).write_text("{")
    again = offline(teacher, tmp_path, 1 << 30)
    assert again.stores["logits"].missing(0, step.ids.numpy())
    assert torch.equal(again(step).logits, before)


def test_another_maker_has_its_own_files(teacher: TeacherModel, tmp_path: Path) -> None:
    offline(teacher, tmp_path, 1 << 30)
    count = len(list(tmp_path.glob("*.f16")))
    other = offline(teacher, tmp_path, 1 << 30, views=4)
    assert len(list(tmp_path.glob("*.f16"))) == 2 * count
    assert other.supply.views == 4
