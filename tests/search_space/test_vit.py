"""Transformers with further tokens: their heads, their stems, other resolutions, and the involution by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdsearch.kd_methods.probe import probe
from kdsearch.parameters import Choices
from kdsearch.search_space import students
from kdsearch.search_space.students import measure
from kdsearch.search_space.students.networks.vit import Involution

SHAPE = (3, 16, 16)
FAMILY = students.create("vit", depth=2, dim=24, heads=2, patch=4)
ALL = [("distillation_token",), ("distillation_token", "patch_head"), ("advice_tokens",), ("attention",)]


def build(*branches: str, shape: tuple[int, int, int] = SHAPE) -> Any:
    torch.manual_seed(0)
    return FAMILY.build(shape, 5, branches=frozenset(branches))


@pytest.mark.parametrize("branches", ALL)
@pytest.mark.parametrize("patch", [2, 4, 8, 16])
def test_every_branch_answers_and_learns_at_any_resolution(branches: tuple[str, ...], patch: int) -> None:
    family = FAMILY.changed(patch=patch)
    assert family is not None
    model: Any = family.build((1, 10, 6), 5, branches=frozenset(branches))
    if branches != ("attention",):
        model.set_distilled_training(True)
    heads = model.train()(torch.randn(1, 1, 10, 6))
    heads = heads if isinstance(heads, tuple) else (heads,)
    assert len(heads) == {"distillation_token": 2, "advice_tokens": 3}.get(branches[0], 1)
    torch.stack(heads).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    for shape in ((10, 6), (17, 9)):
        assert model.eval()(torch.randn(2, 1, *shape)).shape == (2, 5)


def test_attention_changes_nothing() -> None:
    a, b = build("attention").state_dict(), build().state_dict()
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert type(build("attention")) is type(build())


def test_the_patch_head_has_no_weights_of_its_own() -> None:
    assert measure.parameters(build("distillation_token", "patch_head")) == measure.parameters(
        build("distillation_token")
    )


def test_an_advised_transformer_answers_with_the_mean_of_its_heads() -> None:
    model = build("advice_tokens").eval()
    images = torch.randn(3, *SHAPE)
    with torch.no_grad():
        tokens = model.forward_features(images)
        heads = (model.head, model.head_convolution, model.head_involution)
        expected = torch.stack([head(tokens[:, k]) for k, head in enumerate(heads)]).mean(0)
        torch.testing.assert_close(model(images), expected)


def test_advice_tokens_are_the_means_of_their_stems() -> None:
    model = build("advice_tokens").eval()
    with torch.no_grad():
        model.pos_embed.zero_()
        patches = model.patch_embed(torch.randn(2, *SHAPE))
        tokens = model._pos_embed(patches)
    convolution, involution = patches.flatten(1, 2).chunk(2, -1)
    torch.testing.assert_close(tokens[:, 1], convolution.mean(1))
    torch.testing.assert_close(tokens[:, 2], involution.mean(1))
    torch.testing.assert_close(tokens[:, 3:], convolution + involution)


def test_thinner_and_wider_transformers_keep_their_branches() -> None:
    for other in (FAMILY.thinned(0.5), FAMILY.widened(2.0)):
        assert other is not None
        assert other.build(SHAPE, 5, branches=frozenset({"advice_tokens"}))(torch.randn(2, *SHAPE)).shape == (2, 5)


def test_branches_that_exclude_one_another() -> None:
    for branches in ({"patch_head"}, {"distillation_token", "advice_tokens"}):
        with pytest.raises(ValueError, match="vit cannot have these branches at once"):
            FAMILY.build(SHAPE, 5, branches=frozenset(branches))


def by_hand(layer: Involution, x: Tensor) -> Tensor:
    """Position by position, as the paper writes it."""
    weights = layer.span(layer.reduce(x))
    batch, channels, height, width = x.shape
    size, reach = layer.kernel, layer.kernel // 2
    weights = weights.view(batch, layer.groups, size, size, height, width)
    out = torch.zeros_like(x)
    for c in range(channels):
        group = c * layer.groups // channels
        for i in range(height):
            for j in range(width):
                for u in range(size):
                    for v in range(size):
                        row, column = i + u - reach, j + v - reach
                        if 0 <= row < height and 0 <= column < width:
                            out[:, c, i, j] += weights[:, group, u, v, i, j] * x[:, c, row, column]
    return out


def test_involution_is_the_sum_over_neighbourhoods() -> None:
    torch.manual_seed(0)
    layer = Involution(32, 3).double().eval()
    assert layer.groups == 2
    x = torch.randn(2, 32, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), by_hand(layer, x))


@pytest.mark.parametrize(("branches", "size"), [((), 5_717_416), (("distillation_token",), 5_910_800)])
def test_tiny_deit_has_its_published_size(branches: tuple[str, ...], size: int) -> None:
    family = students.create("vit", patch=16, dim=192, depth=12, heads=3)
    assert measure.parameters(family.build((3, 224, 224), 1000, branches=frozenset(branches))) == size


@pytest.mark.parametrize(("shape", "patch", "side"), [((1, 8, 8), 2, 4), ((1, 8, 8), 4, 2), ((3, 32, 32), 4, 8)])
def test_tiny_deit_for_small_images(shape: tuple[int, int, int], patch: int, side: int) -> None:
    """Width, depth and heads of the published one, all of them in the searched ranges; patches that suit the image."""
    family = students.create("vit", patch=patch, dim=192, depth=12, heads=3)
    for key, value in family.hyper.items():
        found = family.parameters[key]
        assert value in found.searched if isinstance(found, Choices) else found.low <= float(value) <= found.high
    spec = probe(family.build(shape, 10, branches=frozenset({"distillation_token"})), shape)
    assert [(s.kind, s.channels, s.size, s.prefix, s.heads) for s in spec.stages] == [
        ("token", 192, (side, side), 2, 3)
    ] * 4
