"""Chains, generations, mutual learning and exits, trained: they take any loss, and come back from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdsearch.kd_methods.teaching._ensemble import Ensemble
from kdsearch.kd_methods.teaching._exits import ExitingStudent
from kdsearch.runs import models
from kdsearch.runs.distil import distil
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.metrics import predict
from kdsearch.runs.objective import Objective
from kdsearch.runs.retrain import Student, student_from
from kdsearch.runs.settings import Seeds
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe

CNN = {"family": "cnn", "channels": 4}
BRIEF = Fidelity("t", data=0.2)


def recipe(**slots: Any) -> Recipe:
    return Recipe.from_dict({"student": CNN, **slots})


def sizes(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "slots",
    [
        {"logits": "dist", "features": "reviewkd", "teaching": {"method": "dgkd", "path": "0.67-0.33"}},
        {"logits": "dkd", "relations": "rkd", "teaching": {"method": "dgkd", "path": "0.5", "drop": "fixed"}},
        {"features": "reviewkd", "teaching": {"method": "takd", "path": "0.6-0.4-0.2"}},
        {"logits": "dist", "features": "crd", "teaching": {"method": "born_again", "generations": 3}},
        {"features": "at", "teaching": {"method": "born_again", "objective": "cwtm"}},
        {"targets": "tf_kd", "teaching": {"method": "born_again", "objective": "dkpp", "ensemble": True}},
        {"logits": "dkd", "features": "at", "teaching": {"method": "dml", "turns": True}},
        {"features": "fitnets", "teaching": {"method": "dml", "peers": 2, "teach": "ensemble"}},
        {"logits": "dist", "teaching": {"method": "msd", "pairs": "deeper"}},
        {"logits": "dkd", "teaching": {"method": "msd"}, "optimizer": "dot"},
        {"logits": "kd", "temperature": "logit_std", "teaching": {"method": "byot", "result": "ensemble"}},
    ],
    ids=str,
)
def test_any_loss_composes(world: World, slots: dict[str, Any]) -> None:
    done = distil(recipe(**slots), world, Seeds.search(0), BRIEF)
    terms = {v if isinstance(v, str) else v["method"] for k, v in slots.items() if k in ("logits", "features")}
    assert terms <= set(done.trained.losses)
    if "logits" not in slots:
        assert slots["teaching"]["method"] in {*done.trained.losses, "takd"}
    assert all(value == value for value in done.trained.losses.values())


@pytest.mark.parametrize(
    ("slots", "kind"),
    [
        ({"teaching": {"method": "byot", "result": "ensemble"}}, ExitingStudent),
        ({"teaching": {"method": "msd", "keep_exits": True}, "logits": "kd"}, ExitingStudent),
        (
            {
                "teaching": {"method": "byot", "result": "ensemble"},
                "targets": {"method": "sla", "inference": "aggregated"},
            },
            ExitingStudent,
        ),
        ({"teaching": {"method": "born_again", "generations": 3, "ensemble": True}}, Ensemble),
    ],
    ids=["byot ensemble", "msd kept", "byot around sla", "generations"],
)
def test_what_is_kept_comes_back_from_its_file(world: World, tmp_path: Path, slots: dict[str, Any], kind: type) -> None:
    chosen = recipe(**slots)
    trained = distil(chosen, world, Seeds.search(0), BRIEF).trained
    assert isinstance(trained.module, kind)
    assert sizes(trained.module) > sizes(models.student(chosen, world.data))
    expected = predict(trained.network, world.data.validation)
    Student(trained.module, chosen, {}, {}, 0.0, [], trained.metadata).save(tmp_path / "student.safetensors")
    card = {"recipe": chosen.to_dict(), "input_shape": [1, 8, 8], "classes": 10}
    again = student_from(card, tmp_path / "student.safetensors")
    network = models.network(again, world.data, world.settings)
    torch.testing.assert_close(predict(network, world.data.validation), expected)
    if isinstance(again, ExitingStudent):
        images = network.prepare(world.data.validation.take(torch.arange(3)))
        answers = again.eval().exits(images)
        assert len(answers) == len(again.stages) + 1
        torch.testing.assert_close(again.leave_at(images, 0), answers[0])


def test_exits_are_absent_from_what_is_handed_out_unless_asked(world: World) -> None:
    plain = models.student(recipe(), world.data)
    for name in ("byot", "msd"):
        trained = distil(recipe(teaching=name), world, Seeds.search(0), Fidelity("t", data=0.1)).trained
        assert set(trained.module.state_dict()) == set(plain.state_dict())


def test_every_generation_is_another_network(world: World) -> None:
    chosen = recipe(teaching={"method": "born_again", "generations": 3, "ensemble": True})
    trained = distil(chosen, world, Seeds.search(3), BRIEF).trained
    assert isinstance(trained.module, Ensemble)
    networks = [*trained.module.members, trained.module.student]
    assert [sizes(network) for network in networks] == [sizes(networks[0])] * 3
    weights = [next(network.parameters()).detach() for network in networks]
    assert not torch.allclose(weights[0], weights[1])
    assert not torch.allclose(weights[1], weights[2])


def test_generations_are_shared_by_longer_lines(world: World) -> None:
    line = [recipe(teaching={"method": "born_again", "generations": k}) for k in (2, 3)]
    two = distil(line[0], world, Seeds.search(5), BRIEF)
    three = distil(line[1], world, Seeds.search(5), BRIEF)
    assert two.charged > 0
    assert 0 < three.charged < three.assistants, "the first generation was there"


def test_an_assistants_labels_count_for_its_own_teachers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """(n + 1) labels beside n + 1 lessons, for assistants and student alike."""
    seen: list[tuple[tuple[str, ...], float]] = []
    begin = Objective.__init__

    def watched(self: Objective, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        seen.append((self.strategy.suppliers, self.label_weight))

    monkeypatch.setattr(Objective, "__init__", watched)
    chosen = recipe(logits="kd", ce={"weight": 0.1}, teaching={"method": "dgkd", "path": "0.7-0.4"})
    distil(chosen, world, Seeds.search(7), BRIEF)
    names = ("teacher", "assistant1", "assistant2")
    assert seen == [(names[: k + 1], pytest.approx(0.1 * (k + 1))) for k in range(3)]
