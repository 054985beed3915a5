"""pkt: golden numbers of the authors' code, the paper's sum, invariances, hazards, and a short training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdsearch import kd_methods
from kdsearch.kd_methods import Need
from kdsearch.kd_methods import functional as KF

from .feature_signals import data, learns, model
from .golden import agrees, cases, tensors


@pytest.mark.parametrize(("case", "arrays"), cases("logits/pkt"))
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    x = tensors(arrays, "student_feat")
    agrees(case, KF.pkt(x["student_feat"], x["teacher_feat"], diagonal=True, eps=case["hyper"]["eps"]), x)


@pytest.mark.parametrize(("case", "arrays"), cases("features/pkt"))
def test_golden_of_the_authors(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    s, t = case["uses"]
    if case["label"] == "relu_features_zero_row":
        arrays[s][2] = 0.0
    x = tensors(arrays, s)
    agrees(case, KF.pkt(x[s], x[t], diagonal=True, eps=case["hyper"]["eps"]), x)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kernel", ["cosine", "gaussian"])
def test_the_papers_sum_leaves_out_the_sample_itself(kernel: str) -> None:
    s, t = draw(5, 4, seed=1), draw(5, 7, seed=2)

    def probabilities(x: torch.Tensor) -> torch.Tensor:
        rows = torch.zeros(5, 5, dtype=torch.float64)
        squares = torch.cdist(x, x).square()
        for i in range(5):
            for j in range(5):
                if i == j:
                    continue
                cosine = torch.cosine_similarity(x[i], x[j], dim=0)
                width = squares.sum() / 20
                rows[i, j] = (1 + cosine) / 2 if kernel == "cosine" else (-squares[i, j] / (2 * width)).exp()
        return rows / rows.sum(1, keepdim=True)

    p, q = probabilities(t), probabilities(s)
    expected = sum(p[i, j] * (p[i, j] / q[i, j]).log() for i in range(5) for j in range(5) if i != j) / 25
    torch.testing.assert_close(KF.pkt(s, t, kernel=kernel, eps=1e-12), expected)


@pytest.mark.parametrize("kernel", ["cosine", "gaussian"])
@pytest.mark.parametrize("diagonal", [True, False])
def test_invariances(kernel: str, diagonal: bool) -> None:
    s, t = draw(6, 5, seed=1), draw(6, 9, seed=2)

    def loss(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return KF.pkt(s, t, kernel=kernel, diagonal=diagonal, eps=1e-12)

    rotation = torch.linalg.qr(draw(5, 5, seed=3)).Q
    expected = loss(s, t)
    torch.testing.assert_close(loss(7 * s @ rotation, 0.1 * t), expected)
    order = torch.randperm(6)
    torch.testing.assert_close(loss(s[order], t[order]), expected)
    torch.testing.assert_close(loss(s.view(6, 5, 1, 1), t), expected)
    assert loss(3 * t, t).abs() < 1e-12
    assert expected > 0


@pytest.mark.parametrize("kernel", ["cosine", "gaussian"])
@pytest.mark.parametrize("diagonal", [True, False])
def test_gradient(kernel: str, diagonal: bool) -> None:
    s, t = draw(4, 3, seed=1).requires_grad_(), draw(4, 5, seed=2)
    assert torch.autograd.gradcheck(lambda x: KF.pkt(x, t, kernel=kernel, diagonal=diagonal), (s,))


@pytest.mark.parametrize(
    "student",
    [
        torch.ones(6, 8),
        torch.zeros(6, 8),
        torch.randn(6, 8).index_fill(0, torch.tensor([2]), 0.0),
        torch.randn(1, 8),
        torch.tensor([[1.0, 0.0], [-1.0, 0.0]]),
        torch.randn(6, 8) * 1e25,
        torch.randn(6, 8) * 1e-25,
        (torch.randn(6, 8) * 30).bfloat16(),
        (torch.randn(6, 8) * 1e4).half(),
        torch.randn(6, 8, 2, 2).to(memory_format=torch.channels_last),
    ],
    ids=["one row", "zeros", "a zero row", "one", "opposite", "large", "small", "bfloat16", "float16", "channels last"],
)
@pytest.mark.parametrize("kernel", ["cosine", "gaussian"])
@pytest.mark.parametrize("diagonal", [True, False])
def test_finite(student: torch.Tensor, kernel: str, diagonal: bool) -> None:
    teacher = torch.randn(len(student), 5, generator=torch.Generator().manual_seed(1)).to(student.dtype)
    student = student.clone().requires_grad_()
    loss = KF.pkt(student, teacher, kernel=kernel, diagonal=diagonal)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    if len(student) == 1:
        assert abs(loss) < 1e-12


@pytest.mark.parametrize("kernel", ["cosine", "gaussian"])
def test_half_precision_and_memory_format_change_little(kernel: str) -> None:
    s, t = draw(8, 6, 3, 3, seed=1).float(), draw(8, 6, 3, 3, seed=2).float()
    expected = KF.pkt(s, t, kernel=kernel)
    last = KF.pkt(*(x.to(memory_format=torch.channels_last) for x in (s, t)), kernel=kernel)
    torch.testing.assert_close(last, expected)
    torch.testing.assert_close(KF.pkt(s.bfloat16(), t.bfloat16(), kernel=kernel), expected, rtol=0.02, atol=0)


def test_learns() -> None:
    learns(kd_methods.create("pkt"), model([], 12), model([], 20), lr=2000.0, steps=20)


def test_declaration() -> None:
    method = kd_methods.create("pkt")
    assert (method.slot, method.hyper["weight"]) == ("relations", 30000)
    assert method.needs.student == method.needs.teacher == {Need.EMBEDDING}
    with pytest.raises(ValueError, match="must both have one"):
        method.bind(model([], None), model([]), data())
    with pytest.raises(ValueError, match="'cosine' or 'gaussian', not 'rbf'"):
        KF.pkt(torch.zeros(2, 3), torch.zeros(2, 3), kernel="rbf")
