"""sp: golden numbers of vectors and of maps, invariances, unequal shapes, hazards, and a short training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdsearch import kd_methods
from kdsearch.kd_methods import StageSpec
from kdsearch.kd_methods import functional as KF

from .feature_signals import learns, map_stage, model, token_stage
from .golden import agrees, cases, tensors


@pytest.mark.parametrize(("case", "arrays"), cases("logits/sp"))
def test_golden_of_vectors(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    x = tensors(arrays, "student_feat")
    agrees(case, KF.sp(x["student_feat"], x["teacher_feat"]), x)


@pytest.mark.parametrize(("case", "arrays"), cases("features/sp"))
def test_golden_of_maps(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    s, t = case["uses"]
    x = tensors(arrays, s)
    agrees(case, KF.sp([x[s]], [x[t]]), x)


def test_closed_form() -> None:
    """Orthogonal rows against equal rows, of a batch of two."""
    apart, alike = torch.eye(2), torch.ones(2, 3)
    expected = ((1 - 0.5**0.5) ** 2 + 0.5) * 2 / 4
    assert KF.sp(apart, alike).item() == pytest.approx(expected)


def test_invariances() -> None:
    s, t = torch.randn(6, 4, 3, 3, dtype=torch.float64), torch.randn(6, 20, dtype=torch.float64)
    expected = KF.sp([s], [t])
    torch.testing.assert_close(KF.sp([30 * s], [0.01 * t]), expected)
    torch.testing.assert_close(KF.sp([s.flip(0)], [t.flip(0)]), expected)
    torch.testing.assert_close(KF.sp([s.flip(1, 2)], [t]), expected)
    torch.testing.assert_close(KF.sp([s, s], [t, t]), 2 * expected)
    assert KF.sp([3 * t], [t]) < 1e-30


@pytest.mark.parametrize(
    "student",
    [
        torch.zeros(4, 3, 2, 2),
        torch.ones(4, 3, 2, 2),
        torch.randn(4, 3, 2, 2).index_fill(0, torch.tensor([2]), 0.0),
        torch.randn(1, 3, 2, 2),
        torch.randn(4, 3, 2, 2) * 1e25,
        torch.randn(4, 3, 2, 2) * 1e-25,
        (torch.randn(4, 3, 2, 2) * 1e4).bfloat16(),
        (torch.randn(4, 3, 2, 2) * 1e4).half(),
    ],
    ids=["zeros", "constant", "a zero row", "one", "large", "small", "bfloat16", "float16"],
)
def test_finite(student: torch.Tensor) -> None:
    teacher = torch.randn(len(student), 7, generator=torch.Generator().manual_seed(1)).to(student.dtype)
    student = student.clone().requires_grad_()
    loss = KF.sp([student], [teacher])
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    if len(student) == 1:
        assert loss < 1e-12  # a row of one entry has length one up to rounding


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(map_stage(4, 8), map_stage(6, 4)), (map_stage(4, 8), token_stage(6, 5)), (token_stage(4, 3), map_stage(6, 1))],
    ids=["maps", "to tokens", "from tokens"],
)
def test_learns(student: StageSpec, teacher: StageSpec) -> None:
    learns(kd_methods.create("sp"), model([student]), model([teacher]), lr=200.0, steps=20)


def test_declaration() -> None:
    method = kd_methods.create("sp")
    assert (method.slot, method.pairing, method.hyper["weight"]) == ("relations", "last", 3000)
