"""Teachers trained by a recipe, and teachers compared by their students."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from kdsearch.errors import UserError
from kdsearch.runs import assemble, config_file, models, taught, teacher, teachers
from kdsearch.runs.config import RunConfig, teacher_node
from kdsearch.runs.data import Data
from kdsearch.runs.report.intervals import paired
from kdsearch.runs.report.teachers import rows
from kdsearch.runs.taught import Taught
from kdsearch.runs.world import TeacherModel
from kdsearch.search_space.recipe import content_hash

from .tiny import TINY, invoke, write_config

SMOOTH = {"targets": {"method": "label_smoothing", "weight": 0.3}}
NASTY = {"logits": {"method": "nasty_teacher", "weight": 0.04, "temperature": 4.0}}


def config(**of_teacher: Any) -> RunConfig:
    return config_file.check({**TINY, "teacher": {**TINY["teacher"], **of_teacher}}, "config")


def prepare(settings: RunConfig, data: Data, cache: Path) -> TeacherModel:
    return teacher.prepare(settings, data, assemble.settings(settings), cache)


def files(cache: Path) -> set[str]:
    return {path.name for path in (cache / "teacher").glob("*.safetensors")}


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, whatever is trained is a failure."""

    def trains(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("it was trained again")

    monkeypatch.setattr(teacher, "distil", trains)
    monkeypatch.setattr(taught, "distil", trains)


# teacher.recipe


def test_a_plain_teacher_is_addressed_as_ever(digits: Data, tmp_path: Path) -> None:
    settings = config(epochs=2)
    prepare(settings, digits, tmp_path)
    key = {
        "recipe": teacher_node(settings.teacher).to_dict(),
        "data": digits.fingerprint,
        "augmentation": str(digits.augmentation),
        "epochs": 2,
        "batch": 64,
        "seed": 0,
    }
    assert files(tmp_path) == {f"{content_hash(key)}.safetensors"}
    assert teacher.training_recipe(config(recipe={}).teacher) == teacher.training_recipe(config().teacher)


def test_an_optimiser_alone_is_another_plain_teacher(digits: Data, tmp_path: Path) -> None:
    plain = prepare(config(epochs=2), digits, tmp_path)
    other = prepare(config(epochs=2, recipe={"optimizer": {"method": "sgd", "lr": 0.2}}), digits, tmp_path)
    assert len(files(tmp_path)) == 2
    assert plain.hash != other.hash


def test_a_smoothed_teacher_is_less_sure(digits: Data, tmp_path: Path) -> None:
    def confidence(model: TeacherModel) -> float:
        predictions = model.validation(digits)
        assert predictions is not None
        return predictions.softmax(1).amax(1).mean().item()

    plain = prepare(config(epochs=12), digits, tmp_path)
    smooth = prepare(config(epochs=12, recipe=SMOOTH), digits, tmp_path)
    assert smooth.metrics["accuracy"] > 0.9
    assert confidence(smooth) < confidence(plain) - 0.1


def test_a_recipe_that_needs_a_teacher_gets_an_ordinary_one_first(digits: Data, tmp_path: Path) -> None:
    nasty = prepare(config(recipe=NASTY), digits, tmp_path)
    both = files(tmp_path)
    assert len(both) == 2
    plain = prepare(config(), digits, tmp_path)
    assert files(tmp_path) == both
    assert nasty.seconds > plain.seconds > 0
    assert nasty.hash != plain.hash


def test_a_nasty_teacher_moves_away_from_the_ordinary_one(digits: Data, tmp_path: Path) -> None:
    def predictions(**slots: Any) -> torch.Tensor:
        found = prepare(config(**slots), digits, tmp_path).validation(digits)
        assert found is not None
        return (found / 4).log_softmax(1)

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        return torch.nn.functional.kl_div(b, a, log_target=True, reduction="batchmean").item()

    ordinary = predictions()
    weak, strong = (predictions(recipe={"logits": {**NASTY["logits"], "weight": w}}) for w in (1e-3, 0.3))
    assert apart(ordinary, strong) > 2 * apart(ordinary, weak)


def test_a_stored_teacher_is_found_again(digits: Data, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    first = prepare(config(recipe=NASTY), digits, tmp_path)
    request.getfixturevalue("no_training")
    second = prepare(config(recipe=NASTY), digits, tmp_path)
    assert (second.hash, second.metrics, second.seconds) == (first.hash, first.metrics, first.seconds)


def test_what_its_recipe_adds_to_the_network_is_stored_with_it(
    digits: Data, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A teacher distilled by a token keeps its second head."""
    vit = {"family": "vit", "depth": 1, "dim": 24, "heads": 2}
    settings = config(model=vit, epochs=6, recipe={"tokens": "deit", "optimizer": {"method": "adamw", "lr": 5e-3}})
    first = prepare(settings, digits, tmp_path)
    assert any("head_dist" in name for name in first.network.module.state_dict())
    request.getfixturevalue("no_training")
    assert prepare(settings, digits, tmp_path).hash == first.hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"recipe": {"targets": "label_smoothin"}},
            "teacher.recipe: targets: unknown method 'label_smoothin'; did you",
        ),
        ({"recipe": {"logits": "label_smoothing"}}, "teacher.recipe: logits: 'label_smoothing' is a targets method"),
        ({"recipe": {"target": "labels"}}, "teacher.recipe: recipe has no slot 'target'; did you mean 'targets'"),
        (
            {"recipe": {"targets": {"method": "label_smoothing", "weight": 2}}},
            "teacher.recipe: targets: label_smoothing.weight must lie in [0, 1], not 2",
        ),
        ({"recipe": {"student": "cnn"}}, "teacher.recipe: the teacher's architecture is teacher.model"),
        ({"recipe": {"transform": "none"}}, "a recipe for it has no 'transform'"),
        ({"recipe": SMOOTH, "checkpoint": "teacher.pt"}, "a teacher that comes from teacher.checkpoint is not trained"),
        ({"recipe": {"tokens": "deit"}, "epochs": 2}, "teacher.recipe: tokens=deit needs a student with a"),
        ({"recipe": "labels"}, "teacher.recipe = 'labels': Input should be a valid dictionary"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_config(tmp_path, teacher=changes)
    result = invoke("run", path, "--run-dir", tmp_path / "run", "--quiet")
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr


def test_a_run_keeps_the_recipe_of_its_teacher(tmp_path: Path) -> None:
    settings = config(recipe=SMOOTH)
    config_file.write(settings, tmp_path / "config.yaml")
    assert config_file.read(tmp_path / "config.yaml").teacher == settings.teacher


# kdsearch teachers


def test_every_teacher_has_the_same_architecture_budget_seed_and_optimiser() -> None:
    given = config(recipe={"optimizer": {"method": "sgd", "lr": 0.2}, **SMOOTH})
    found = teachers.configs_of(given, ["nasty_teacher:weight=0.04,temperature=4", "label_smoothing"])
    assert list(found) == ["ordinary", "nasty_teacher:weight=0.04,temperature=4", "label_smoothing"]
    recipes = [teacher.training_recipe(own.teacher) for own in found.values()]
    assert {recipe.policies["optimizer"].hyper["lr"] for recipe in recipes} == {0.2}
    assert [recipe.policies["targets"].name for recipe in recipes] == ["labels", "labels", "label_smoothing"]
    assert recipes[1].terms["logits"].hyper == {"weight": 0.04, "temperature": 4.0}
    for own in found.values():
        assert own.model_copy(update={"teacher": given.teacher}) == given
        assert own.teacher.model_copy(update={"recipe": given.teacher.recipe}) == given.teacher


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nasty_teachr", "--with 'nasty_teachr': unknown method 'nasty_teachr'; did you mean 'nasty_teacher'"),
        ("label_smoothing:0.1", "write METHOD:KEY=VALUE,KEY=VALUE"),
        ("label_smoothing:weight={", "write METHOD:KEY=VALUE,KEY=VALUE"),
        ("label_smoothing:epsilon=1", "label_smoothing has no hyper-parameter 'epsilon'"),
        ("agreement", "recipe has no slot 'analysis'"),
    ],
)
def test_a_wrong_method_is_one_line_and_exit_2(tmp_path: Path, text: str, message: str) -> None:
    result = invoke("teachers", write_config(tmp_path), "--with", text, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_teachers_of_a_checkpoint_are_not_compared(tmp_path: Path) -> None:
    path = write_config(tmp_path, teacher={"checkpoint": "teacher.pt"})
    result = invoke("teachers", path, "--out", tmp_path / "out")
    assert (result.exit_code, "teacher.checkpoint" in result.stderr) == (2, True)


def test_a_teacher_that_cannot_be_trained_is_named_before_anything_is_trained(
    digits: Data, tmp_path: Path, no_training: None
) -> None:
    settings = config(recipe={"tokens": "deit"})
    with pytest.raises(UserError, match=r"teacher.recipe: tokens=deit needs a student with a"):
        prepare(settings, digits, tmp_path)
    with pytest.raises(UserError, match=r"--with 'nasty_teacher:weight=-1': logits: nasty_teacher.weight must lie in"):
        teachers.compare(config(), ["nasty_teacher:weight=-1"], seeds=1, folder=tmp_path)


def test_comparison_as_a_command(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path, out = write_config(tmp_path), tmp_path / "out"
    options = ("teachers", path, "--with", "label_smoothing:weight=0.3", "--seeds", "2", "--out", out)
    result = invoke(*options, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert json.loads((out / "teachers.json").read_text()) == found
    assert (found["metric"], found["seeds"]) == ("accuracy", 2)
    ordinary, smooth = found["teachers"]
    assert [ordinary["label"], smooth["label"]] == ["ordinary", "label_smoothing:weight=0.3"]
    assert "label_smoothing" in smooth["equation"]
    for entry in (ordinary, smooth):
        assert entry["accuracy"] > 0.5
        assert entry["nll"] > 0
        assert 0 < entry["compatibility"]["stability"] <= 1
        assert entry["compatibility"]["diffusion"]["n"] == 2
        for group in ("students", "cold_students"):
            assert entry[group]["mean"] == pytest.approx(fmean(entry[group]["scores"]))
    # Smoothing erases how samples of a class differ.
    assert smooth["compatibility"]["stability"] > ordinary["compatibility"]["stability"]
    ours, theirs = (dict(enumerate(entry["students"]["scores"])) for entry in (smooth, ordinary))
    gain = paired(ours, theirs)
    assert gain is not None
    assert smooth["students"]["over_ordinary"]["mean"] == pytest.approx(gain.mean)
    assert smooth["students"]["over_ordinary"]["half_width"] == pytest.approx(gain.half_width)
    assert ordinary["students"]["over_ordinary"] is None
    alone = dict(enumerate(found["none"]["students"]["scores"]))
    over = paired(ours, alone)
    assert over is not None
    assert smooth["students"]["over_none"]["mean"] == pytest.approx(over.mean)

    request.getfixturevalue("no_training")
    again = invoke(*options)
    assert again.exit_code == 0, again.output
    lines = again.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == ["ordinary", "label_smoothing:weight=0.3", "no teacher"]
    for row, line in zip(rows(found), lines[1:4], strict=True):
        assert all(cell in line for cell in row.values())
    assert str(out / "teachers.json") in lines[-1]


def test_students_are_the_ones_of_the_finals(tmp_path: Path) -> None:
    """The same recipe, teacher and seed give the number that a run's finals would."""
    from kdsearch.runs.retrain import distill
    from kdsearch.search_space.space import SearchSpace

    settings = config()
    found = teachers.compare(settings, [], seeds=1, folder=tmp_path, say=lambda text: None)
    recipe = SearchSpace.from_dict(settings.space).default().plain_kd()
    student = distill(recipe, config=settings, seed=0, cache=tmp_path / "cache")
    assert found["teachers"][0]["students"]["scores"] == [student.validation["accuracy"]]


# classes drawn together


def student(centroids: torch.Tensor | None) -> Taught:
    return Taught({"accuracy": 1.0}, centroids)


def test_diffusion_is_read_off_class_means() -> None:
    labels = torch.tensor([0, 0, 1, 2, 3, 3])
    cold = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    assert taught.diffusion(student(cold), student(3 * cold + 1), labels) == pytest.approx(0, abs=1e-6)
    near = cold.clone()
    near[1, 0] = 0.5  # the two nearest classes have come closer still
    drawn = taught.diffusion(student(cold), student(near), labels)
    assert drawn is not None
    assert drawn > 0


@pytest.mark.parametrize("centroids", [None, torch.eye(4)])
def test_no_diffusion_without_embeddings_or_with_two_classes(centroids: torch.Tensor | None) -> None:
    labels = torch.tensor([0, 1, 1]) if centroids is not None else torch.tensor([0, 1, 2])
    assert taught.diffusion(student(centroids), student(centroids), labels) is None


def test_centroids_are_mean_embeddings(digits: Data, teacher: TeacherModel) -> None:
    found = taught._centroids(teacher.network, digits)
    assert found is not None
    head = teacher.network.module.get_submodule(str(teacher.spec.classifier))
    seen: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    replace(teacher, predictions=None).validation(digits)
    handle.remove()
    embeddings, labels = torch.cat(seen), digits.validation.labels
    expected = torch.stack([embeddings[labels == k].mean(0) for k in range(10)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert models.state_hash(teacher.network.module) == teacher.hash
