"""What is evaluated and handed out where a method keeps more than the student, and what is prepared for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdsearch.kd_methods.strategy import TEACHER
from kdsearch.runs import deploy, models
from kdsearch.runs.distil import distil
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.jobs import Ladder
from kdsearch.runs.metrics import predict
from kdsearch.runs.retrain import Student, student_from
from kdsearch.runs.settings import Seeds
from kdsearch.runs.training import Training
from kdsearch.runs.trial import Runner
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe

CNN = {"family": "cnn", "channels": 4}


def recipe(**slots: Any) -> Recipe:
    return Recipe.from_dict({"student": CNN, **slots})


@pytest.mark.parametrize(
    "slots",
    [
        {"logits": "simkd"},
        {"logits": "simkd", "teaching": "takd"},
        {"logits": "kd", "targets": {"method": "sla", "inference": "aggregated"}},
    ],
    ids=["simkd", "simkd under an assistant", "sla aggregated"],
)
def test_a_student_comes_back_from_its_file(world: World, tmp_path: Path, slots: dict[str, Any]) -> None:
    chosen = recipe(**slots)
    trained = distil(chosen, world, Seeds.search(0), Fidelity("t", data=0.3)).trained
    assert trained.module is not None
    assert set(trained.metadata) == {"suppliers"}
    expected = predict(trained.network, world.data.validation)
    Student(trained.module, chosen, {}, {}, 0.0, [], trained.metadata).save(tmp_path / "student.safetensors")
    card = {"recipe": chosen.to_dict(), "input_shape": [1, 8, 8], "classes": 10}
    again = student_from(card, tmp_path / "student.safetensors")
    network = models.network(again, world.data, world.settings)
    torch.testing.assert_close(predict(network, world.data.validation), expected)


def test_a_plain_student_needs_nothing_but_its_recipe(world: World) -> None:
    trained = distil(recipe(logits="kd"), world, Seeds.search(0), Fidelity("t", data=0.1)).trained
    assert trained.metadata == {}
    assert trained.module is trained.network.module


def test_the_reported_size_is_that_of_what_is_handed_out(world: World) -> None:
    runner = Runner(world, Ladder(()), Path())
    plain, reusing = (runner.sizes(recipe(logits=name)) for name in ("kd", "simkd"))
    assert world.teacher is not None
    module = deploy.deployed(
        recipe(logits="simkd"),
        models.student(recipe(), world.data),
        (1, 8, 8),
        10,
        deploy.Joined({TEACHER: world.teacher.spec}),
    )
    assert reusing["parameters"] == sum(p.numel() for p in module.parameters())
    assert reusing["parameters"] > plain["parameters"]
    assert reusing["macs"] > plain["macs"]


def test_a_teacher_is_prepared_once_and_its_cost_is_said(world: World) -> None:
    chosen = recipe(relations="bingo", logits="kd")
    first = distil(chosen, world, Seeds.search(0), Fidelity("t", data=0.1))
    heavier = Recipe.from_dict({**chosen.to_dict(), "relations": {"method": "bingo", "weight": 0.3}})
    second = distil(heavier, world, Seeds.search(1), Fidelity("t", data=0.1))
    assert len(list((world.cache / "prepared").glob("bingo-*.safetensors"))) == 1
    assert first.charged > 0
    assert second.charged == 0
    assert second.assistants == pytest.approx(first.assistants)


def test_labels_begin_from_the_best_weights_of_the_stage_before(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    here = World(world.data, world.teacher, replace(world.settings, epochs=6, views=6), world.cache)
    begin, seen = Training._begin_stage, []

    def watched(self: Training, *args: Any) -> None:
        begin(self, *args)
        seen.append(({k: v.clone() for k, v in self.student.network.module.state_dict().items()}, self.best))

    monkeypatch.setattr(Training, "_begin_stage", watched)
    done = distil(recipe(preset="annealing_kd"), here, Seeds.search(0), Fidelity("t", data=0.3))
    (_, nothing), (weights, best) = seen
    assert nothing is None
    assert best is not None
    assert best[0] == max(score for epoch, score in done.trained.curve if epoch <= 4)
    for name, value in best[1][0].items():
        torch.testing.assert_close(weights[name], value)


def test_a_student_without_privilege_is_shown_less_and_so_are_its_baselines(world: World) -> None:
    chosen = recipe(logits="kd", data={"method": "privileged", "resolution": 0.5})
    assert chosen.without_distillation().policies["data"].name == "privileged"
    assert chosen.plain_kd().policies["data"] == chosen.policies["data"]
    trained = distil(chosen, world, Seeds.search(0), Fidelity("t", data=0.2)).trained
    assert trained.network.side == 4
    assert models.input_shape(chosen, world.data) == (1, 4, 4)
    shape = trained.network.prepare(world.data.validation.take(torch.arange(2))).shape
    assert shape == (2, 1, 4, 4)


def test_the_booster_is_a_network_of_the_teachers_size(world: World) -> None:
    boosted = recipe(teaching={"method": "rocket", "share": "none"})
    done = distil(boosted, world, Seeds.search(0), Fidelity("t", data=0.3))
    assert {"rocket", "ce"} <= set(done.trained.losses)
    plain = distil(recipe(), world, Seeds.search(0), Fidelity("t", data=0.3))
    assert set(done.trained.module.state_dict()) == set(plain.trained.module.state_dict())
