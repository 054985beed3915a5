"""rkd: golden numbers, invariances, equal rows, and a short training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdsearch import kd_methods
from kdsearch.kd_methods import Need, Signals
from kdsearch.kd_methods import functional as KF

from .embedding_hazards import duplicates
from .feature_signals import batch_of, learns, model
from .golden import agrees, cases, tensors

# Hard ranking is another method of the authors' repository; a batch of one is undefined there.
GOLDEN = [c for c in cases("logits/rkd") if "dark_rank" not in str(c.id) and c.id != "batch1"]


@pytest.mark.parametrize(("case", "arrays"), GOLDEN)
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    x = tensors(arrays, "student_feat")
    s, t = x["student_feat"], x["teacher_feat"]
    agrees(case, KF.rkd(s, t, **case["hyper"]), x)
    angle = KF.rkd(s, t, distance_weight=0, angle_weight=1)
    assert angle.item() == pytest.approx(case["parts"]["angle"], rel=1e-9)
    if not case["hyper"]["squared"]:
        distance = KF.rkd(s, t, distance_weight=1, angle_weight=0)
        assert distance.item() == pytest.approx(case["parts"]["distance"], rel=1e-9)


def test_closed_form_of_three_points() -> None:
    """A triangle of sides 3, 4, 5 against one of equal sides."""
    right = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    equal = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]], dtype=torch.float64)
    distance = 2 * sum(0.5 * (side / 4 - 1) ** 2 for side in (3, 4, 5)) / 9
    assert KF.rkd(right, equal, distance_weight=1, angle_weight=0).item() == pytest.approx(distance)
    angle = 2 * sum(0.5 * (cosine - 0.5) ** 2 for cosine in (0, 3 / 5, 4 / 5)) / 27
    assert KF.rkd(right, equal, distance_weight=0, angle_weight=1).item() == pytest.approx(angle)


def test_invariances() -> None:
    s, t = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 9, dtype=torch.float64)
    expected = KF.rkd(s, t)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    torch.testing.assert_close(KF.rkd(0.1 * s @ rotation + 3, t), expected)
    order = torch.randperm(7)
    torch.testing.assert_close(KF.rkd(s[order], t[order]), expected)
    assert KF.rkd(2 * t - 1, t) < 1e-20
    torch.testing.assert_close(KF.rkd(s.view(7, 5, 1, 1), t), expected)


@pytest.mark.parametrize(
    "student",
    [
        duplicates(),
        torch.ones(6, 8),
        torch.zeros(6, 8),
        torch.randn(1, 8),
        torch.randn(2, 8),
        torch.randn(6, 8) * 1e25,
        torch.randn(6, 8) * 1e-25,
        (torch.randn(6, 8) * 1e4).bfloat16(),
        (torch.randn(6, 8) * 1e4).half(),
        1e4 + torch.randn(6, 8),
    ],
    ids=["duplicates", "one row", "zeros", "one", "two", "large", "small", "bfloat16", "float16", "offset"],
)
def test_finite(student: torch.Tensor) -> None:
    teacher = torch.randn(len(student), 5, generator=torch.Generator().manual_seed(1)).to(student.dtype)
    student = student.clone().requires_grad_()
    loss = KF.rkd(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    if len(student) == 1:
        assert abs(loss) < 1e-12
        assert not gradient.any()


def test_equal_rows_have_a_sane_gradient() -> None:
    """No larger than that of the same rows a little apart; the plain formula gives a thousand million times as much."""
    teacher = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double()
    twins = duplicates().double().requires_grad_()
    apart = duplicates().double()
    apart[1] += 0.5
    apart[5] += 0.5
    apart.requires_grad_()
    (at_twins,) = torch.autograd.grad(KF.rkd(twins, teacher), twins)
    (at_apart,) = torch.autograd.grad(KF.rkd(apart, teacher), apart)
    nearly = torch.autograd.grad(KF.rkd(twins[:4], teacher[:4]), twins)[0]
    assert nearly.norm() < 3 * at_apart.norm()
    assert torch.isfinite(at_twins).all()


def test_float32_agrees_with_float64() -> None:
    s, t = torch.randn(16, 32, dtype=torch.float64), torch.randn(16, 64, dtype=torch.float64)
    torch.testing.assert_close(KF.rkd(s.float(), t.float()).double(), KF.rkd(s, t), rtol=1e-5, atol=0)
    assert F.mse_loss(s, s) == 0


def test_learns() -> None:
    learns(kd_methods.create("rkd"), model([], 12), model([], 20), lr=2.0, steps=20)


def test_declaration() -> None:
    method = kd_methods.create("rkd")
    assert method.slot == "relations"
    assert method.needs.student == method.needs.teacher == {Need.EMBEDDING}
    assert (method.hyper["distance_weight"], method.hyper["angle_weight"], method.hyper["weight"]) == (25, 50, 1)
    with pytest.raises(ValueError, match="reads the embeddings"):
        method.loss(Signals(torch.zeros(2, 3)), Signals(torch.zeros(2, 3)), batch_of(2))
