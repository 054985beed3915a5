"""darkrank: golden numbers of the authors' code and of a port, brute force, invariances, hazards, a short training."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from kdsearch import kd_methods
from kdsearch.kd_methods import Need
from kdsearch.kd_methods import functional as KF

from .embedding_hazards import duplicates
from .feature_signals import data, learns, model
from .golden import agrees, cases, tensors


@pytest.mark.parametrize(("case", "arrays"), cases("features/darkrank"))
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """The authors' scores are -(scale · d²)^power; their hard form ranks the whole batch."""
    s, t = case["uses"]
    arrays = {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in arrays.items()}
    x = tensors(arrays, s)
    power, scale = case["hyper"]["power"], case["hyper"]["scale"]
    options = {"alpha": scale**power, "beta": 2 * power, "queries": "first_half", "normalise": False}
    if "hard" in case["label"]:
        options |= {"transfer": "hard", "list_length": len(x[s]) - 1, "eps": 1e-12}
    grad = {name.removesuffix(" (normalised)"): value for name, value in case["grad"].items()}
    agrees({**case, "grad": grad}, KF.darkrank(x[s], x[t], **options), x)


@pytest.mark.parametrize(("case", "arrays"), [c for c in cases("logits/rkd") if "dark_rank" in str(c.id)])
def test_golden_of_a_port(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    x = tensors(arrays, "student_feat")
    loss = KF.darkrank(
        x["student_feat"],
        x["teacher_feat"],
        transfer="hard",
        list_length=case["hyper"]["permute_len"],
        alpha=case["hyper"]["alpha"],
        beta=case["hyper"]["beta"],
        normalise=False,
    )
    assert loss.item() == pytest.approx(case["loss"], rel=1e-12)
    agrees(case, loss, x, rtol=1e-8)  # scores of ten million leave a softmax in float64 eight digits


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("transfer", ["soft", "hard"])
@pytest.mark.parametrize("queries", ["all", "first_half"])
def test_agrees_with_brute_force(transfer: str, queries: str) -> None:
    s, t = draw(6, 3, seed=1), draw(6, 4, seed=2)
    alpha, beta, length = 1.5, 3.0, 3

    def log_probability(order: tuple[int, ...], scores: torch.Tensor) -> torch.Tensor:
        left = list(order)
        total = scores.new_zeros(())
        while left:
            total = total + scores[left[0]] - torch.logsumexp(scores[left], 0)
            left.pop(0)
        return total

    losses = []
    for query in range(6 if queries == "all" else 3):
        scores = [-alpha * (x - x[query]).norm(dim=1) ** beta for x in (s, t)]
        others = sorted((k for k in range(6) if k != query), key=lambda k: -scores[1][k])[:length]
        if transfer == "hard":
            losses.append(-log_probability(tuple(others), scores[0]))
            continue
        loss = s.new_zeros(())
        for order in itertools.permutations(others):
            q, p = (log_probability(order, x) for x in scores)
            loss = loss + p.exp() * (p - q)
        losses.append(loss)
    found = KF.darkrank(
        s, t, transfer=transfer, list_length=length, alpha=alpha, beta=beta, queries=queries, normalise=False
    )
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_the_soft_form_vanishes_where_the_distances_are_the_teachers() -> None:
    t = draw(7, 5, seed=1)
    rotation = torch.linalg.qr(draw(5, 5, seed=2)).Q
    same = (3 * t @ rotation).requires_grad_()
    loss = KF.darkrank(same, t)
    assert loss.abs() < 1e-12
    assert torch.autograd.grad(loss, same)[0].abs().max() < 1e-12
    assert KF.darkrank(draw(7, 5, seed=3), t) > 0


def test_the_hard_form_asks_for_the_teachers_order_alone() -> None:
    """A student with the same order and larger gaps than the teacher has less of it than the teacher itself."""
    t = draw(6, 3, seed=1)
    options: dict[str, Any] = {"transfer": "hard", "alpha": 1.0, "beta": 1.0, "normalise": False, "list_length": 3}
    assert KF.darkrank(3 * t, t, **options) < KF.darkrank(t, t, **options)


@pytest.mark.parametrize("transfer", ["soft", "hard"])
def test_invariances(transfer: str) -> None:
    s, t = draw(7, 5, seed=1), draw(7, 9, seed=2)
    rotation, order = torch.linalg.qr(draw(5, 5, seed=3)).Q, torch.randperm(7)
    expected = KF.darkrank(s, t, transfer=transfer)
    torch.testing.assert_close(KF.darkrank(7 * s @ rotation, 0.1 * t, transfer=transfer), expected)
    torch.testing.assert_close(KF.darkrank(s[order], t[order], transfer=transfer), expected)
    torch.testing.assert_close(KF.darkrank(s.view(7, 5, 1, 1), t, transfer=transfer), expected)


@pytest.mark.parametrize("transfer", ["soft", "hard"])
@pytest.mark.parametrize("beta", [1.0, 3.0, 4.0])
def test_gradient(transfer: str, beta: float) -> None:
    s, t = draw(5, 3, seed=1).requires_grad_(), draw(5, 4, seed=2)
    assert torch.autograd.gradcheck(lambda x: KF.darkrank(x, t, transfer=transfer, beta=beta), (s,))


@pytest.mark.parametrize(
    "student",
    [
        duplicates(),
        torch.ones(6, 8),
        torch.zeros(6, 8),
        torch.randn(1, 8),
        torch.randn(2, 8),
        torch.randn(3, 8),
        torch.randn(6, 8) * 1e25,
        torch.randn(6, 8) * 1e-25,
        (torch.randn(6, 8) * 30).bfloat16(),
        (torch.randn(6, 8) * 1e4).half(),
        torch.randn(6, 8, 2, 2).to(memory_format=torch.channels_last),
    ],
    ids=[
        "duplicates",
        "one row",
        "zeros",
        "one",
        "two",
        "three",
        "large",
        "small",
        "bfloat16",
        "float16",
        "channels last",
    ],
)
@pytest.mark.parametrize("transfer", ["soft", "hard"])
@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_finite(student: torch.Tensor, transfer: str, beta: float) -> None:
    teacher = torch.randn(len(student), 5, generator=torch.Generator().manual_seed(1)).to(student.dtype)
    for t in (teacher, torch.ones_like(teacher)):
        x = student.clone().requires_grad_()
        loss = KF.darkrank(x, t, transfer=transfer, beta=beta)
        (gradient,) = torch.autograd.grad(loss, x)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        if len(student) == 1:
            assert abs(loss) < 1e-12


@pytest.mark.parametrize("transfer", ["soft", "hard"])
def test_half_precision_and_memory_format_change_little(transfer: str) -> None:
    s, t = draw(8, 6, 3, 3, seed=1).float(), draw(8, 6, 3, 3, seed=2).float()
    expected = KF.darkrank(s, t, transfer=transfer)
    last = KF.darkrank(*(x.to(memory_format=torch.channels_last) for x in (s, t)), transfer=transfer)
    torch.testing.assert_close(last, expected)
    torch.testing.assert_close(KF.darkrank(s.bfloat16(), t.bfloat16(), transfer=transfer), expected, rtol=0.03, atol=0)


def test_a_hair_between_neighbours_is_seen_in_single_precision() -> None:
    """Distances of a ten-thousandth of the rows' length keep their digits."""
    base = draw(1, 64, seed=1)
    s, t = base + 1e-4 * draw(6, 64, seed=2), base + 1e-4 * draw(6, 64, seed=3)
    expected = KF.darkrank(s, t, alpha=1e6, beta=2.0)
    torch.testing.assert_close(
        KF.darkrank(s.float(), t.float(), alpha=1e6, beta=2.0).double(), expected, rtol=5e-3, atol=0
    )


@pytest.mark.parametrize("transfer", ["soft", "hard"])
def test_learns(transfer: str) -> None:
    learns(kd_methods.create("darkrank", transfer=transfer), model([], 12), model([], 20), lr=1.0, steps=20)


def test_declaration() -> None:
    method = kd_methods.create("darkrank")
    assert (method.slot, method.hyper["weight"], method.hyper["list_length"]) == ("relations", 16, 4)
    assert method.needs.student == method.needs.teacher == {Need.EMBEDDING}
    with pytest.raises(ValueError, match="must both have one"):
        method.bind(model([], None), model([]), data())
    with pytest.raises(ValueError, match=r"at most 7 items, not 9; transfer='hard'"):
        kd_methods.create("darkrank", list_length=9).bind(model([]), model([]), data())
    kd_methods.create("darkrank", list_length=9, transfer="hard").bind(model([]), model([]), data())
    with pytest.raises(ValueError, match="at most 7 items, not 8"):
        KF.darkrank(torch.zeros(9, 3), torch.zeros(9, 3), list_length=8)
    with pytest.raises(ValueError, match="'soft' or 'hard', not 'kl'"):
        KF.darkrank(torch.zeros(2, 3), torch.zeros(2, 3), transfer="kl")
    with pytest.raises(ValueError, match="'all' or 'first_half', not 'half'"):
        KF.darkrank(torch.zeros(2, 3), torch.zeros(2, 3), queries="half")
