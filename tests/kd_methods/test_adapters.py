"""Adapters: tokens and maps, sizes, widths, and batch normalisation of a single value."""

from __future__ import annotations

import pytest
import torch

from kdsearch.kd_methods import StageSpec
from kdsearch.kd_methods.adapters import (
    BatchNorm2d,
    Layout,
    Projector,
    conv_projector,
    resize,
    to_map,
    to_smaller,
    to_tokens,
)
from kdsearch.kd_methods.numerics import rescale, unit, widen

from .feature_signals import draw, map_stage, token_stage


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_tokens_and_maps_are_inverse() -> None:
    stage = token_stage(5, 3, 4, prefix=2)
    x = random(2, 14, 5)
    laid_out = to_map(x, stage)
    assert laid_out.shape == (2, 5, 3, 4)
    torch.testing.assert_close(laid_out[1, :, 2, 3], x[1, 2 + 2 * 4 + 3])
    torch.testing.assert_close(to_tokens(laid_out), x[:, 2:])
    assert to_map(random(2, 7)).shape == (2, 7, 1, 1)
    maps = random(2, 3, 4, 4)
    assert to_map(maps) is maps


def test_tokens_at_another_resolution_form_a_square() -> None:
    assert to_map(random(2, 1 + 25, 6), token_stage(6, 4, prefix=1)).shape == (2, 6, 5, 5)
    with pytest.raises(ValueError, match=r"7 tokens cannot be laid out as a map: .* the stage's grid is 4×4"):
        to_map(random(2, 8, 6), token_stage(6, 4, prefix=1))
    with pytest.raises(ValueError, match="no stage was given"):
        to_map(random(2, 8, 6))


@pytest.mark.parametrize("size", [(4, 4), (2, 3), (8, 8), (2, 8), (1, 1)])
def test_resize(size: tuple[int, int]) -> None:
    x = random(2, 3, 4, 4)
    assert resize(x, size).shape == (2, 3, *size)
    constant = torch.full((2, 3, 4, 4), 0.7)
    torch.testing.assert_close(resize(constant, size), torch.full((2, 3, *size), 0.7))
    if size == (4, 4):
        assert resize(x, size) is x
    if size == (1, 1):
        torch.testing.assert_close(resize(x, size)[:, :, 0, 0], x.mean((2, 3)))


def test_to_smaller_takes_each_side() -> None:
    a, b = to_smaller(random(2, 3, 8, 2), random(2, 5, 4, 6))
    assert a.shape == (2, 3, 4, 2)
    assert b.shape == (2, 5, 4, 2)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (map_stage(3, 8), map_stage(5, 4)),
        (map_stage(3, 4), map_stage(5, 8)),
        (map_stage(3, 4, 9), map_stage(5, 8, 3)),
        (map_stage(3, 8), token_stage(6, 4, prefix=1)),
        (map_stage(3, 4), token_stage(6, 8, prefix=1)),
        (token_stage(6, 4, prefix=2), map_stage(5, 8)),
        (token_stage(6, 4, prefix=2), token_stage(7, 3, 5, prefix=0)),
    ],
)
def test_projector_meets_the_teacher(student: StageSpec, teacher: StageSpec) -> None:
    generator = torch.Generator().manual_seed(0)
    projector = Projector(student, teacher)
    out = projector(draw(student, 2, generator))
    target = draw(teacher, 2, generator)
    assert out.shape == (to_tokens(target, teacher) if teacher.kind == "token" else target).shape
    out.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in projector.parameters())
    # bfloat16 signals meet float32 projectors outside autocast.
    assert projector(draw(student, 2, generator).bfloat16()).dtype == torch.float32


def test_layout_learns_nothing() -> None:
    stages = [token_stage(6, 4), map_stage(3, 8)]
    layout = Layout(stages, stages[::-1])
    generator = torch.Generator().manual_seed(0)
    features = [draw(stage, 2, generator) for stage in stages]
    s, t = layout(features, features[::-1])
    assert [x.shape for x in s] == [(2, 6, 4, 4), (2, 3, 8, 8)]
    assert [x.shape for x in t] == [(2, 3, 8, 8), (2, 6, 4, 4)]
    assert not list(layout.parameters())
    with pytest.raises(ValueError, match=r"longer|shorter"):
        layout(features[:1], features)


def test_batch_norm_of_one_value() -> None:
    norm = BatchNorm2d(3)
    out = norm(random(1, 3, 1, 1).requires_grad_())
    assert torch.isfinite(out).all()
    assert norm.running_mean is not None
    assert not norm.running_mean.any()
    x = random(4, 3, 2, 2)
    torch.testing.assert_close(norm(x), torch.nn.BatchNorm2d(3)(x))
    assert conv_projector(3, 4)(random(1, 3, 1, 1)).shape == (1, 4, 1, 1)


def test_unit_has_no_gradient_at_zero() -> None:
    x = torch.stack((random(5), torch.zeros(5), torch.full((5,), 1e-14))).requires_grad_()
    out = unit(x)
    torch.testing.assert_close(out.norm(dim=1), torch.tensor([1.0, 0.0, 0.0]))
    out.sum().backward()
    assert x.grad is not None
    assert not x.grad[1:].any()
    torch.testing.assert_close(out[0], torch.nn.functional.normalize(x[0], dim=0))


def test_rescale_and_widen() -> None:
    x = random(3, 4) * 1e30
    torch.testing.assert_close(rescale(x).abs().max(), torch.tensor(1.0))
    assert not rescale(torch.zeros(2, 2)).any()
    assert rescale(torch.zeros(0, 2)).shape == (0, 2)
    assert widen(x.bfloat16()).dtype == torch.float32
    assert widen(x.double()).dtype == torch.float64
