"""Auto-KD's reward: linear CKA beside the teacher, measured where the run's metric asks for it and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from kdsearch.errors import TrialFailure, UserError
from kdsearch.kd_methods.decomposed.cka import linear_cka
from kdsearch.runs import config_file, metrics
from kdsearch.runs.config import METRICS
from kdsearch.runs.data import Data
from kdsearch.runs.distil import distil
from kdsearch.runs.metrics import COMPARING, DIRECTIONS, evaluate, predict, represent
from kdsearch.runs.network import Network
from kdsearch.runs.retrain import distill
from kdsearch.runs.settings import Seeds, Settings
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.recipe import Recipe

from .tiny import TINY, write_config

STUDENT = {"student": {"family": "cnn", "channels": 4}}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("samples", "widths"), [(40, (6, 9)), (7, (12, 20)), (10, (10, 30))])
def test_cka_is_the_alignment_of_centred_kernels(samples: int, widths: tuple[int, int]) -> None:
    x, y = (draw(samples, width, seed=width) for width in widths)
    centring = torch.eye(samples, dtype=torch.float64) - 1 / samples
    k, m = (centring @ z @ z.T @ centring for z in (x, y))
    expected = (k * m).sum() / (k.norm() * m.norm())
    torch.testing.assert_close(linear_cka(x, y), expected)
    torch.testing.assert_close(linear_cka(x.float(), y.float()), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(linear_cka(y, x), expected)


def test_cka_does_not_see_rotation_scale_or_shift() -> None:
    x, y = draw(30, 5, seed=1), draw(30, 5, seed=2)
    rotation = torch.linalg.qr(draw(5, 5, seed=3))[0]
    torch.testing.assert_close(linear_cka(x, x @ rotation), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(linear_cka(1e30 * x + 3, y @ rotation * 1e-30), linear_cka(x, y))
    assert linear_cka(x, y) < 0.6
    assert linear_cka(torch.ones(30, 4), x) == 0
    with pytest.raises(ValueError, match="of the same samples"):
        linear_cka(x, y[:5])


def test_every_metric_has_a_direction() -> None:
    assert set(get_args(METRICS)) == set(DIRECTIONS)
    assert set(DIRECTIONS) >= COMPARING
    assert (DIRECTIONS["autokd"], DIRECTIONS["cka"]) == ("minimize", "maximize")
    assert config_file.check({"metric": "autokd"}, "config").metric == "autokd"


def test_the_teacher_is_like_itself(teacher: TeacherModel, digits: Data) -> None:
    logits, embeddings = represent(teacher.network, digits.validation)
    torch.testing.assert_close(logits, predict(teacher.network, digits.validation))
    assert embeddings.shape == (len(digits.validation), teacher.spec.embedding)
    found = evaluate(teacher.network, digits.validation, None, embeddings)
    assert found["cka"] == pytest.approx(1.0)
    assert found["autokd"] == pytest.approx(found["nll"])


def test_a_training_under_the_metric_is_measured_beside_the_teacher(world: World) -> None:
    here = replace(world, metric="autokd")
    done = distil(Recipe.from_dict({**STUDENT, "features": "autokd"}), here, Seeds.search(0)).trained
    found = done.metrics
    assert 0 < found["cka"] < 1
    assert found["autokd"] == pytest.approx(found["nll"] + 1 - found["cka"])
    assert done.curve[-1] == (2, found["autokd"])
    assert world.teacher is not None
    own = represent(done.network, world.data.validation)[1]
    assert found["cka"] == pytest.approx(linear_cka(own, world.teacher.embeddings(world.data)).item())
    same = distil(Recipe.from_dict({**STUDENT, "features": "autokd"}), world, Seeds.search(0)).trained
    assert same.metrics == {name: value for name, value in found.items() if name not in COMPARING}


def test_other_metrics_cost_nothing_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("nobody asked for embeddings")

    monkeypatch.setattr(metrics, "represent", refuse)
    monkeypatch.setattr("kdsearch.runs.world.represent", refuse)
    found = distil(Recipe.from_dict(STUDENT), world, Seeds.search(0)).trained.metrics
    assert not COMPARING & set(found)


def test_the_teachers_embeddings_are_computed_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world.teacher is not None
    here = replace(world, metric="cka", teacher=replace(world.teacher, representations={}))
    first = here.reference()
    monkeypatch.setattr("kdsearch.runs.world.represent", None)
    assert here.reference() is first
    assert world.reference() is None


def test_without_a_teacher_trainings_are_watched_by_their_loss(digits: Data, tmp_path: Path) -> None:
    """A teacher is trained under the run's own metric before anybody is there to be compared with."""
    alone = World(digits, None, Settings(epochs=1, views=1, evaluations=1), tmp_path, "autokd")
    assert (alone.judge, alone.reference()) == ("nll", None)
    done = distil(Recipe.from_dict(STUDENT), alone, Seeds.search(0)).trained
    assert done.curve == [(1, done.metrics["nll"])]


class NoEmbedding(nn.Module):
    """Logits that come from no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.conv(x)
        return maps.mean((2, 3)) + maps.amax((2, 3))


def test_what_has_no_embedding_cannot_be_compared(world: World, digits: Data) -> None:
    network = Network(NoEmbedding(), digits.mean, digits.std)
    with pytest.raises(TrialFailure, match="compares embeddings"):
        represent(network, digits.validation)
    spec = network.spec(digits.input_shape)
    assert spec.embedding is None
    blind = TeacherModel(network, spec, "", "blind")
    with pytest.raises(UserError, match="metric: autokd compares embeddings, and teacher blind has none"):
        World(digits, blind, world.settings, world.cache, "autokd")


def test_a_whole_run_goes_by_the_reward(tmp_path: Path) -> None:
    """Search, finals and test by one metric; the winner has the least of it."""
    from kdsearch.runs.run import Run

    space = {**TINY["space"], "features": {"autokd": {}, "kdzero_features": {}}, "logits": ["none", "autokd_logits"]}
    space["student"] = {"cnn": {"channels": 4, "stages": 3}}
    path = write_config(tmp_path, space=space, metric="autokd", budget={"trials": 4}, searcher={"name": "random"})
    run = Run(tmp_path / "run", config_file.read(path)).claim(new=True)
    run.execute()
    best = run.best
    assert best is not None
    finished = [t.values[0] for t in run.search_ledger.trials() if t.state.name == "COMPLETE"]
    assert finished
    assert all(0 < value < 5 for value in finished)
    tested = run.finals_ledger.study.user_attrs["test"]
    assert all(entry["autokd"] == pytest.approx(entry["nll"] + 1 - entry["cka"]) for entry in tested.values())
    assert run.search_ledger.study.direction.name == "MINIMIZE"


def test_a_recipe_trained_again_reports_it_on_both_splits(tmp_path: Path) -> None:
    config = config_file.check({**TINY, "metric": "cka"}, "config")
    student = distill({**STUDENT, "relations": "kdzero_embedding"}, config=config, cache=tmp_path)
    assert 0 < student.validation["cka"] <= 1
    assert 0 < student.test["cka"] <= 1
