"""logit_mse: the third party's golden numbers as one option, the paper's formula as the default."""

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


@pytest.mark.parametrize(("case", "arrays"), cases("logits/logit_regression"))
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    x = tensors(arrays, "student_logits")
    agrees(case, KF.logit_mse(x["student_logits"], x["teacher_logits"], average="elements"), x)


@pytest.mark.parametrize(("case", "arrays"), cases("logits/logit_regression"))
def test_paper_is_half_the_classes_times_the_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    x = tensors(arrays)
    loss = KF.logit_mse(x["student_logits"], x["teacher_logits"])
    assert loss.item() == pytest.approx(case["loss"] * x["student_logits"].shape[1] / 2, rel=1e-12)


def test_closed_form() -> None:
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    rows = KF.logit_mse(student, teacher, reduction="none")
    torch.testing.assert_close(rows, torch.tensor([2.5, 12.5]))
    (gradient,) = torch.autograd.grad(KF.logit_mse(student, teacher), student)
    torch.testing.assert_close(gradient, (student.detach() - teacher) / 2)


def test_order_does_not_matter_but_a_shift_does() -> None:
    student, teacher, _ = draw(6, 10, dtype=torch.float64)
    expected = KF.logit_mse(student, teacher)
    torch.testing.assert_close(KF.logit_mse(student.flip(0), teacher.flip(0)), expected)
    assert KF.logit_mse(student + 5, teacher) > expected + 1


@pytest.mark.parametrize("option", [{"average": "batch"}, {"reduction": "sum"}])
def test_unknown_option(option: dict[str, str]) -> None:
    student, teacher, _ = draw(2, 3)
    with pytest.raises(ValueError, match="must be"):
        KF.logit_mse(student, teacher, **option)


@hazards
def test_finite(hazard: str) -> None:
    assert_finite(lambda s, t, y: KF.logit_mse(s, t), hazard)


def test_class_under_a_temperature_policy() -> None:
    student, teacher, target = draw(4, 10, dtype=torch.float64)
    method = kd_methods.create("logit_mse")
    batch = Batch(target, torch.arange(4))
    plain = method.loss(Signals(student), Signals(teacher), batch)
    torch.testing.assert_close(plain, KF.logit_mse(student, teacher))
    batch.soften = lambda s, t, _: Softened(s, t, torch.full((4, 1), 7.0, dtype=s.dtype))
    torch.testing.assert_close(method.loss(Signals(student), Signals(teacher), batch), plain)
    batch.soften = lambda s, t, _: Softened(s, t, (1.0, 2.0))
    apart = method.loss(Signals(student), Signals(teacher), batch)
    torch.testing.assert_close(apart, 2 * KF.logit_mse(student, teacher / 2))
