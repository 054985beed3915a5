"""Who answers a step: means of weights that carry gradients, a teacher that learns too, turns, several teachers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods import Need
from kdsearch.kd_methods.strategy import Plan
from kdsearch.runs import models
from kdsearch.runs.assistants import expanded
from kdsearch.runs.distil import _prepare, distil
from kdsearch.runs.fidelity import FULL, Fidelity
from kdsearch.runs.hybrid import Hybrid
from kdsearch.runs.network import Network
from kdsearch.runs.pivot import Pivot
from kdsearch.runs.settings import Seeds
from kdsearch.runs.shares import distances
from kdsearch.runs.training import Training
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.recipe import Recipe

CNN = {"family": "cnn", "channels": 4}
BRIEF = Fidelity("t", data=0.2)


def recipe(**slots: Any) -> Recipe:
    return Recipe.from_dict({"student": CNN, **slots})


def begun(chosen: Recipe, world: World) -> Training:
    torch.manual_seed(0)
    training = _prepare(chosen, world, Seeds.search(0), FULL, None, None)[0]
    training._begin_stage(*training.stages[0], None)
    return training


@pytest.fixture
def networks(world: World) -> list[Network]:
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        network = models.network(models.student(recipe(), world.data), world.data, world.settings)
        network.listen(frozenset({Need.LOGITS}), network.spec(world.data.input_shape), [])
        network.module.train()
        found.append(network)
    return found


def test_the_mean_of_the_weights_answers_and_its_loss_reaches_every_learner(
    world: World, networks: list[Network]
) -> None:
    step = world.data.train.take(torch.arange(32))
    labels = world.data.train.labels[:32]
    hybrid = Hybrid(networks)
    before = [{k: v.clone() for k, v in n.module.named_buffers()} for n in networks]
    F.cross_entropy(hybrid(step, labels).logits, labels).backward()
    mean = copy.deepcopy(networks[0])
    hybrid.fill(mean.module)
    mean.listen(frozenset({Need.LOGITS}), mean.spec(world.data.input_shape), [])
    mean.module.zero_grad()
    F.cross_entropy(mean(step, labels).logits, labels).backward()
    for network in networks:
        for own, expected in zip(network.module.parameters(), mean.module.parameters(), strict=True):
            assert own.grad is not None
            assert expected.grad is not None
            torch.testing.assert_close(own.grad, expected.grad / 3, rtol=1e-4, atol=1e-6)
    for network, kept in zip(networks, before, strict=True):
        for name, value in network.module.named_buffers():
            assert torch.equal(value, kept[name]), "the hybrid's pass moves nobody's running statistics"


def test_fusing_moves_every_learner_towards_the_mean(networks: list[Network]) -> None:
    first = [next(n.module.parameters()).detach().clone() for n in networks]
    Hybrid(networks).fuse(0.25)
    mean = torch.stack(first).mean(0)
    for network, before in zip(networks, first, strict=True):
        torch.testing.assert_close(next(network.module.parameters()).detach(), before + 0.25 * (mean - before))
    Hybrid(networks).fuse(1.0)
    weights = [next(n.module.parameters()) for n in networks]
    torch.testing.assert_close(weights[0], weights[2])


def test_learners_of_a_hybrid_begin_alike_see_their_own_views_and_the_mean_is_the_result(world: World) -> None:
    chosen = recipe(teaching={"method": "okdph", "peers": 1})
    training = begun(chosen, world)
    first, second = (learner.network.module for learner in training.learners[:2])
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    step = training.data.view(training.ids[:16], 0, training.views)
    room = training.classroom
    assert room._shown(step, 0) is step
    assert not torch.equal(room._shown(step, 1).images, step.images)
    assert torch.equal(room._shown(step, 1).ids, step.ids)
    training._step(step, training.stages[0][0], [learner.objective.terms for learner in training.learners], 0.5, 1)
    room.measured()
    learners = [next(learner.network.module.parameters()) for learner in training.learners]
    assert not torch.equal(learners[0], learners[1])
    torch.testing.assert_close(next(room.kept.module.parameters()), torch.stack(list(learners)).mean(0))


def test_losses_that_belong_to_all_cannot_be_taken_apart(world: World) -> None:
    with pytest.raises(TrialFailure, match="hybrid"):
        distil(recipe(teaching="okdph", optimizer="dot"), world, Seeds.search(0), BRIEF)


def test_the_pivot_learns_and_the_runs_teacher_stays(world: World) -> None:
    assert world.teacher is not None
    before = {k: v.clone() for k, v in world.teacher.network.module.state_dict().items()}
    training = begun(recipe(teaching="orc"), world)
    pivot = training.classroom.pivot
    assert pivot is not None
    step = training.data.view(training.ids[:32], 0, training.views)
    training._step(step, training.stages[0][0], [learner.objective.terms for learner in training.learners], 0.5, 1)
    moved = pivot.network.module.state_dict()
    assert any(not torch.equal(moved[name], value) for name, value in before.items())
    after = world.teacher.network.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    sizes = [sum(p.numel() for p in learner.network.module.parameters()) for learner in training.learners]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1]
    training.classroom.close()


def test_the_pivot_moves_at_its_own_rate(world: World) -> None:
    assert world.teacher is not None
    training = begun(recipe(teaching={"method": "orc", "pivot": 0.5}), world)
    rates = [optimizer.param_groups[0]["base_lr"] for optimizer in training._optimizers()]
    assert rates[-1] == pytest.approx(0.5 * rates[0])
    fresh = Pivot(world.teacher, 0.1)
    fresh.listen(frozenset(), [])
    before = [p.clone() for p in fresh.network.module.parameters()]
    fresh.learn(torch.rand(4, 1, 8, 8), torch.full((4, 10), 0.1), world.settings.autocast(world.device))
    assert all(torch.equal(a, b) for a, b in zip(before, fresh.network.module.parameters(), strict=True))
    fresh.network.close()
    training.classroom.close()


def test_a_pivot_needs_a_teacher(world: World) -> None:
    with pytest.raises(TrialFailure, match="none was given"):
        distil(recipe(teaching="orc"), replace(world, teacher=None), Seeds.search(0), BRIEF)


def test_in_turns_the_second_learner_sees_what_the_first_has_become(world: World) -> None:
    """Both rules take the same first step of the student, and another one of its peer."""
    after = []
    for turns in (False, True):
        training = begun(recipe(teaching={"method": "dml", "turns": turns}), world)
        step = training.data.view(training.ids[:32], 0, training.views)
        training._step(step, training.stages[0][0], [learner.objective.terms for learner in training.learners], 0.5, 1)
        after.append([next(learner.network.module.parameters()).detach().clone() for learner in training.learners])
        training.classroom.close()
    together, alternating = after
    torch.testing.assert_close(together[0], alternating[0])
    assert not torch.equal(together[1], alternating[1])


@pytest.fixture
def several(world: World, digits: Any) -> World:
    """The same teacher twice under two names, and a random one."""
    assert world.teacher is not None
    torch.manual_seed(5)
    module = models.student(Recipe.from_dict({"student": {"family": "resnet", "depth": 8}}), world.data)
    network = models.network(module.eval().requires_grad_(False), world.data, world.settings)
    other = TeacherModel(network, network.spec(world.data.input_shape), "random", "resnet")
    return replace(world, others={"teacher2": other})


def test_every_teacher_of_the_run_is_named_in_the_plan(several: World) -> None:
    plan = expanded(Plan(teachers=("every",)), several)
    assert plan.teachers == ("teacher", "teacher2")


def test_twins_teach_as_one(world: World) -> None:
    assert world.teacher is not None
    twins = replace(world, others={"teacher2": world.teacher})
    one = distil(recipe(logits="kd", features="at"), world, Seeds.search(0), BRIEF).trained
    for weighting in ("mean", "average", "distance"):
        chosen = recipe(logits="kd", features="at", teaching={"method": "ensemble", "weighting": weighting})
        two = distil(chosen, twins, Seeds.search(0), BRIEF).trained
        for name in ("kd", "at"):
            assert two.losses[name] == pytest.approx(one.losses[name], rel=1e-3), weighting


@pytest.mark.parametrize("weighting", ["mean", "average", "distance"])
def test_teachers_of_any_architecture_teach_together(several: World, weighting: str) -> None:
    chosen = recipe(
        logits="kd",
        features={"method": "at", "pairing": "same_depth"},
        relations="sp",
        teaching={"method": "ensemble", "weighting": weighting},
    )
    done = distil(chosen, several, Seeds.search(0), BRIEF)
    assert {"kd", "at", "sp"} <= set(done.trained.losses)
    assert [note for note in done.notes if note.startswith("teacher2:")]


def test_a_nearer_teacher_has_the_larger_share_at_every_layer(several: World) -> None:
    assert several.teacher is not None
    chosen = recipe(logits="kd", features="at", teaching={"method": "ensemble", "weighting": "distance"})
    student = models.network(models.student(chosen, several.data), several.data, several.settings)
    suppliers = several.teachers
    found = distances(chosen, student, suppliers, several)
    again = distances(chosen, student, suppliers, several)
    assert found == again
    own = replace(several.teacher, network=student, spec=student.spec(several.data.input_shape))
    zero = distances(chosen, student, {"teacher": own}, several)
    assert max(zero["teacher"]) < 1e-6 < min(min(layers) for layers in found.values())


def test_a_layers_share_is_that_of_its_loss(world: World) -> None:
    """At's loss is the sum over layers, so that equal shares change nothing and layers may be weighed apart."""
    from kdsearch.kd_methods import Batch
    from kdsearch.runs.objective import Objective

    assert world.teacher is not None
    chosen = recipe(features="at")
    student = models.network(models.student(chosen, world.data), world.data, world.settings)
    spec, theirs = student.spec(world.data.input_shape), world.teacher.spec
    images, labels = world.data.train.take(torch.arange(16)), world.data.train.labels[:16]
    stages = list(range(len(spec.stages)))
    student.listen(frozenset({Need.LOGITS, Need.FEATURES}), spec, stages)
    world.teacher.network.listen(frozenset({Need.LOGITS, Need.FEATURES}), theirs, stages)
    with torch.no_grad():
        a, b = student(images), world.teacher.network(images)
    student.close()
    world.teacher.network.close()

    def value(shares: dict[str, list[float]] | None) -> float:
        objective = Objective(chosen, spec, {"teacher": theirs}, world.data_spec(), shares=shares)
        tapped = {"teacher": stages}
        losses = objective(
            a,
            {"teacher": [b]},
            Batch(labels, torch.arange(16)),
            objective.terms,
            labels=False,
            own=True,
            student_tapped=stages,
            tapped=tapped,
        )
        return losses.values["at"].item()

    bound = Objective(chosen, spec, {"teacher": theirs}, world.data_spec()).terms[0].bound["teacher"]
    count = len(bound[0].student_stages)
    assert count > 1
    plain = value(None)
    assert value({"teacher": [1.0] * count}) == pytest.approx(plain, rel=1e-5)
    single = [value({"teacher": [float(k == j) for j in range(count)]}) for k in range(count)]
    assert sum(single) == pytest.approx(plain, rel=1e-5)
    assert max(single) > min(single)


@pytest.mark.parametrize("teaching", ["ensemble", "orc", "mean_teacher", "okdph", "dml"])
def test_modules_are_left_without_hooks(several: World, teaching: str) -> None:
    done = distil(recipe(logits="kd", features="at", teaching=teaching), several, Seeds.search(0), BRIEF)
    assert not _hooks(done.trained.module)
    assert not [name for name, model in several.teachers.items() if _hooks(model.network.module)]


def test_a_failed_training_leaves_no_hooks_either(several: World) -> None:
    hot = recipe(logits="kd", features={"method": "at", "weight": 1e30}, teaching="ensemble")
    with pytest.raises(TrialFailure):
        distil(hot, several, Seeds.search(0), BRIEF)
    assert not [name for name, model in several.teachers.items() if _hooks(model.network.module)]


def test_mixed_views_are_the_same_for_everybody(world: World) -> None:
    """Another view of a mixture would be another mixture, and its answer no target."""
    training = begun(recipe(logits="kd", data="funmatch", teaching="okdph"), world)
    step = training.data.view(training.ids[:16], 0, training.views)
    assert step.soft_target is not None
    assert training.classroom._shown(step, 1) is step
    training.classroom.close()


def _hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_two_teachers_of_unlike_bias_each_teach_their_own_token(several: World) -> None:
    """Co-advise: the first teacher has the convolution token, the second the involution token."""
    chosen = Recipe.from_dict({"student": "vit", "tokens": "coadvise", "teaching": "ensemble", "optimizer": "adamw"})
    torch.manual_seed(0)
    training = _prepare(chosen, several, Seeds.search(0), FULL, None, None)[0]
    (term,) = training.objective.terms
    assert {name: bound[0].method.place for name, bound in term.bound.items()} == {
        "teacher": (0, 2),
        "teacher2": (1, 2),
    }
    step = training.data.view(training.ids[:16], 0, training.views)
    (losses,) = training._losses(
        step, [training.objective.terms], 0.5, labels=True, own=True, moving=[training.student]
    )
    assert losses is not None
    assert losses.values["coadvise"].requires_grad
    training.classroom.close()
