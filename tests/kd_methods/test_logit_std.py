"""logit_std: golden numbers, scale invariance, constant rows, and composition with other terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, Signals
from kdsearch.kd_methods import functional as KF
from kdsearch.kd_methods.temperature.logit_std import standardise

from .golden import agrees, cases, tensors
from .logit_hazards import assert_finite, draw, hazards


@pytest.mark.parametrize(("case", "arrays"), cases("logits/lskd"))
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    x = tensors(arrays, "student_logits")
    temperature: Any = case["hyper"]["T"]
    if temperature == "input":
        temperature = x["T"].requires_grad_(True)
    loss = KF.logit_std(x["student_logits"], x["teacher_logits"], temperature=temperature)
    if case["name"] == "constant_student_row":
        # The authors' gradient here is the division by 1e-7 and nothing else; ours is that of the centred logits.
        assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
        (gradient,) = torch.autograd.grad(loss, x["student_logits"])
        theirs = torch.tensor(case["grad"]["student_logits"]["all"], dtype=torch.float64)
        torch.testing.assert_close(gradient.flatten(), theirs * 1e-7, rtol=1e-6, atol=1e-12)
        return
    agrees(case, loss, x)


def test_scale_and_shift_do_not_matter() -> None:
    student, teacher, _ = draw(6, 10, dtype=torch.float64)
    expected = KF.logit_std(student, teacher)
    torch.testing.assert_close(KF.logit_std(9 * student, 0.2 * teacher), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(KF.logit_std(student + 4, teacher - 7), expected)
    torch.testing.assert_close(KF.logit_std(student.flip(0), teacher.flip(0)), expected)


def test_zero_for_any_multiple_of_the_teacher() -> None:
    student, _, _ = draw(6, 10, dtype=torch.float64)
    assert KF.logit_std(student, 3 * student + 1).abs() < 1e-12


def test_rows() -> None:
    student, teacher, _ = draw(6, 10, dtype=torch.float64)
    rows = KF.logit_std(student, teacher, reduction="none")
    assert rows.shape == (6,)
    torch.testing.assert_close(rows.mean(), KF.logit_std(student, teacher))


@hazards
def test_finite(hazard: str) -> None:
    _, gradient = assert_finite(lambda s, t, y: KF.logit_std(s, t), hazard)
    assert gradient.abs().max() < 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1000.1])
def test_constant_rows_have_the_gradient_of_kd(value: float, dtype: torch.dtype) -> None:
    """Rounding of the mean leaves such rows a deviation that is not quite zero."""
    student = torch.full((2, 1000), value, dtype=dtype, requires_grad=True)
    _, teacher, _ = draw(2, 1000, dtype=dtype)
    loss = KF.logit_std(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    plain = torch.zeros_like(student, requires_grad=True)
    (expected,) = torch.autograd.grad(KF.kd(plain, standardise(teacher), temperature=2.0), plain)
    torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-5)


def test_small_deviations_are_still_standardised() -> None:
    student, _, _ = draw(2, 10, dtype=torch.float64)
    z = standardise(1e-3 * student + 5)
    torch.testing.assert_close(z.std(1), torch.ones(2, dtype=torch.float64), rtol=1e-3, atol=0)


@pytest.mark.parametrize("term", ["kd", "dkd", "dist", "logit_mse"])
def test_composes_with_every_logit_term(term: str) -> None:
    student, teacher, target = draw(6, 10, dtype=torch.float64)
    policy = kd_methods.create("logit_std", temperature=3.0)
    batch = Batch(target, torch.arange(6), progress=0.5, soften=policy.soften)  # type: ignore[attr-defined]
    value = kd_methods.create(term).loss(Signals(student), Signals(teacher), batch)
    z = standardise(student), standardise(teacher)
    expected = {
        "kd": lambda: KF.logit_std(student, teacher, temperature=3.0),
        "dkd": lambda: KF.dkd(*z, target, temperature=3.0),
        "dist": lambda: KF.dist(*z, temperature=3.0),
        "logit_mse": lambda: KF.logit_mse(*z),
    }[term]()
    torch.testing.assert_close(value, expected)


def test_domain() -> None:
    with pytest.raises(ValueError, match=r"logit_std\.temperature must lie in"):
        kd_methods.create("logit_std", temperature=0)
