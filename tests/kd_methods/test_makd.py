"""makd: the losses in closed form, masks, decoders and context blocks, unlike models, a short training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, ModelSpec, Signals
from kdsearch.kd_methods import functional as KF
from kdsearch.kd_methods.features._makd import Context, Decoder, draw_masks
from kdsearch.kd_methods.features.makd import MAKD, normalise
from kdsearch.kd_methods.method import KDMethod

from .feature_shapes import PAIRS, holds_for_odd_batches, holds_in_every_format
from .feature_signals import batch_of, data, learns, map_stage, model, signals, token_stage


class Shown(MAKD):
    """Takes the signals of the batch for those of its masked view."""

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return super().loss(replace(student, views={"masked": student}), teacher, batch)


def make(**hyper: Any) -> KDMethod:
    return Shown(**hyper)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_closed_form() -> None:
    s, t = random(4, 3, 5, 5), random(4, 3, 5, 5, seed=1)

    def plain(x: Tensor) -> Tensor:
        return torch.nn.functional.batch_norm(x, None, None, training=True, eps=1e-15)

    feat = 0.5 * (plain(s) - plain(t)).square().mean()
    torch.testing.assert_close(KF.makd([s], [t]), feat)
    context = (s - t).square().sum() / 4
    both = KF.makd([s], [t], student_contexts=[s], teacher_contexts=[t], global_weight=0.1)
    torch.testing.assert_close(both, feat + 0.1 * context)
    torch.testing.assert_close(KF.makd([s, s], [t, t]), 2 * feat)
    torch.testing.assert_close(KF.makd([3 * s - 1], [t + 5]), feat)  # blind to scale and shift of either side
    assert KF.makd([t], [t]) == 0


def test_constant_channels_become_zero() -> None:
    x = torch.full((3, 2, 4, 4), 1234.567)
    x[:, 0] = torch.randn(3, 4, 4)
    assert not normalise(x)[:, 1].any()
    assert not normalise(torch.randn(1, 3, 1, 1)).any()


def test_gradcheck() -> None:
    t = random(2, 2, 2, 2, seed=1)
    assert torch.autograd.gradcheck(
        lambda s: KF.makd([s], [t], student_contexts=[s], teacher_contexts=[t], global_weight=0.1),
        random(2, 2, 2, 2).requires_grad_(),
    )


@pytest.mark.parametrize(("ratio", "hidden"), [(0.0, 0), (0.5, 6), (0.75, 9), (0.99, 11)])
def test_masks_hide_the_stated_share_and_leave_something(ratio: float, hidden: int) -> None:
    masks = draw_masks(64, (3, 4), ratio)
    assert masks.shape == (64, 1, 3, 4)
    assert (masks.sum((1, 2, 3)) == hidden).all()
    torch.testing.assert_close(masks, draw_masks(64, (3, 4), ratio))
    if hidden:
        assert masks.mean(0).min() > 0.5 * ratio - 0.2  # every place is hidden now and then
        assert len(masks.flatten(1).unique(dim=0)) > 5


def test_a_patch_is_as_large_as_the_coarsest_stride() -> None:
    student = model([map_stage(4, 8), map_stage(6, 4)])
    method = make(ratio=0.5)
    method.parts = method.bind(student, student, replace(data(), batch=6))
    (view,) = method.views()
    images = torch.rand(5, 3, 16, 16) + 1
    shown, aside = view.apply(images, None)
    hidden = method.parts.hidden(5).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(shown, images * (1 - hidden))
    assert (shown == 0).float().mean() == 0.5
    assert method.parts.hidden(15).shape[0] == 15
    torch.testing.assert_close(method.parts.hidden(15)[6:12], method.parts.masks)
    assert (aside.visible == 0).equal(method.parts.hidden(5)[:, 0] == 1)
    assert (aside.visible.sum((1, 2)) == aside.kept).all()
    assert (view.name, view.sparse) == ("masked", ("token", "map"))
    assert not view.teacher


def test_hidden_places_hold_the_token_whatever_the_student_gives_there() -> None:
    decoder = Decoder(map_stage(4, 4), map_stage(6, 4), (4, 4), layers=1, width=6).eval()
    x, hidden = torch.randn(2, 4, 4, 4), draw_masks(2, (4, 4), 0.5)
    with torch.no_grad():
        first = decoder(x, hidden, (4, 4))
        torch.testing.assert_close(decoder(x + 7 * hidden, hidden, (4, 4)), first)
        assert not torch.allclose(decoder(x + 7 * (1 - hidden), hidden, (4, 4)), first)
        decoder.token.add_(1.0)
        assert not torch.allclose(decoder(x, hidden, (4, 4)), first)


def test_a_visible_position_informs_the_hidden_ones() -> None:
    decoder = Decoder(map_stage(4, 4), map_stage(6, 4), (4, 4), layers=1, width=6)
    x, hidden = torch.randn(1, 4, 4, 4, requires_grad=True), draw_masks(1, (4, 4), 0.5)
    (decoder(x, hidden, (4, 4)) * hidden).sum().backward()
    assert x.grad is not None
    assert (x.grad * (1 - hidden)).abs().sum() > 0
    assert not (x.grad * hidden).any()


@pytest.mark.parametrize(
    ("student", "teacher"), [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((7, 5), (3, 9)), ((4, 4), (1, 1))]
)
def test_decoders_reach_every_size(student: tuple[int, int], teacher: tuple[int, int]) -> None:
    decoder = Decoder(map_stage(4, *student), map_stage(6, *teacher), (2, 2), layers=0, width=6)
    out = decoder(torch.randn(2, 4, *student), draw_masks(2, (2, 2), 0.5), teacher)
    assert out.shape == (2, 6, *teacher)
    halved = torch.randn(2, 4, -(-student[0] // 2), -(-student[1] // 2))  # another resolution than measured
    assert decoder(halved, draw_masks(2, (2, 2), 0.5), teacher).shape == (2, 6, *teacher)


def test_context_blocks_begin_as_the_identity() -> None:
    block: Any = Context(4)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(block(x), x)
    torch.nn.init.ones_(block.change[-1].weight)
    changed = block(x) - x
    assert changed.abs().sum() > 0
    torch.testing.assert_close(changed, changed[:, :, :1, :1].expand_as(x))  # the same everywhere: it is global


def bound(**hyper: Any) -> Any:
    def join(student: ModelSpec, teacher: ModelSpec) -> KDMethod:
        torch.manual_seed(0)
        method = make(**hyper)
        method.parts = method.bind(student, teacher, replace(data(), batch=8))
        return method

    return join


def test_the_masked_view_is_needed() -> None:
    student = model([map_stage(4, 4)])
    method = kd_methods.create("makd")
    method.parts = method.bind(student, student, data())
    with pytest.raises(ValueError, match="masked view"):
        method.loss(signals(student, 2, 0), signals(student, 2, 1), batch_of(2))


@pytest.mark.parametrize("pair", list(PAIRS))
def test_unlike_models(pair: str) -> None:
    holds_in_every_format(bound(global_weight=1e-2), pair)


@pytest.mark.parametrize("pair", ["maps", "from tokens"])
def test_odd_batches(pair: str) -> None:
    holds_for_odd_batches(bound(), pair)


@pytest.mark.parametrize("pair", ["oblong", "to tokens", "tokens"])
def test_learns(pair: str) -> None:
    student, teacher = PAIRS[pair]
    learns(make(), student, teacher, steps=25, lr=0.02, optimizer=torch.optim.Adam)


def test_state_survives_and_masks_are_no_part_of_it() -> None:
    student, teacher = model([map_stage(4, 4)]), model([token_stage(6, 4)])
    method, other = bound()(student, teacher), bound()(student, teacher)
    s, t = signals(student, 4, 0), signals(teacher, 4, 1)
    other.parts.load_state_dict(method.parts.state_dict())
    torch.testing.assert_close(method.loss(s, t, batch_of(4)), other.loss(s, t, batch_of(4)))
    assert not [name for name in method.parts.state_dict() if "masks" in name]
