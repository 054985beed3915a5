"""born_again: golden numbers, the two other objectives, generations, and their ensemble."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, Signals
from kdsearch.kd_methods import functional as KF
from kdsearch.kd_methods.strategy import TEACHER
from kdsearch.kd_methods.teaching._ensemble import Ensemble, mean_probabilities

from .feature_signals import data, model
from .golden import agrees, cases, tensors
from .logit_hazards import assert_finite, draw, hazards

OBJECTIVES = ("ban", "cwtm", "dkpp")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("case", "arrays"), cases("logits/ban"))
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    hyper = case["hyper"]
    x = tensors(arrays, "student_logits")
    student, teacher = x["student_logits"], x["teacher_logits"]
    if hyper["variant"] == "ban":
        agrees(case, KF.born_again(student, teacher, x["labels"]), x)
        return
    # The third-party rule: a divergence without T², averaged over the classes too.
    high = hyper["T"]
    cross = KF.born_again(student, teacher, x["labels"], temperature=high) / high**2
    entropy = -((teacher / high).softmax(1) * (teacher / high).log_softmax(1)).sum(1).mean()
    divergence = (cross - entropy) / student.shape[1]
    loss = hyper["alpha"] * divergence + (1 - hyper["alpha"]) * F.cross_entropy(student, x["labels"])
    agrees(case, loss, x)


@hazards
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_hazards(objective: str, hazard: str) -> None:
    assert_finite(lambda s, t, y: KF.born_again(s, t, y, objective=objective, generator=generator()), hazard)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradcheck(objective: str) -> None:
    student, teacher, target = draw(3, 4, dtype=torch.float64)
    student.requires_grad_(True)

    def loss(s: Tensor) -> Tensor:
        return KF.born_again(s, teacher, target, objective=objective, temperature=2.0, generator=generator())

    assert torch.autograd.gradcheck(loss, (student,))


def test_plain_objective_is_least_at_the_teacher() -> None:
    student, teacher, target = draw(5, 6, dtype=torch.float64)
    at_teacher = teacher.clone().requires_grad_(True)
    KF.born_again(at_teacher, teacher, target, temperature=2.0).backward()
    assert at_teacher.grad is not None
    assert at_teacher.grad.abs().max() < 1e-12
    assert KF.born_again(student, teacher, target) > KF.born_again(teacher, teacher, target)
    rows = KF.born_again(student, teacher, target, temperature=3.0, reduction="none")
    torch.testing.assert_close(rows.mean(), KF.born_again(student, teacher, target, temperature=3.0))


def test_confidence_weighs_labels() -> None:
    student, teacher, target = draw(6, 5, dtype=torch.float64)
    confidence = teacher.softmax(1).max(1).values
    weights = confidence / confidence.sum()
    expected = (weights * F.cross_entropy(student, target, reduction="none")).sum()
    torch.testing.assert_close(KF.born_again(student, teacher, target, objective="cwtm"), expected)
    torch.testing.assert_close(
        KF.born_again(student, teacher, target, objective="cwtm", reduction="none").mean(), expected
    )
    alike = torch.zeros(6, 5, dtype=torch.float64)
    torch.testing.assert_close(
        KF.born_again(student, alike, target, objective="cwtm"), F.cross_entropy(student, target)
    )
    mixed = F.one_hot(target, 5).double()
    torch.testing.assert_close(KF.born_again(student, teacher, mixed, objective="cwtm"), expected)


@pytest.mark.parametrize("kept", ["argmax", "label"])
def test_dark_knowledge_is_permuted_around_what_is_kept(kept: str) -> None:
    """Read off the gradient softmax(student) - permuted, at a student that knows nothing."""
    student, teacher, target = draw(200, 6, dtype=torch.float64)
    student = torch.zeros_like(student).requires_grad_(True)
    KF.born_again(
        student, teacher, target, objective="dkpp", kept=kept, generator=generator(), reduction="none"
    ).sum().backward()
    assert student.grad is not None
    permuted, soft = 1 / 6 - student.grad, teacher.softmax(1)
    column = teacher.argmax(1) if kept == "argmax" else target
    torch.testing.assert_close(permuted.sort(1).values, soft.sort(1).values)
    torch.testing.assert_close(permuted.gather(1, column[:, None]), soft.gather(1, column[:, None]))
    moved = (permuted - soft).abs() > 1e-9
    assert moved.sum(1).max() > 2, "some rows move many columns"
    # 4 of 5 columns of a random permutation of 5 move, on average.
    assert moved.double().sum(1).mean() == pytest.approx(4.0, abs=0.3)


def test_permutations_follow_the_generator() -> None:
    student, teacher, target = draw(8, 10)
    values = [KF.born_again(student, teacher, target, objective="dkpp", generator=generator(k)) for k in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


def test_two_classes_leave_nothing_to_permute() -> None:
    student, teacher, target = draw(5, 2)
    plain = KF.born_again(student, teacher, target)
    torch.testing.assert_close(KF.born_again(student, teacher, target, objective="dkpp"), plain)


def test_what_does_not_exist() -> None:
    student, teacher, target = draw(2, 3)
    with pytest.raises(ValueError, match="objective must be"):
        KF.born_again(student, teacher, target, objective="kd")
    with pytest.raises(ValueError, match="kept must be"):
        KF.born_again(student, teacher, target, objective="dkpp", kept="none")


def test_generations() -> None:
    method: Any = kd_methods.create("born_again", generations=3)
    plan = method.plan()
    assert [(p.name, p.size, p.teachers, p.by, p.generation) for p in plan.pretrain] == [
        ("generation1", 0.0, (TEACHER,), "recipe", 1),
        ("generation2", 0.0, ("generation1",), "recipe", 2),
    ]
    assert plan.teachers == ("generation2",)
    assert plan.members == ()
    only: Any = kd_methods.create("born_again", generations=1)
    assert (only.plan().teachers, only.plan().pretrain) == ((TEACHER,), ())
    together: Any = kd_methods.create("born_again", generations=3, ensemble=True)
    assert together.plan().members == ("generation1", "generation2")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_lesson(objective: str) -> None:
    method: Any = kd_methods.create("born_again", objective=objective)
    student, teacher, target = draw(4, 5)
    soft = 0.7 * F.one_hot(target, 5) + 0.3 * F.one_hot(target.flip(0), 5)
    batch = Batch(target, torch.arange(4), soft_target=soft, generator=generator(3))
    (lesson,) = method.lessons(Signals(student), {"generation1": [Signals(teacher)]}, batch)
    assert (lesson.weight, lesson.supplier) == (1.0, "generation1")
    labels = soft if objective == "cwtm" else target
    expected = KF.born_again(student, teacher, labels, objective=objective, generator=generator(3))
    torch.testing.assert_close(method.loss(lesson.student, lesson.teacher, batch), expected)


def test_labels_that_are_missing() -> None:
    spec, partly = model([]), replace(data(), partly=True)
    for objective in OBJECTIVES:
        kd_methods.create("born_again", objective=objective).bind(spec, spec, partly)
    keeping = kd_methods.create("born_again", objective="dkpp", kept="label")
    keeping.bind(spec, spec, data())
    with pytest.raises(ValueError, match="label of every sample"):
        keeping.bind(spec, spec, partly)
    student, teacher, target = draw(4, 5)
    target[::2] = -100
    confidence = teacher.softmax(1).max(1).values
    losses = F.cross_entropy(student, target, reduction="none")
    expected = (confidence / confidence.sum() * losses).sum()
    torch.testing.assert_close(KF.born_again(student, teacher, target, objective="cwtm"), expected)


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))


def test_the_ensemble_averages_probabilities_and_follows_the_student() -> None:
    torch.manual_seed(0)
    members, student = [network(), network()], network()
    method: Any = kd_methods.create("born_again", generations=3, ensemble=True)
    together = method.combine(members, student)
    images = torch.randn(4, 2, 4)
    together.train()
    assert student.training
    assert not any(module.training for member in members for module in member.modules())
    together.eval()
    expected = torch.stack([m(images).softmax(1) for m in (*members, student)]).mean(0)
    torch.testing.assert_close(together(images).softmax(1), expected)
    torch.testing.assert_close(together(images).exp().sum(1), torch.ones(4))
    trained = {id(p) for p in together.parameters() if p.requires_grad}
    assert trained == {id(p) for p in student.parameters()}
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.5)
    assert not torch.allclose(together(images).softmax(1), expected)
    again = Ensemble([network(), network()], network()).eval()
    again.load_state_dict(together.state_dict())
    torch.testing.assert_close(again(images), together(images))


def test_mean_probabilities_of_extreme_logits() -> None:
    certain = torch.tensor([[300.0, -300.0], [-300.0, 300.0]])
    answer = mean_probabilities([certain, -certain])
    torch.testing.assert_close(answer.softmax(1), torch.full((2, 2), 0.5))
    torch.testing.assert_close(mean_probabilities([certain]).softmax(1), certain.softmax(1))
