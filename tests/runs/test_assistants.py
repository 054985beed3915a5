"""Models of plans: trained once per content, by one of several workers, and again where their files are damaged."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdsearch.errors import TrialFailure
from kdsearch.runs import models
from kdsearch.runs.assistants import AT_HAND, kept
from kdsearch.runs.distil import _prepare, distil, examine
from kdsearch.runs.fidelity import FULL, Fidelity
from kdsearch.runs.metrics import predict
from kdsearch.runs.network import Network
from kdsearch.runs.settings import Seeds
from kdsearch.runs.training import Trained
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe

BRIEF = Fidelity("t", data=0.2)


def recipe(**slots: Any) -> Recipe:
    return Recipe.from_dict({"student": {"family": "cnn", "channels": 4}, **slots})


def trained(seconds: float) -> Trained:
    module = nn.Linear(2, 2)
    network = Network(module, torch.zeros(1), torch.ones(1))
    return Trained(network, {"accuracy": 0.5}, [(1, 0.5)], {"ce": 1.0}, {}, seconds, 1, 1, module)


def test_of_several_who_want_it_at_once_one_trains(tmp_path: Path) -> None:
    paid: list[bool] = []
    calls: list[int] = []

    def train(state: Path) -> tuple[Trained, float]:
        calls.append(1)
        time.sleep(0.2)
        return trained(3.0), 3.0

    def want() -> None:
        paid.append(kept("key", tmp_path, train).paid)

    workers = [threading.Thread(target=want) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(calls) == 1
    assert sorted(paid) == [False, False, False, True]
    found = kept("key", tmp_path, train)
    assert (found.costs.spent, found.costs.charged) == (3.0, 0.0)


@pytest.mark.parametrize(("file", "damage"), [("json", "{"), ("json", "{}"), ("json", "null"), ("safetensors", "torn")])
def test_a_damaged_file_is_no_result(tmp_path: Path, file: str, damage: str) -> None:
    kept("key", tmp_path, lambda state: (trained(1.0), 1.0))
    (tmp_path / f"key.{file}").write_text(damage)
    assert kept("key", tmp_path, lambda state: (trained(2.0), 2.0)).paid


def test_a_search_over_losses_trains_an_assistant_once(world: World) -> None:
    """Thirty recipes, three of whose strategies need the same two assistants."""
    paths = ("0.5", "0.67-0.33", "0.67")
    charged, assistants = 0.0, []
    for k in range(30):
        losses = {"logits": ("kd", "dkd", "dist")[k % 3], "teaching": {"method": "takd", "path": paths[k // 10]}}
        done = distil(recipe(**losses), world, Seeds.search(0), Fidelity("t", data=0.07))
        charged += done.charged
        assistants.append(done.assistants)
    assert len(list((world.cache / "models").glob("*.safetensors"))) == 3
    assert sum(assistants) > 5 * charged > 0


def test_a_grown_student_begins_as_the_smaller_one(world: World) -> None:
    grown = recipe(
        logits="kd",
        student={"family": "cnn", "channels": 8},
        transform={"method": "net2net", "size": 0.5, "noise": 0.0, "share": 0.5},
    )
    torch.manual_seed(0)
    training, costs, _ = _prepare(grown, world, Seeds.search(0), FULL, None, None)
    assert costs.charged > 0
    assert training.epochs == 1, "half of the two epochs are the smaller one's"
    training.classroom.close()
    small = models.student(recipe(), world.data)
    (weights,) = (world.cache / "models").glob("*-bare.safetensors")
    models.load(small, weights)
    expected = predict(models.network(small.eval(), world.data, world.settings), world.data.validation)
    training.student.network.module.eval()
    torch.testing.assert_close(predict(training.student.network, world.data.validation), expected, rtol=1e-4, atol=1e-4)


def test_students_that_grow_from_the_same_one_train_it_once(world: World) -> None:
    def grow(channels: int, size: float) -> Recipe:
        return recipe(
            logits="kd",
            student={"family": "cnn", "channels": channels},
            transform={"method": "net2net", "size": size, "share": 0.5},
        )

    first = distil(grow(8, 0.5), world, Seeds.search(0))
    second = distil(grow(16, 0.25), world, Seeds.search(0))
    assert first.charged > 0
    assert second.charged == 0
    assert second.assistants == pytest.approx(first.assistants)


def test_a_student_that_cannot_grow_says_so(world: World) -> None:
    with pytest.raises(TrialFailure, match="net2net"):
        distil(recipe(student="rnn", transform="net2net"), world, Seeds.search(0), BRIEF)


def test_generations_by_the_recipe_have_the_recipes_losses(world: World) -> None:
    chosen = recipe(logits="dist", relations="sp", teaching={"method": "born_again", "generations": 2})
    done = distil(chosen, world, Seeds.search(0), BRIEF)
    assert {"dist", "sp"} <= set(done.trained.losses)
    assert done.charged > 0
    with pytest.raises(TrialFailure, match="none was given"):
        distil(chosen, replace(world, teacher=None), Seeds.search(0), BRIEF)


def test_another_teacher_or_another_chain_makes_another_model(world: World) -> None:
    """What a model was taught by is a part of its content, also where its plan names it alone."""
    assert world.teacher is not None
    own = replace(world.teacher, hash="another")
    grown = {"student": {"family": "cnn", "channels": 8}, "transform": {"method": "net2net", "share": 0.5}}
    for slots in (grown, {"teaching": {"method": "reskd", "residuals": 1}}):
        chosen = recipe(logits="kd", **slots)
        assert distil(chosen, world, Seeds.search(0), BRIEF).trained.steps > 0
        again = distil(chosen, replace(world, assistants={}), Seeds.search(0), BRIEF)
        other = distil(chosen, replace(world, teacher=own, assistants={}), Seeds.search(0), BRIEF)
        assert again.charged == 0
        assert other.charged > 0
    first, second = (
        distil(recipe(logits="kd", **grown, teaching={"method": "takd", "path": path}), world, Seeds.search(0), BRIEF)
        for path in ("0.3", "0.9")
    )
    assert first.charged > 0
    assert second.charged > 0
    assert len(list((world.cache / "models").glob("*-bare.safetensors"))) == 4


def test_looking_at_a_recipe_trains_nothing(world: World) -> None:
    grown = recipe(logits="kd", student={"family": "cnn", "channels": 8}, transform="net2net")
    for chosen in (grown, recipe(logits="kd", teaching="reskd"), recipe(logits="kd", teaching="born_again")):
        examine(chosen, world, Seeds.search(0), 1e-6, 1e6)
    assert not list((world.cache / "models").glob("*"))


def test_few_models_stay_in_memory(world: World) -> None:
    brief = replace(world, settings=replace(world.settings, epochs=1, views=1))
    for k in range(AT_HAND + 2):
        path = {"teaching": {"method": "takd", "path": f"{0.3 + k / 20:.2f}"}}
        distil(recipe(logits="kd", **path), brief, Seeds.search(0), Fidelity("t", data=0.07))
    assert len(brief.assistants) <= AT_HAND
