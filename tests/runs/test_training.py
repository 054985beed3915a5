"""Training end to end on digits: every method in the slots, stages, seeds, resume, memory, failures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods import LOSS_SLOTS, METHODS, Need
from kdsearch.runs import models
from kdsearch.runs.distil import distil, examine
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.jobs import SEARCH, Job, Ladder
from kdsearch.runs.settings import Seeds
from kdsearch.runs.training import Training
from kdsearch.runs.trial import Runner
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.validity import problem

from .tiny import QUICK, of_transformers

CNN = {"family": "cnn", "channels": 4}


def recipe(**slots: Any) -> Recipe:
    return Recipe.from_dict({"student": CNN} | slots)


def for_method(name: str) -> Recipe:
    """A recipe in which this method takes part."""
    cls = METHODS[name]
    slots: dict[str, Any] = {cls.slot: {"method": name, **QUICK.get(name, {})}}
    if of_transformers(name):
        slots["student"] = {"family": "vit"}
    if cls.slot not in ("logits", "features", "relations", "tokens", "targets"):
        slots.setdefault("logits", "kd")
    return recipe(**slots)


TRAINED = [cls.name for cls in METHODS if cls.slot != "analysis"]


@pytest.mark.parametrize("name", TRAINED)
def test_every_method_trains_a_student_end_to_end(world: World, transformer: TeacherModel, name: str) -> None:
    chosen = for_method(name)
    if Need.QKV in METHODS[name].needs.teacher:
        world = replace(world, teacher=transformer)
    assert problem(chosen, world.teacher.spec if world.teacher else None, 10) is None
    done = distil(chosen, world, Seeds.search(0), Fidelity("tiny", data=0.3))
    assert set(done.trained.losses) - {"ce"} or name in ("teacher", "labels")
    assert all(value == value for value in done.trained.losses.values())
    assert 0 <= done.trained.metrics["accuracy"] <= 1


@pytest.mark.parametrize(
    "slots",
    [
        {"logits": "dkd", "features": "at", "relations": "sp"},
        {"logits": "dkd", "temperature": "ctkd", "features": "at"},
        {"logits": "dkd", "features": "at", "teaching": "dml"},
        {"features": "reviewkd", "teaching": "takd"},
        {"logits": "dist", "features": "fitnets", "optimizer": "dot"},
        {"logits": "kd", "teaching": "byot"},
        {"relations": "rkd", "teaching": "mean_teacher"},
        {"logits": "kd", "features": "crd", "data": "funmatch", "targets": "sla"},
        {"student": "vit", "tokens": "dmae", "teaching": "mean_teacher", "optimizer": "adamw"},
        {"student": "vit", "tokens": "smkd", "teaching": "mean_teacher", "optimizer": "adamw"},
        {"features": {"method": "nst", "pairing": "cross"}, "relations": "pkt", "logits": "mlld"},
        {"logits": "nkd", "features": "kpn", "relations": "bingo", "data": "ferkd"},
        {"features": "jacobian", "logits": {"method": "kd"}, "teaching": {"method": "dml", "peers": 2}},
    ],
)
def test_methods_compose(world: World, slots: dict[str, Any]) -> None:
    done = distil(recipe(**slots), world, Seeds.search(0), Fidelity("tiny", data=0.2))
    terms = [v if isinstance(v, str) else v["method"] for k, v in slots.items() if k in LOSS_SLOTS]
    assert set(terms) <= set(done.trained.losses)


def test_same_seed_same_result_other_seed_other_result(world: World) -> None:
    chosen = recipe(logits="kd")
    a, b = (distil(chosen, world, Seeds.search(1)).trained for _ in range(2))
    assert a.losses == b.losses
    assert a.metrics == b.metrics
    assert distil(chosen, world, Seeds.search(2)).trained.losses != a.losses


def test_global_random_state_is_left_alone(world: World) -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    distil(recipe(logits="kd"), world, Seeds.search(0), Fidelity("tiny", data=0.1))
    assert torch.equal(before, torch.random.get_rng_state())


def test_search_trials_share_initial_weights_order_and_views(world: World) -> None:
    """After a single step every loss has the value of the initial weights, whatever else the recipe holds."""
    small = World(world.data, world.teacher, replace(world.settings, epochs=1), world.cache)
    one_step = Fidelity("one step", data=0.08)
    recipes = (recipe(logits="kd"), recipe(logits="kd", relations="sp", features="crd"), recipe(logits="dkd"))
    kd, both, dkd = (distil(r, small, Seeds.search(0), one_step).trained for r in recipes)
    assert kd.steps == both.steps == 1
    assert kd.losses["kd"] == both.losses["kd"]
    assert kd.losses["ce"] == both.losses["ce"] == dkd.losses["ce"]


def test_stages_split_the_budget(world: World) -> None:
    settings = replace(world.settings, epochs=8, views=8, evaluations=8)
    here = World(world.data, world.teacher, settings, world.cache)
    done = distil(
        recipe(features={"method": "fitnets", "staged": True}), here, Seeds.search(0), Fidelity("t", data=0.2)
    )
    assert done.trained.epochs == 8
    assert [epoch for epoch, _ in done.trained.curve] == list(range(1, 9))


def test_a_staged_recipe_is_compressed_into_one_epoch_a_stage(world: World) -> None:
    done = distil(
        recipe(features={"method": "fitnets", "staged": True}),
        world,
        Seeds.search(0),
        Fidelity("t", epochs=0.1, data=0.2),
    )
    assert done.trained.epochs == 2


def test_thinned_student_costs_less(world: World) -> None:
    wide = Recipe.from_dict({"student": {"family": "cnn", "channels": 16}, "logits": "kd"})
    done = distil(wide, world, Seeds.search(0), Fidelity("sparse", keep=0.5, data=0.2))
    full = distil(wide, world, Seeds.search(0), Fidelity("full", data=0.2))
    count = [sum(p.numel() for p in d.trained.module.parameters()) for d in (done, full)]
    assert count[0] < 0.4 * count[1]


def test_parts_are_absent_from_the_export(world: World) -> None:
    plain = distil(recipe(logits="kd"), world, Seeds.search(0), Fidelity("t", data=0.1)).trained.module
    crd = distil(recipe(features="crd", targets="sla"), world, Seeds.search(0), Fidelity("t", data=0.1)).trained.module
    assert set(plain.state_dict()) == set(crd.state_dict())


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "slots",
    [
        {"features": "crd", "logits": "kd"},
        {"teaching": "orc"},
        {"teaching": {"method": "okdph", "interval": 2}},
        {"teaching": "msd", "logits": "dkd"},
        {"teaching": {"method": "dml", "turns": True}, "optimizer": "dot", "logits": "kd"},
        {"transform": "linearity_grafting", "logits": "kd", "teaching": "mean_teacher"},
        {"transform": "net2net", "logits": "kd", "student": {"family": "cnn", "channels": 8}},
        {"teaching": {"method": "born_again", "ensemble": True}},
    ],
    ids=str,
)
def test_a_killed_training_goes_on_where_it_stopped(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: dict[str, Any]
) -> None:
    """Weights, optimiser, memory banks and generators survive: the resumed training ends as the uninterrupted one."""
    settings = replace(world.settings, epochs=4, views=4, checkpoint_seconds=0.0)
    here = World(world.data, world.teacher, settings, world.cache)
    chosen, share = recipe(**slots), Fidelity("t", data=0.3)
    whole = distil(chosen, here, Seeds.search(0), share).trained  # what is trained beforehand is found from here on
    path = tmp_path / "state.pt"
    epoch = Training._epoch

    def dies(self: Training, *args: Any, **kwargs: Any) -> int:
        if self.done == self.epochs // 2:
            raise Killed
        return epoch(self, *args, **kwargs)

    monkeypatch.setattr(Training, "_epoch", dies)
    with pytest.raises(Killed):
        distil(chosen, here, Seeds.search(0), share, checkpoint=path)
    monkeypatch.undo()
    assert path.exists()
    resumed = distil(chosen, here, Seeds.search(0), share, checkpoint=path).trained
    assert resumed.steps == whole.steps
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-5)
    assert resumed.metrics == pytest.approx(whole.metrics, rel=1e-5)
    for own, expected in zip(resumed.module.parameters(), whole.module.parameters(), strict=True):
        torch.testing.assert_close(own, expected)
    assert not path.exists()


def test_a_torn_checkpoint_is_left_aside(world: World, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(b"torn")
    done = distil(recipe(logits="kd"), world, Seeds.search(0), Fidelity("t", data=0.1), checkpoint=path)
    assert done.trained.epochs == 2


def epochs_until(monkeypatch: pytest.MonkeyPatch, last: int | None = None) -> list[int]:
    """The epochs that are trained from now on; a process that reaches `last` is killed."""
    epoch, seen = Training._epoch, []

    def watched(self: Training, *args: Any, **kwargs: Any) -> int:
        if self.done == last:
            raise Killed
        seen.append(self.done)
        return epoch(self, *args, **kwargs)

    monkeypatch.setattr(Training, "_epoch", watched)
    return seen


def test_a_checkpoint_of_another_training_is_left_aside(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(world.settings, checkpoint_seconds=0.0)
    here = replace(world, settings=settings)
    assert world.teacher is not None
    chosen, share, seeds, path = recipe(logits="kd"), Fidelity("t", data=0.1), Seeds.search(0), tmp_path / "state.pt"
    with monkeypatch.context() as killed:
        epochs_until(killed, 1)
        with pytest.raises(Killed):
            distil(chosen, here, seeds, share, checkpoint=path)
    state = path.read_bytes()
    same = (chosen, replace(here, settings=replace(settings, evaluations=2)), seeds, share)
    others = [
        (recipe(logits="dkd"), here, seeds, share),
        (chosen, replace(here, teacher=replace(world.teacher, hash="another")), seeds, share),
        (chosen, replace(here, settings=replace(settings, batch_size=32)), seeds, share),
        (chosen, here, Seeds.finalist(0, 1), share),
        (chosen, here, seeds, Fidelity("t", data=0.2)),
    ]
    for training, expected in [*((other, [0, 1]) for other in others), (same, [1])]:
        path.write_bytes(state)
        with monkeypatch.context() as patched:
            seen = epochs_until(patched)
            distil(*training, checkpoint=path)
        assert seen == expected


def test_a_trial_that_is_tried_again_goes_on_from_its_checkpoint(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(world, settings=replace(world.settings, checkpoint_seconds=0.0))
    runner = Runner(here, Ladder((Fidelity("brief", data=0.1),)), tmp_path)
    job = Job(SEARCH, 3, recipe().to_dict(), 0, protected=True, scored=False)
    with monkeypatch.context() as killed:
        epochs_until(killed, 1)
        with pytest.raises(Killed):
            list(runner.run(job))
    seen = epochs_until(monkeypatch)
    assert [result.name for result in runner.run(replace(job, number=9))] == ["brief"]
    assert seen == [1]
    assert list((tmp_path / "work").iterdir()) == []


def test_out_of_memory_halves_the_micro_batch_then_gives_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Training._step
    sizes: list[int] = []

    def scarce(self: Training, batch: Any, stage: Any, active: Any, progress: float, chunks: int) -> None:
        sizes.append(len(batch.ids) // chunks)
        if len(batch.ids) // chunks > 16:
            raise torch.OutOfMemoryError("scarce")
        step(self, batch, stage, active, progress, chunks)

    monkeypatch.setattr(Training, "_step", scarce)
    done = distil(recipe(logits="kd"), world, Seeds.search(0), Fidelity("t", data=0.2))
    assert sizes[:3] == [64, 32, 16]
    assert done.trained.steps > 0

    def never(self: Training, *args: Any) -> None:
        raise torch.OutOfMemoryError("none at all")

    monkeypatch.setattr(Training, "_step", never)
    with pytest.raises(TrialFailure) as caught:
        distil(recipe(logits="kd"), world, Seeds.search(0), Fidelity("t", data=0.2))
    assert caught.value.reason == "out-of-memory"


def test_a_non_finite_loss_names_its_term(world: World) -> None:
    wild = recipe(features={"method": "at", "weight": 1e30}, logits="kd")
    with pytest.raises(TrialFailure) as caught:
        distil(wild, world, Seeds.search(0))
    assert caught.value.reason == "non-finite"
    assert "epoch" in str(caught.value)


def test_rejection_catches_what_is_out_of_proportion_and_spares_the_rest(world: World) -> None:
    examine(recipe(logits="kd", features="at"), world, Seeds.search(0), 1e-4, 1e4)
    with pytest.raises(TrialFailure) as caught:
        examine(recipe(features={"method": "at", "weight": 1e12}), world, Seeds.search(0), 1e-4, 1e4)
    assert caught.value.reason == "rejected"
    assert "at" in str(caught.value)


def test_assistants_are_trained_once_and_their_cost_is_said(world: World) -> None:
    chain = recipe(logits="kd", teaching={"method": "takd", "path": "0.5"})
    first = distil(chain, world, Seeds.search(0))
    second = distil(recipe(logits="dkd", teaching={"method": "takd", "path": "0.5"}), world, Seeds.search(0))
    assert first.charged > 0
    assert first.assistants == pytest.approx(second.assistants)
    assert second.charged == 0
    fresh = World(world.data, world.teacher, world.settings, world.cache)  # another process: found on disk
    assert distil(chain, fresh, Seeds.search(0)).charged == 0


def test_channels_last_is_left_alone_where_it_crashes(world: World) -> None:
    """The backward pass of a strided 1×1 convolution of four channels ends the process on CPUs (torch 2.15)."""
    formats = [
        models.network(nn.Conv2d(width, 8, 1, stride=2), world.data, world.settings, side=16).memory_format
        for width in (4, 8)
    ]
    assert formats == [torch.contiguous_format, torch.channels_last]
