"""dgkd: who teaches whom, the shares of lessons and labels, and what is left out of a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, Signals
from kdsearch.kd_methods import functional as KF
from kdsearch.kd_methods.strategy import TEACHER
from kdsearch.kd_methods.teaching.dgkd import chosen, survivors

from .logit_hazards import draw

NAMES = (TEACHER, "assistant1", "assistant2")


def a_batch(target: Tensor, seed: int = 0) -> Batch:
    return Batch(target, torch.arange(len(target)), generator=torch.Generator().manual_seed(seed))


def supplied(teacher: Tensor, names: tuple[str, ...] = NAMES) -> dict[str, list[Signals]]:
    return {name: [Signals(teacher * (k + 1))] for k, name in enumerate(names)}


def weights(method: Any, names: tuple[str, ...] = NAMES, steps: int = 1, seed: int = 0) -> Tensor:
    """Every lesson's share, [steps, suppliers]."""
    student, teacher, target = draw(2, 3)
    batch = a_batch(target, seed)
    rows = [method.lessons(Signals(student), supplied(teacher, names), batch) for _ in range(steps)]
    assert all([lesson.supplier for lesson in row] == list(names) for row in rows)
    return torch.stack([torch.stack([torch.as_tensor(lesson.weight) for lesson in row]) for row in rows])


def test_everybody_larger_teaches() -> None:
    method: Any = kd_methods.create("dgkd")
    plan = method.plan()
    assert [(p.name, p.size, p.teachers, p.by) for p in plan.pretrain] == [
        ("assistant1", 0.75, (TEACHER,), "strategy"),
        ("assistant2", 0.5, (TEACHER, "assistant1"), "strategy"),
        ("assistant3", 0.25, (TEACHER, "assistant1", "assistant2"), "strategy"),
    ]
    assert plan.teachers == (TEACHER, "assistant1", "assistant2", "assistant3")


def test_without_drop_it_is_the_dense_sum() -> None:
    method: Any = kd_methods.create("dgkd", path="0.67-0.33", survival=1.0)
    student, teacher, target = draw(4, 5, dtype=torch.float64)
    lessons = method.lessons(Signals(student), supplied(teacher), a_batch(target))
    share = 0.3
    kd = [KF.kd(student, teacher * (k + 1), temperature=5.0) for k in range(3)]
    total = sum(x.weight * share * KF.kd(x.student.logits, x.teacher.logits, temperature=5.0) for x in lessons)
    total = total + (1 - share) * method.label_weight() * F.cross_entropy(student, target)
    torch.testing.assert_close(total, 3 * (1 - share) * F.cross_entropy(student, target) + share * sum(kd))


def test_an_assistant_counts_its_own_teachers() -> None:
    method: Any = kd_methods.create("dgkd", path="0.67-0.33", survival=1.0)
    assert method.label_weight() == 3.0
    method.suppliers = (TEACHER,)
    assert method.label_weight() == 1.0
    assert weights(method, (TEACHER,)).tolist() == [[1.0]]


def test_the_teacher_is_never_dropped() -> None:
    drawn = weights(kd_methods.create("dgkd", survival=0.3), steps=400)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert (drawn[:, 0] == 1).all()
    assert drawn[:, 1:].mean() == pytest.approx(0.3, abs=0.06)
    assert (drawn[:, 1] != drawn[:, 2]).any(), "each assistant is drawn for itself"
    assert (weights(kd_methods.create("dgkd", survival=0.0), steps=3)[:, 1:] == 0).all()


def test_a_fixed_number_is_left_out_whoever_it_is() -> None:
    drawn = weights(kd_methods.create("dgkd", drop="fixed"), steps=300)
    assert (drawn.sum(1) == 2).all()
    assert torch.allclose(drawn.mean(0), torch.full((3,), 2 / 3), atol=0.1)
    method: Any = kd_methods.create("dgkd", drop="fixed")
    assert method.label_weight() == 1.0
    many = kd_methods.create("dgkd", drop="fixed", dropped=9)
    assert (weights(many, steps=5).sum(1) == 1).all(), "one lesson is left at least"
    assert weights(many, (TEACHER,)).tolist() == [[1.0]]


@pytest.mark.parametrize("drop", ["bernoulli", "fixed"])
def test_draws_follow_the_batch(drop: str) -> None:
    method = kd_methods.create("dgkd", drop=drop, survival=0.5)
    first, again, other = (weights(method, steps=20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_dropped_lesson_moves_nothing() -> None:
    method: Any = kd_methods.create("dgkd", survival=0.0)
    student, teacher, target = draw(4, 5)
    student.requires_grad_(True)
    lessons = method.lessons(Signals(student), supplied(teacher), a_batch(target))
    total = sum(lesson.weight * KF.kd(lesson.student.logits, lesson.teacher.logits) for lesson in lessons)
    (gradient,) = torch.autograd.grad(total, student)
    (alone,) = torch.autograd.grad(KF.kd(student, teacher), student)
    torch.testing.assert_close(gradient, alone)


def test_draws_are_zeros_and_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    assert survivors(1000, survival=0.75, generator=generator).mean() == pytest.approx(0.75, abs=0.05)
    assert chosen(10, dropped=4, generator=generator).sum() == 6
    assert survivors(0, generator=generator).shape == (0,)
