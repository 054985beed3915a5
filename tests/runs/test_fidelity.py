"""Cheap trainings: what they leave out, that the rest is the recipe's own plan, and that they cost less."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdsearch.errors import UserError
from kdsearch.kd_methods import create
from kdsearch.runs import assemble, config_file
from kdsearch.runs import network as networks
from kdsearch.runs.data import Data, Split
from kdsearch.runs.distil import distil
from kdsearch.runs.fidelity import FULL, Fidelity
from kdsearch.runs.settings import Seeds, Settings
from kdsearch.runs.subsets import chosen, entropies
from kdsearch.runs.training import Training
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe

from .tiny import TINY

CNN = {"family": "cnn", "channels": 4}
VIT = {"family": "vit", "patch": 2, "dim": 8, "depth": 2, "heads": 2}
BRIEF = Fidelity("t", data=0.15)


def recipe(student: dict[str, Any] = CNN, **slots: Any) -> Recipe:
    return Recipe.from_dict({"student": student, "optimizer": {"method": "sgd", "lr": 0.1}, **slots})


# what a fidelity says


def test_a_fidelity_survives_json() -> None:
    cheap = Fidelity("t", 0.5, keep=(1.0, 0.5), tokens=0.5, select="entropy")
    assert Fidelity(**json.loads(json.dumps(cheap.to_dict()))) == cheap
    assert (cheap.thins, cheap.kept, cheap.full) == (True, 0.75, False)
    assert FULL.full
    assert Fidelity("other", keep=(1.0, 1.0)).full


def rung(**fields: Any) -> dict[str, Any]:
    first = {"name": "cheap", **fields}
    return {**TINY, "fidelity": {"epochs": 2, "rungs": [first, {"name": "full"}]}}


def test_rungs_of_a_config() -> None:
    given = config_file.check(rung(keep=[1, 0.5], tokens=0.5, select="entropy"), "config")
    assert given.fidelity.rungs[0].fidelity() == Fidelity("cheap", keep=(1.0, 0.5), tokens=0.5, select="entropy")
    assert config_file.check(given.model_dump(mode="json"), "again") == given


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"keep": []}, "one share for all stages, or one for each"),
        ({"keep": [1, 1.5]}, "above 0 and at most 1"),
        ({"select": "entropie"}, "entropy"),
        ({"token": 0.5}, "unknown key 'fidelity.rungs.0.token'; did you mean 'tokens'"),
        ({"keep": 2}, r"^config: fidelity.rungs.0.keep = 2: give one share [^\n]*$"),
    ],
)
def test_what_a_rung_cannot_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        config_file.check(rung(**fields), "config")


def test_an_infinite_cache_has_no_limit() -> None:
    config = config_file.check({"fidelity": {"cache_limit_mib": float("inf")}}, "config")
    assert assemble.settings(config).cache_limit > 2**60


# the schedule


@pytest.mark.parametrize("cheap", [FULL, Fidelity("t", epochs=0.5, data=0.3), Fidelity("t", epochs=0.25)])
def test_the_whole_learning_rate_schedule_is_in_every_training(
    world: World, cheap: Fidelity, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = Training._step

    def watched(self: Training, *args: Any) -> None:
        rates.append(self.student.optimizer.param_groups[0]["lr"])
        step(self, *args)

    monkeypatch.setattr(Training, "_step", watched)
    here = replace(world, settings=Settings(epochs=4, views=4, evaluations=1))
    done = distil(recipe(), here, Seeds.search(0), cheap)
    schedule: Any = create(recipe().policies["schedule"].name)
    steps = done.trained.steps
    assert len(rates) == steps
    assert rates[0] == pytest.approx(0.1 * schedule.learning_rate(0.0))
    assert rates[-1] == pytest.approx(0.1 * schedule.learning_rate(1 - 1 / steps))
    assert schedule.learning_rate(1.0) == pytest.approx(0, abs=1e-9)
    assert rates[-1] < 0.1 * rates[0]


# the samples


def test_degrees_of_doubt_weigh_the_same(digits: Data) -> None:
    doubt = torch.full((len(digits.train),), 1e-3)
    doubt[::20] = 1.0  # one in twenty
    doubtful = doubt == 1.0
    ids = digits.subset(0.02, 0, doubt)
    assert len(ids) == round(0.02 * len(doubt))
    assert torch.equal(ids, ids.unique())
    shares = [doubtful[digits.subset(0.02, seed, doubt)].float().mean() for seed in range(20)]
    assert 0.4 < torch.stack(shares).mean() < 0.6
    assert torch.equal(ids, digits.subset(0.02, 0, doubt))
    assert not torch.equal(ids, digits.subset(0.02, 1, doubt))
    assert torch.equal(digits.subset(1.0, 0, doubt), torch.arange(len(doubt)))
    assert doubtful[digits.subset(0.9, 0, doubt)].float().mean() < 0.1  # no sample twice


def test_doubt_is_measured_once_and_kept(world: World) -> None:
    assert world.teacher is not None
    found, costs = entropies(world.teacher, world)
    assert costs.charged == costs.spent > 0
    assert found.shape == (len(world.data.train),)
    assert (found >= 0).all()
    again, later = entropies(world.teacher, world)
    assert torch.equal(found, again)
    assert (later.charged, later.spent) == (0, pytest.approx(costs.spent))


def test_a_training_on_what_the_teacher_doubts(world: World) -> None:
    cheap = Fidelity("t", data=0.1, select="entropy")
    notes: list[str] = []
    ids, _ = chosen(world, cheap, Seeds.search(0), notes)
    assert not torch.equal(ids, world.data.subset(0.1, 0))
    first, second = (distil(recipe(logits="kd"), world, Seeds.search(0), cheap) for _ in range(2))
    assert first.trained.metrics == second.trained.metrics
    assert first.trained.metrics != distil(recipe(logits="kd"), world, Seeds.search(0), BRIEF).trained.metrics
    assert notes == []


def test_without_a_teacher_nobody_doubts(world: World) -> None:
    alone = replace(world, teacher=None)
    notes: list[str] = []
    ids, _ = chosen(alone, Fidelity("t", data=0.1, select="entropy"), Seeds.search(0), notes)
    assert torch.equal(ids, alone.data.subset(0.1, 0))
    assert "no teacher" in notes[0]


# patches


def tokens_seen(world: World, chosen: Recipe, cheap: Fidelity, monkeypatch: pytest.MonkeyPatch) -> tuple[set[int], Any]:
    """How many tokens the transformer's blocks saw in training, and the result."""
    from timm.layers import Attention

    seen: set[int] = set()
    forward = Attention.forward

    def counting(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and self.training:
            seen.add(x.shape[1])
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(Attention, "forward", counting)
    done = distil(chosen, world, Seeds.search(0), cheap)
    monkeypatch.undo()
    return seen, done


@pytest.mark.parametrize("slots", [{"logits": "kd"}, {"features": "fitnets"}, {"teaching": "dml", "logits": "kd"}])
def test_transformers_leave_patches_out_in_training_alone(
    world: World, slots: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    adam = {"optimizer": "adamw"}
    seen, done = tokens_seen(world, recipe(VIT, **slots, **adam), replace(BRIEF, tokens=0.5), monkeypatch)
    assert seen == {1 + 8}
    images = world.data.validation.take(torch.arange(4))
    assert torch.equal(done.trained.network.logits(images), done.trained.network.logits(images))
    whole, _ = tokens_seen(world, recipe(VIT, **slots, **adam), BRIEF, monkeypatch)
    assert whole == {1 + 16}


def test_all_trials_see_the_same_patches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdsearch.runs import patches

    drawn: list[list[torch.Tensor]] = []
    draw = patches.PatchMasked._draw

    def noting(self: patches.PatchMasked, *args: Any) -> Any:
        found = draw(self, *args)
        drawn[-1].append(found.cells)
        return found

    monkeypatch.setattr(patches.PatchMasked, "_draw", noting)
    for slots in ({}, {"logits": "kd"}):
        drawn.append([])
        distil(recipe(VIT, **slots, optimizer="adamw"), world, Seeds.search(0), replace(BRIEF, tokens=0.25))
    assert len(drawn[0]) == len(drawn[1]) > 1
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    assert not torch.equal(drawn[0][0], drawn[0][1])
    assert (drawn[0][0].flatten(1).sum(1) == 4).all()


def test_a_convolutional_student_sees_fewer_pixels_instead(digits: Data, tmp_path: Path) -> None:
    def larger(split: Split) -> Split:
        assert isinstance(split.images, torch.Tensor)
        images = split.images[:300].repeat_interleave(2, 2).repeat_interleave(2, 3)
        return Split(images, split.labels[:300])

    splits = larger(digits.train), larger(digits.validation), larger(digits.test)
    data = Data("large", *splits, classes=10, augmentation=digits.augmentation)
    here = World(data, None, Settings(epochs=1, views=1, evaluations=1), tmp_path)
    for student, side in ((CNN, 11), (VIT, None)):
        cheap = replace(BRIEF, data=0.5, tokens=0.5)
        done = distil(recipe(student).without_distillation(), here, Seeds.search(0), cheap)
        assert done.trained.network.side == side


# what is made once


def test_an_architecture_is_measured_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    student = {"family": "cnn", "channels": 7}
    for cheap in (BRIEF, replace(BRIEF, keep=0.5)):
        first = distil(recipe(student, features="at"), world, Seeds.search(0), cheap).trained.metrics
        with monkeypatch.context() as patched:
            patched.setattr(networks, "probe", lambda *args: pytest.fail("it was measured again"))
            assert distil(recipe(student, features="at"), world, Seeds.search(0), cheap).trained.metrics == first
