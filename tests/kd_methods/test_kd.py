"""kd: golden numbers, every form of temperature, and the class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, Signals, Softened
from kdsearch.kd_methods import functional as KF

from .golden import agrees, cases, tensors
from .logit_hazards import assert_finite, draw, hazards


@pytest.mark.parametrize(("case", "arrays"), cases("logits/kd"))
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    x = tensors(arrays, "student_logits")
    hyper = case["hyper"]
    loss = KF.kd(x["student_logits"], x["teacher_logits"], temperature=hyper["T"])
    if hyper["what"] == "total":
        loss = hyper["ce_weight"] * F.cross_entropy(x["student_logits"], x["labels"]) + hyper["kd_weight"] * loss
    agrees(case, loss, x)


@pytest.mark.parametrize(("case", "arrays"), [c for c in cases("logits/kd") if "total" not in str(c.id)])
def test_golden_by_rows(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    x = tensors(arrays, "student_logits")
    batch = x["student_logits"].shape[0]
    per_row = torch.full((batch, 1), case["hyper"]["T"], dtype=torch.float64)
    rows = KF.kd(x["student_logits"], x["teacher_logits"], temperature=per_row, reduction="none")
    assert rows.shape == (batch,)
    agrees(case, rows.mean(), x)


def test_row_temperatures_act_on_their_own_rows() -> None:
    student, teacher, _ = draw(3, 10, dtype=torch.float64)
    temperatures = torch.tensor([[1.0], [4.0], [9.0]], dtype=torch.float64)
    rows = KF.kd(student, teacher, temperature=temperatures, reduction="none")
    alone = [KF.kd(student[i : i + 1], teacher[i : i + 1], temperature=float(temperatures[i])) for i in range(3)]
    torch.testing.assert_close(rows, torch.stack(alone))
    torch.testing.assert_close(KF.kd(student, teacher, temperature=temperatures), rows.mean())


def test_two_temperatures() -> None:
    student, teacher, _ = draw(4, 10, dtype=torch.float64)
    expected = 6.0 * KF.kd(student / 2.0, teacher / 3.0, temperature=1.0)
    torch.testing.assert_close(KF.kd(student, teacher, temperature=(2.0, 3.0)), expected)
    rows = torch.full((4, 1), 2.0, dtype=torch.float64), torch.full((4, 1), 3.0, dtype=torch.float64)
    torch.testing.assert_close(KF.kd(student, teacher, temperature=rows), expected)


def test_unknown_reduction() -> None:
    student, teacher, _ = draw(2, 3)
    with pytest.raises(ValueError, match="'mean' or 'none', not 'sum'"):
        KF.kd(student, teacher, reduction="sum")


def test_shift_and_order_do_not_matter() -> None:
    student, teacher, _ = draw(6, 10, dtype=torch.float64)
    expected = KF.kd(student, teacher)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(KF.kd(student[order], teacher[order]), expected)
    shift = torch.arange(6.0, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(KF.kd(student + shift, teacher - 3 * shift), expected)


def test_gradient_keeps_its_scale_at_high_temperature() -> None:
    """As T grows, T² · KL tends to half the mean squared difference of the centred logits."""
    student, teacher, _ = draw(5, 10, dtype=torch.float64)
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = gap.square().mean(1).mean() / 2
    torch.testing.assert_close(KF.kd(student, teacher, temperature=1e4), limit, rtol=1e-3, atol=0)


@hazards
def test_finite(hazard: str) -> None:
    assert_finite(lambda s, t, y: KF.kd(s, t, temperature=1.0), hazard)


def test_class_uses_its_temperature_and_the_recipes() -> None:
    student, teacher, target = draw(4, 10, dtype=torch.float64)
    method = kd_methods.create("kd", temperature=3.0)
    batch = Batch(target, torch.arange(4))
    own = method.loss(Signals(student), Signals(teacher), batch)
    torch.testing.assert_close(own, KF.kd(student, teacher, temperature=3.0))
    batch.soften = lambda s, t, _: Softened(2 * s, t, (1.0, 5.0))
    policy = method.loss(Signals(student), Signals(teacher), batch)
    torch.testing.assert_close(policy, KF.kd(2 * student, teacher, temperature=(1.0, 5.0)))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), True, "4"])
def test_temperature_domain(bad: object) -> None:
    with pytest.raises(ValueError, match=r"kd\.temperature must"):
        kd_methods.create("kd", temperature=bad)
