"""The operators of decomposed distillers: shapes, closed forms, gradients, and values on which careless ones break."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.kd_methods.decomposed import distances, names, transforms
from kdsearch.kd_methods.decomposed.candidate import candidate
from kdsearch.kd_methods.decomposed.shapes import chained, compared, transformed
from kdsearch.kd_methods.decomposed.transforms import DRAWN, TRANSFORMS, Draws, chain

SHAPES = {"maps": (3, 4, 5, 6), "rows": (3, 4, 7), "vectors": (3, 8), "small maps": (2, 3, 4, 4), "tiny": (2, 3, 1, 2)}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def apply(name: str, x: Tensor, seed: int = 0) -> Tensor:
    return chain(x, [name], Draws(torch.Generator(x.device).manual_seed(seed)))


def test_the_tables_hold_what_the_names_list() -> None:
    assert len(names.TRANSFORMS) == len(set(names.TRANSFORMS)) == 40
    assert set(TRANSFORMS) | set(DRAWN) == set(names.TRANSFORMS)
    assert set(distances.DISTANCES) == set(names.DISTANCES)
    assert set(names.ON_VECTORS) <= set(names.TRANSFORMS)


@pytest.mark.parametrize("kind", list(SHAPES))
@pytest.mark.parametrize("name", names.TRANSFORMS)
def test_shapes_are_those_that_the_rule_says(name: str, kind: str) -> None:
    x = draw(*SHAPES[kind])
    try:
        expected = transformed(name, SHAPES[kind])
    except ValueError:
        assert name in names.OF_ROWS
        return
    assert apply(name, x).shape == expected


def test_what_is_no_map_is_refused_where_maps_are_taken() -> None:
    with pytest.raises(ValueError, match=r"'mask' takes maps, and is given vectors \[3, 24\]"):
        chained(("batch", "mask"), (3, 4, 2, 3))
    with pytest.raises(ValueError, match=r"'norm_hw' takes maps or rows, and is given vectors"):
        chained(("norm_hw",), (3, 4))
    with pytest.raises(ValueError, match=r"'local_4' cuts patches of 4×4, and is given maps \[3, 4, 3, 8\]"):
        chained(("local_4",), (3, 4, 3, 8))
    assert {n for n in names.ON_VECTORS if transformed(n, (3, 4))} == set(names.ON_VECTORS)


def test_closed_forms() -> None:
    x = draw(2, 3, 4, 6)
    blocks = x.unfold(2, 2, 2).unfold(3, 2, 2)  # [B, C, down, across, 2, 2]
    torch.testing.assert_close(apply("multi_scale_2", x), blocks.amax((4, 5)))
    torch.testing.assert_close(apply("local_2", x), blocks.reshape(2, 18, 2, 2))
    torch.testing.assert_close(apply("local_1", x), x.reshape(2, 72))
    torch.testing.assert_close(apply("multi_scale_4", x)[..., 1], x[..., 4:].amax((2, 3)).unsqueeze(2))
    attention = 24 * torch.softmax(2 * x.abs().mean(1).reshape(2, 24), 1).reshape(2, 1, 4, 6)
    torch.testing.assert_close(apply("spatial_attention", x), attention)
    channels = 3 * torch.softmax(2 * x.abs().mean((2, 3)), 1)
    torch.testing.assert_close(apply("channel_attention", x).flatten(1), channels)
    torch.testing.assert_close(apply("batch_attention", x), 2 * torch.softmax(2 * x, 0))
    torch.testing.assert_close(apply("channel_gram", x), torch.einsum("bihw,bjhw->bij", x, x))
    torch.testing.assert_close(apply("channel_gram", x.flatten(2)), apply("channel_gram", x))
    torch.testing.assert_close(apply("batch_gram", x), torch.einsum("ichw,jchw->ij", x, x))
    torch.testing.assert_close(apply("norm_hw", x), x / x.norm(dim=(2, 3), keepdim=True))
    torch.testing.assert_close(apply("norm_n", x), F.normalize(x, dim=0))
    torch.testing.assert_close(apply("softmax_hw", x).sum(2), torch.ones(2, 3, dtype=x.dtype))
    torch.testing.assert_close(apply("log_softmax_n", x).exp(), apply("softmax_n", x))
    torch.testing.assert_close(apply("sqrt", x).square() * x.sign(), x)
    torch.testing.assert_close(apply("log", x), x.sign() * (1 + x.abs()).log())
    torch.testing.assert_close(apply("pow4", x), x**4)
    torch.testing.assert_close(apply("exp", x), x.exp())
    stretched = apply("min_max", x)
    assert (stretched.min(), stretched.max()) == (0, 1)
    torch.testing.assert_close(apply("halve", x), (x + 1) / 2)
    torch.testing.assert_close(apply("batch_norm", x), F.batch_norm(x, None, None, training=True))


def test_both_sides_lose_the_same_places() -> None:
    x = torch.ones(4, 3, 8, 8)
    hidden = apply("mask", x)
    assert set(hidden.unique().tolist()) == {0.0, 1.0}
    assert (hidden == hidden[:, :1]).all()  # whole positions
    assert 0.2 < hidden.mean() < 0.5
    dropped = apply("dropout", torch.ones(50, 40, 2, 2))
    assert (dropped == dropped[..., :1, :1]).all()  # whole channels
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / 0.9]))
    for name in DRAWN:
        t = draw(4, 3, 8, 8)
        assert candidate(t, t, (name, "tanh", "mask"), "l2") == 0
        assert candidate(t, t + 1, (name, "identity", "identity"), "l2") > 0
        assert (apply(name, t, 1) != apply(name, t, 2)).any()


@pytest.mark.parametrize("name", names.TRANSFORMS)
def test_gradients(name: str) -> None:
    x = draw(2, 3, 4, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: apply(name, z), (x,))


@pytest.mark.parametrize("distance", names.DISTANCES)
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 3, 2, 2)], ids=str)
def test_distances_are_zero_between_equals_and_differentiable(distance: str, shape: tuple[int, ...]) -> None:
    measure = distances.DISTANCES[distance]
    s, t = (draw(*shape, seed=k).abs() + 0.1 for k in (1, 2))
    assert abs(float(measure(t, t))) < 1e-12
    assert measure(s, t) > 0
    assert torch.autograd.gradcheck(lambda x: measure(x, t), (s.requires_grad_(),))


def test_distances_in_closed_form() -> None:
    s, t = draw(3, 5, seed=1), draw(3, 5, seed=2)
    torch.testing.assert_close(distances.pairwise_l2(s, t), (s - t).norm(dim=1).mean())
    torch.testing.assert_close(distances.cosine(s, t), 1 - F.cosine_similarity(s, t, dim=1).mean())
    correlation = torch.stack([torch.corrcoef(torch.stack(rows))[0, 1] for rows in zip(s, t, strict=True)])
    torch.testing.assert_close(distances.pearson(s, t), 1 - correlation.mean())
    p, q = t.softmax(1), s.softmax(1)
    torch.testing.assert_close(distances.kl(s, t, 1.0), (p * (p / q).log()).sum(1).mean())
    torch.testing.assert_close(distances.kl_raw(7 * q, 3 * p), (p * (p / q).log()).sum(1).mean())
    maps = draw(3, 5, 2, 2, seed=3)
    torch.testing.assert_close(distances.g_l2(maps, maps.flip(1)), distances.g_l2(maps.flatten(2), maps.flip(1)))
    assert compared("g_l2", (3, 5, 2, 2)) == (3, 5, 5)
    assert compared("g_l2", (3, 5)) == (3, 3)
    assert compared("l2", (3, 5)) == (3, 5)


HAZARDS = {
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "large": lambda x: 1e4 * x,
    "alike": lambda x: x[:1].expand_as(x).clone(),
    "one sample": lambda x: x[:1],
}


@pytest.mark.parametrize("hazard", list(HAZARDS))
def test_every_operator_is_finite_in_float32(hazard: str) -> None:
    """Alone and three times in a row, value and gradient, student beside an ordinary teacher and beside itself."""
    t = draw(3, 4, 4, 4, seed=4).float()
    odd = HAZARDS[hazard](draw(3, 4, 4, 4, seed=5).float())
    teachers = (t[: len(odd)], odd.clone())
    for name, times, teacher in product(names.TRANSFORMS, (1, 3), teachers):
        chained_names = [name, *([name] * (times - 1) if name not in names.OF_MAPS | {"batch"} else [])]
        s = odd.clone().requires_grad_()
        _finite(s, candidate(s, teacher, chained_names, "l2"), f"{chained_names}")
    for distance, teacher in product(names.DISTANCES, teachers):
        s = odd.clone().requires_grad_()
        _finite(s, candidate(s, teacher, ["relu"], distance), distance)


def _finite(s: Tensor, value: Tensor, what: str) -> None:
    (gradient,) = torch.autograd.grad(value, s)
    assert torch.isfinite(value), what
    assert torch.isfinite(gradient).all(), what


def test_unknown_names_get_the_nearest() -> None:
    x = draw(2, 3)
    with pytest.raises(ValueError, match=r"unknown transform 'sofmax_c'; did you mean 'softmax_c'"):
        candidate(x, x, ["sofmax_c"], "l2")
    with pytest.raises(ValueError, match="unknown distance 'l3'"):
        candidate(x, x, ["identity"], "l3")
    with pytest.raises(ValueError, match=r"gives \[2, 3\] of the student and \[2, 4\] of the teacher"):
        candidate(x, draw(2, 4), ["identity"], "l2")
    assert transforms.KEPT == 0.35
