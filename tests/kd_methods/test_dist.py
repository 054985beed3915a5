"""dist: golden numbers with the dense form, invariances, and the class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, Signals, Softened
from kdsearch.kd_methods import functional as KF

from .golden import agrees, cases, tensors
from .logit_hazards import assert_finite, draw, hazards


@pytest.mark.parametrize(("case", "arrays"), cases("logits/dist"))
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    x = tensors(arrays, "student_logits")
    hyper = case["hyper"]
    loss = KF.dist(
        x["student_logits"],
        x["teacher_logits"],
        beta=hyper["beta"],
        gamma=hyper["gamma"],
        temperature=hyper["tau"],
    )
    agrees(case, loss, x)


@pytest.mark.parametrize(("case", "arrays"), [c for c in cases("logits/dist") if "segmentation" not in str(c.id)])
def test_golden_parts(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    x = tensors(arrays)
    pair = x["student_logits"], x["teacher_logits"]
    inter = KF.dist(*pair, gamma=0.0, temperature=1.0)
    intra = KF.dist(*pair, beta=0.0, temperature=1.0)
    assert inter.item() == pytest.approx(case["parts"]["inter"], rel=1e-9, abs=1e-11)
    assert intra.item() == pytest.approx(case["parts"]["intra"], rel=1e-9)


def test_zero_without_the_guard_where_both_agree() -> None:
    student, _, _ = draw(8, 10, dtype=torch.float64)
    assert KF.dist(student, student, eps=0.0).abs() < 1e-12


def test_shift_and_order_do_not_matter() -> None:
    student, teacher, _ = draw(6, 10, dtype=torch.float64)
    expected = KF.dist(student, teacher)
    torch.testing.assert_close(KF.dist(student.flip(0), teacher.flip(0)), expected)
    torch.testing.assert_close(KF.dist(student.flip(1), teacher.flip(1)), expected)
    torch.testing.assert_close(KF.dist(student + 4, teacher - 7), expected)


def test_temperature_multiplies_by_its_square() -> None:
    student, teacher, _ = draw(6, 10, dtype=torch.float64)
    expected = 16 * KF.dist(student / 4, teacher / 4, temperature=1.0)
    torch.testing.assert_close(KF.dist(student, teacher, temperature=4.0), expected)
    rows = torch.full((6, 1), 4.0, dtype=torch.float64)
    torch.testing.assert_close(KF.dist(student, teacher, temperature=rows), expected)
    torch.testing.assert_close(KF.dist(student, teacher, temperature=rows[0]), expected)
    apart = KF.dist(student, teacher, temperature=(2.0, 3.0))
    torch.testing.assert_close(apart, 6 * KF.dist(student / 2, teacher / 3, temperature=1.0))


def test_row_temperatures_weigh_their_rows() -> None:
    student, teacher, _ = draw(2, 10, dtype=torch.float64)
    temperatures = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    inter = KF.dist(student, teacher, gamma=0.0, temperature=temperatures)
    first = KF.dist(student[:1], teacher[:1], gamma=0.0, temperature=1.0)
    second = KF.dist(student[1:], teacher[1:], gamma=0.0, temperature=3.0)
    torch.testing.assert_close(inter, (first + second) / 2)


def test_a_batch_of_one_has_no_intra_gradient() -> None:
    student, teacher, _ = draw(1, 10, dtype=torch.float64)
    student.requires_grad_(True)
    intra = KF.dist(student, teacher, beta=0.0, temperature=1.0)
    assert intra.item() == 1.0
    (gradient,) = torch.autograd.grad(intra, student)
    assert (gradient == 0).all()


@hazards
def test_finite(hazard: str) -> None:
    assert_finite(lambda s, t, y: KF.dist(s, t), hazard)


def test_class_uses_its_temperature_and_the_recipes() -> None:
    student, teacher, target = draw(4, 10, dtype=torch.float64)
    method = kd_methods.create("dist", beta=0.5, gamma=2.0)
    batch = Batch(target, torch.arange(4))
    own = method.loss(Signals(student), Signals(teacher), batch)
    torch.testing.assert_close(own, KF.dist(student, teacher, beta=0.5, gamma=2.0, temperature=4.0))
    batch.soften = lambda s, t, _: Softened(s, t, 1.0)
    policy = method.loss(Signals(student), Signals(teacher), batch)
    torch.testing.assert_close(policy, KF.dist(student, teacher, beta=0.5, gamma=2.0, temperature=1.0))


def test_domain() -> None:
    with pytest.raises(ValueError, match=r"dist\.gamma must lie in"):
        kd_methods.create("dist", gamma=-1)
