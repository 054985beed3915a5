"""at: golden numbers, invariances, unequal shapes, hazards, and a short training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdsearch import kd_methods
from kdsearch.kd_methods import Signals
from kdsearch.kd_methods import functional as KF

from .feature_signals import batch_of, learns, map_stage, model, signals, token_stage
from .golden import agrees, cases, tensors


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("case", "arrays"), cases("features/at"))
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    s, t = case["uses"]
    x = tensors(arrays, s)
    agrees(case, KF.at([x[s]], [x[t]], p=case["hyper"]["p"], signed=True), x)


@pytest.mark.parametrize(
    ("case", "arrays"), [c for c in cases("features/at") if c.id in ("same_shape_p2", "p1_signed")]
)
def test_golden_of_magnitudes(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """The reading with |A|^p was computed by another implementation, which adds 1e-6 to the norm."""
    s, t = case["uses"]
    x = tensors(arrays)
    loss = KF.at([x[s]], [x[t]], p=case["hyper"]["p"])
    assert loss.item() == pytest.approx(case["loss_AberHu_abs_sum_eps1e-6"], rel=1e-6)


def test_closed_form_of_each_attention() -> None:
    s, t = maps(2, 3, 4, 4, seed=1), maps(2, 5, 4, 4, seed=2)
    for p in (1, 2, 3):
        for attention, reduce in (("sum", lambda a: a.sum(1)), ("max", lambda a: a.amax(1))):
            q = [F.normalize(reduce(x.abs() ** p).flatten(1)) for x in (s, t)]
            expected = (q[0] - q[1]).square().mean()
            torch.testing.assert_close(KF.at([s], [t], p=p, attention=attention), expected)
            norm = 0.5 * (q[0] - q[1]).norm(dim=1).mean()
            torch.testing.assert_close(KF.at([s], [t], p=p, attention=attention, distance="norm"), norm)


def test_scale_and_channel_order_do_not_matter() -> None:
    s, t = maps(4, 6, 5, 5, seed=1), maps(4, 3, 5, 5, seed=2)
    expected = KF.at([s], [t])
    torch.testing.assert_close(KF.at([s * 3], [t * 0.01]), expected)
    torch.testing.assert_close(KF.at([s.flip(1)], [t]), expected)
    torch.testing.assert_close(KF.at([s.flip(0)], [t.flip(0)]), expected)
    scales = torch.tensor([1.0, 2.0, 5.0, 0.1], dtype=torch.float64).view(4, 1, 1, 1)
    torch.testing.assert_close(KF.at([s * scales], [t]), expected)


def test_pairs_are_summed_and_equal_maps_give_zero() -> None:
    s, t = [maps(3, 4, 6, 6, seed=1), maps(3, 8, 3, 3, seed=2)], [maps(3, 5, 8, 8, seed=3), maps(3, 9, 2, 4, seed=4)]
    torch.testing.assert_close(KF.at(s, t), KF.at(s[:1], t[:1]) + KF.at(s[1:], t[1:]))
    same = s[0].clone().requires_grad_()
    for distance in ("mse", "norm"):
        loss = KF.at([same], [s[0]], distance=distance)
        assert abs(loss) < 1e-12
        assert not torch.autograd.grad(loss, same)[0].any()


def test_larger_map_is_pooled_first() -> None:
    s, t = maps(2, 4, 8, 6, seed=1), maps(2, 4, 4, 12, seed=2)
    expected = KF.at([F.adaptive_avg_pool2d(s, (4, 6))], [F.adaptive_avg_pool2d(t, (4, 6))])
    torch.testing.assert_close(KF.at([s], [t]), expected)


@pytest.mark.parametrize(
    "student",
    [
        torch.zeros(3, 4, 5, 5),
        torch.full((3, 4, 5, 5), 0.3),
        torch.zeros(3, 4, 5, 5).index_fill(0, torch.tensor([1]), 1e-20),
        maps(1, 4, 5, 5, dtype=torch.float32),
        maps(3, 4, 1, 1, dtype=torch.float32),
        maps(3, 4, 5, 5, dtype=torch.float32) * 1e25,
        maps(3, 4, 5, 5, dtype=torch.float32) * 1e-25,
        (maps(3, 4, 5, 5) * 1e4).to(torch.bfloat16),
        (maps(3, 4, 5, 5) * 1e4).to(torch.float16),
    ],
    ids=["zero", "constant", "a zero row", "batch of one", "1x1", "large", "small", "bfloat16", "float16"],
)
@pytest.mark.parametrize("p", [1, 2, 4])
def test_finite(student: torch.Tensor, p: int) -> None:
    student = student.clone().requires_grad_()
    teacher = maps(len(student), 6, 5, 5, seed=9, dtype=student.dtype)
    loss = KF.at([student], [teacher], p=p)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([map_stage(4, 8), map_stage(6, 4)], [map_stage(5, 8), map_stage(9, 4)]),
        ([map_stage(4, 6, 9)], [map_stage(4, 9, 6)]),
        ([map_stage(4, 7)], [token_stage(10, 4)]),
        ([token_stage(6, 4, prefix=2)], [map_stage(8, 8)]),
        ([token_stage(6, 4, 5, prefix=2)], [token_stage(8, 8, prefix=0)]),
    ],
    ids=["maps", "oblong", "to tokens", "from tokens", "tokens"],
)
def test_learns(student: list[Any], teacher: list[Any]) -> None:
    method = kd_methods.create("at")
    learns(method, model(student), model(teacher), lr=200.0)
    if method.parts is not None:
        assert not list(method.parts.state_dict())


def test_tokens_are_read_as_the_map_they_are() -> None:
    student, teacher = model([token_stage(6, 3, 4, prefix=1)]), model([map_stage(5, 3, 4)])
    method = kd_methods.create("at")
    method.parts = method.bind(student, teacher, None)  # type: ignore[arg-type]
    s, t = signals(student, 2, 0), signals(teacher, 2, 1)
    as_map = s.features[0][:, 1:].transpose(1, 2).reshape(2, 6, 3, 4)
    torch.testing.assert_close(method.loss(s, t, batch_of(2)), KF.at([as_map], t.features))


def test_declaration() -> None:
    method = kd_methods.create("at")
    assert method.hyper["weight"] == 1000
    assert method.spatial
    assert method.bind(model([map_stage(4, 8)]), model([map_stage(4, 8)]), None) is None  # type: ignore[arg-type]
    s = Signals(torch.zeros(2, 3), features=[maps(2, 3, 4, 4)])
    assert method.loss(s, s, batch_of(2)) == 0
    with pytest.raises(ValueError, match="'sum' or 'max'"):
        KF.at([maps(2, 3, 4, 4)], [maps(2, 3, 4, 4)], attention="mean")
    with pytest.raises(ValueError, match="'mse' or 'norm'"):
        KF.at([maps(2, 3, 4, 4)], [maps(2, 3, 4, 4)], distance="l1")
