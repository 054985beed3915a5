"""Residual students: the sum closes the gap, is found again, exported and read back; networks can be left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods.teaching._residual import ResidualSum, energy
from kdsearch.runs import models
from kdsearch.runs.distil import distil
from kdsearch.runs.metrics import predict
from kdsearch.runs.retrain import Student, student_from
from kdsearch.runs.settings import Seeds
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.students import measure


def recipe(**slots: Any) -> Recipe:
    return Recipe.from_dict({"student": {"family": "cnn", "channels": 4}, **slots})


SERIES = {"method": "reskd", "residuals": 2, "size": 0.5, "stall": 1.0, "floor": 0.0}


@pytest.fixture
def longer(world: World) -> World:
    return replace(world, settings=replace(world.settings, epochs=4, views=4))


def test_residual_students_close_the_gap_and_are_found_again(longer: World) -> None:
    chosen = recipe(logits="kd", features="at", teaching=SERIES)
    done = distil(chosen, longer, Seeds.search(0))
    module = done.trained.module
    assert isinstance(module, ResidualSum)
    assert done.trained.metrics["networks"] == 3
    assert done.charged == pytest.approx(done.assistants)
    assert done.charged > 0
    assert done.notes[0].startswith("energy of the gap")
    assert longer.teacher is not None
    answers = longer.teacher.validation(longer.data)
    assert answers is not None
    split = longer.data.validation
    with torch.no_grad():
        parts = module.cumulative(done.trained.network.prepare(split.take(torch.arange(len(split)))))
    energies = [energy(answers - logits).item() for logits in parts]
    assert energies[0] > energies[1]
    torch.testing.assert_close(predict(done.trained.network, split), parts[-1], rtol=1e-4, atol=1e-4)
    again = distil(chosen, replace(longer, assistants={}), Seeds.search(0))
    assert again.trained.metrics == done.trained.metrics
    assert again.charged == 0
    assert again.seconds == 0
    assert again.assistants == pytest.approx(done.assistants + done.seconds, rel=0.2)


def test_the_curve_runs_from_all_networks_to_the_first_alone(longer: World) -> None:
    done = distil(recipe(logits="kd", teaching=SERIES), longer, Seeds.search(1))
    rows = done.tables["adaptive"]
    costs = [row[2] for row in rows]
    assert costs == sorted(costs, reverse=True)
    module = done.trained.module
    assert isinstance(module, ResidualSum)
    macs = [measure.macs(m, (1, 8, 8)) for m in (*module.members, module.student)]
    assert costs[0] == pytest.approx(sum(macs))
    assert costs[-1] == pytest.approx(macs[0])
    metrics = done.trained.metrics
    assert metrics["adaptive_accuracy"] >= rows[0][1] - 0.0011
    assert metrics["adaptive_macs"] <= costs[0]


def test_a_small_gap_or_one_that_stalls_ends_the_series(longer: World) -> None:
    done = distil(recipe(logits="kd", teaching={**SERIES, "stall": 0.0}), longer, Seeds.search(0))
    assert done.trained.metrics["networks"] == 2, "one residual student took off less than everything"


def test_the_sum_comes_back_from_its_file(longer: World, tmp_path: Path) -> None:
    chosen = recipe(logits="kd", teaching={**SERIES, "stall": 0.0})
    trained = distil(chosen, longer, Seeds.search(0)).trained
    Student(trained.module, chosen, {}, {}, 0.0, [], trained.metadata).save(tmp_path / "student.safetensors")
    card = {"recipe": chosen.to_dict(), "input_shape": [1, 8, 8], "classes": 10}
    again = student_from(card, tmp_path / "student.safetensors")
    network = models.network(again, longer.data, longer.settings)
    split = longer.data.validation
    torch.testing.assert_close(predict(network, split), predict(trained.network, split))


def test_there_must_be_a_gap_to_somebody(world: World) -> None:
    with pytest.raises(TrialFailure, match="gap"):
        distil(recipe(logits="kd", teaching=SERIES), replace(world, teacher=None), Seeds.search(0))
