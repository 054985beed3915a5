"""Patches left out: the visible ones see what a shorter sequence would, at its cost, and hidden places are zero."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kdsearch.kd_methods import Need
from kdsearch.kd_methods.sparse import Visible, keep, put_back
from kdsearch.kd_methods.tap import Tap, probe
from kdsearch.kd_methods.tokens._masking import random_cells
from kdsearch.search_space import students

SHAPE = (3, 16, 16)
STAGES = frozenset({Need.FEATURES})
BRANCHES = {"plain": (), "distilled": ("distillation_token",), "advised": ("advice_tokens",)}


@cache
def vit(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "pooled":  # no class token: its embedding is the mean of the patches
        return timm.create_model(
            "vit_tiny_patch16_224",
            num_classes=5,
            img_size=16,
            patch_size=4,
            embed_dim=24,
            depth=4,
            num_heads=2,
            class_token=False,
            global_pool="avg",
            fc_norm=False,
        ).eval()
    family = students.create("vit", depth=4, dim=24, heads=2, patch=4)
    return family.build(SHAPE, 5, branches=frozenset(BRANCHES[kind])).eval()


def visible(batch: int, grid: tuple[int, int] = (4, 4), count: int = 4) -> Visible:
    ratio = 1 - count / (grid[0] * grid[1])
    return Visible(random_cells(batch, grid, ratio, torch.Generator().manual_seed(2), torch.device("cpu")), count)


def by_hand(model: Any, images: Tensor, cells: Tensor, prefix: int) -> list[Tensor]:
    """Each block's output for the shorter sequences, image by image."""
    outputs: list[list[Tensor]] = [[] for _ in model.blocks]
    tokens = model._pos_embed(model.patch_embed(images))
    for k, x in enumerate(tokens):
        kept = [*range(prefix), *(prefix + i for i, seen in enumerate(cells[k].flatten().tolist()) if seen)]
        x = model.norm_pre(x[None, kept])
        for output, block in zip(outputs, model.blocks, strict=True):
            x = block(x)
            output.append(x)
    return [torch.cat(output) for output in outputs]


@pytest.mark.parametrize("kind", ["plain", "distilled", "advised", "pooled"])
def test_visible_patches_are_a_shorter_sequence(kind: str) -> None:
    model, shown = vit(kind), visible(3)
    spec = probe(model, SHAPE)
    assert spec.entrance == "patch_drop"
    prefix = spec.stages[0].prefix
    images = torch.randn(3, *SHAPE)
    with torch.no_grad(), Tap(model, spec, STAGES | {Need.LOGITS, Need.QKV}) as tap:
        signals = tap(images, visible=shown)
        wanted = by_hand(model, images, shown.cells, prefix)
        again = tap(images)
    for feature, qkv, want in zip(signals.features, signals.qkv, wanted, strict=True):
        assert feature.shape == (3, prefix + 16, 24)
        torch.testing.assert_close(feature[:, :prefix], want[:, :prefix])
        patches = feature[:, prefix:]
        torch.testing.assert_close(patches[shown.cells.flatten(1)], want[:, prefix:].flatten(0, 1))
        assert not patches[~shown.cells.flatten(1)].any()
        assert qkv.shape[3] == prefix + 4
    torch.testing.assert_close(signals.logits, model.forward_head(model.norm(wanted[-1])))
    # The next pass is whole again, and nothing hangs on the model.
    torch.testing.assert_close(again.logits, model(images))
    assert not model.patch_drop._forward_hooks


def test_hidden_pixels_change_nothing() -> None:
    model, shown = vit("plain"), visible(2)
    images = torch.randn(2, *SHAPE)
    behind = ~shown.cells.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    with torch.no_grad(), Tap(model, probe(model, SHAPE), STAGES) as tap:
        first = tap(images, visible=shown).features
        second = tap(torch.where(behind, 100.0, images), visible=shown).features
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


def test_a_quarter_of_the_tokens_costs_about_a_quarter() -> None:
    model, shown = vit("plain"), visible(2)
    images = torch.randn(2, *SHAPE)
    spec, spent = probe(model, SHAPE), []
    lengths: list[int] = []
    handle = model.blocks[2].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    with torch.no_grad(), Tap(model, spec, STAGES | {Need.LOGITS}) as tap:
        for part in (None, shown):
            with FlopCounterMode(display=False) as counter:
                tap(images, visible=part)
            spent.append(sum(v for k, v in counter.get_flop_counts()["Global"].items() if "convolution" not in str(k)))
    handle.remove()
    assert lengths == [17, 5]
    assert spent[1] < 0.32 * spent[0]


def test_a_truncated_pass_leaves_patches_out_too() -> None:
    model, shown = vit("plain"), visible(2)
    spec, images = probe(model, SHAPE), torch.randn(2, *SHAPE)
    lengths: list[int] = []
    handles = [b.register_forward_pre_hook(lambda m, args: lengths.append(args[0].shape[1])) for b in model.blocks]
    with torch.no_grad(), Tap(model, spec, STAGES, [2]) as tap:
        first = tap(images, visible=shown).features
        lengths.clear()
        signals = tap(images, visible=shown)
    for handle in handles:
        handle.remove()
    assert lengths == [5, 5, 5]
    assert signals.logits.shape == (2, 0)
    torch.testing.assert_close(signals.features, first)


def test_the_map_of_a_model_without_class_token() -> None:
    model, shown = vit("pooled"), visible(2)
    with torch.no_grad(), Tap(model, probe(model, SHAPE), frozenset({Need.MAP, Need.EMBEDDING})) as tap:
        signals = tap(torch.randn(2, *SHAPE), visible=shown)
    assert signals.map is not None
    assert signals.embedding is not None
    assert signals.map.shape == (2, 24, 4, 4)
    torch.testing.assert_close(signals.map.sum((2, 3)) / 4, signals.embedding)


def test_gradients_reach_the_model() -> None:
    model, shown = vit("plain"), visible(2)
    with Tap(model, probe(model, SHAPE), STAGES) as tap:
        feature = tap(torch.randn(2, *SHAPE), visible=shown).features[-1]
    (gradient,) = torch.autograd.grad(feature.square().sum(), [model.pos_embed])
    seen = shown.cells.flatten(1).any(0)
    assert gradient[0, 1:].abs().sum(1).gt(0).equal(seen)


@pytest.mark.parametrize("grid", [(2, 2), (4, 2)])
def test_cells_of_several_patches(grid: tuple[int, int]) -> None:
    shown = visible(3, grid, 2)
    places = shown.patches((4, 4))
    assert places.shape == (3, 2 * 16 // (grid[0] * grid[1]))
    assert places.equal(places.sort(1).values)
    finer = torch.zeros(3, 16).scatter(1, places, 1.0).view(3, 4, 4)
    coarse = torch.nn.functional.adaptive_avg_pool2d(finer, grid)
    torch.testing.assert_close(coarse, shown.cells.float())


def test_kept_tokens_come_back_to_their_places() -> None:
    tokens = torch.randn(2, 2 + 6, 3)
    places = torch.tensor([[0, 3], [4, 5]])
    kept = keep(tokens, places, 2)
    torch.testing.assert_close(kept[1], tokens[1, [0, 1, 6, 7]])
    back = put_back(kept, places, 2, 6)
    torch.testing.assert_close(keep(back, places, 2), kept)
    assert back.abs().sum(2).gt(0).sum() == 2 * (2 + 2)
    bare = keep(tokens, places, 0)
    assert put_back(bare, places, 0, 8).shape == tokens.shape


def test_whole_images_where_the_cells_do_not_divide_the_grid() -> None:
    model = vit("plain")
    images = torch.randn(2, *SHAPE)
    with torch.no_grad(), Tap(model, probe(model, SHAPE), STAGES) as tap:
        shown = visible(2, (3, 3), 2)
        assert not tap.spares(shown)
        assert not tap.spares(None)
        assert tap.spares(visible(2))
        torch.testing.assert_close(tap(images, visible=shown).features, tap(images).features)


@pytest.mark.parametrize("name", ["resnet", "swin", "dropping"])
def test_who_has_no_entrance(name: str) -> None:
    torch.manual_seed(0)
    if name == "resnet":
        model: Any = students.create("resnet", depth=8).build(SHAPE, 5)
    elif name == "swin":
        options: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 1, 1)}
        model = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=2, **options)
    else:  # it drops patches of its own accord
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, patch_drop_rate=0.5
        )
    side = 32 if name == "swin" else 16
    assert probe(model, (3, side, side)).entrance is None


def cnn(name: str) -> Any:
    torch.manual_seed(0)
    if name == "resnet":
        return students.create("resnet", depth=8).build(SHAPE, 5).eval()
    return timm.create_model(name, num_classes=5).eval()


def maps(batch: int, grid: tuple[int, int] = (2, 2), kept: int = 2) -> Visible:
    return visible(batch, grid, kept)._replace(kinds=("token", "map"))


@pytest.mark.parametrize(("name", "side", "stages"), [("resnet", 16, 3), ("resnet18", 64, 5)])
def test_hidden_pixels_never_reach_visible_places_of_a_map(name: str, side: int, stages: int) -> None:
    model, shown = cnn(name), maps(2)
    images = torch.randn(2, 3, side, side)
    spec = probe(model, (3, side, side))
    chosen = [k for k, stage in enumerate(spec.stages) if min(stage.size) >= 2]
    assert len(chosen) == stages
    pixels = side // 2
    behind = ~shown.cells.repeat_interleave(pixels, 1).repeat_interleave(pixels, 2)[:, None]
    with torch.no_grad(), Tap(model, spec, STAGES, chosen) as tap:
        first = tap(images, visible=shown).features
        second = tap(torch.where(behind, 100.0, images), visible=shown).features
        plain = tap(torch.where(behind, 0.0, images)).features
        dense = tap(images, visible=visible(2)).features  # of tokens alone: a map is shown whole
        again = tap(images).features
    for a, b, c, d, e in zip(first, second, plain, dense, again, strict=True):
        cells = torch.nn.functional.interpolate(shown.cells[:, None].float(), size=a.shape[-2:]) > 0
        torch.testing.assert_close(a * cells, b * cells)
        if stages == 3 or a is not first[0]:  # behind the first convolution, hidden pixels alone are not enough
            assert not torch.equal(a * cells, c * cells)
        torch.testing.assert_close(d, e)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_running_statistics_are_of_whole_images() -> None:
    model = cnn("resnet").train()
    images = torch.randn(4, *SHAPE)
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    with torch.no_grad(), Tap(model, probe(model, SHAPE), STAGES) as tap:
        tap(images, visible=maps(4))
        for name, value in before.items():
            torch.testing.assert_close(model.state_dict()[name], value)
        tap(images)
    assert all(not torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_masked_convolutions_in_half_precision_and_channels_last() -> None:
    model, shown = cnn("resnet").to(memory_format=torch.channels_last), maps(2)
    images = torch.randn(2, *SHAPE)
    with torch.no_grad(), Tap(model, probe(model, SHAPE), STAGES) as tap:
        wanted = tap(images, visible=shown).features[-1]
        last = tap(images.contiguous(memory_format=torch.channels_last), visible=shown).features[-1]
        with torch.autocast("cpu", torch.bfloat16):
            half = tap(images, visible=shown).features[-1]
    torch.testing.assert_close(last, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(half.float(), wanted, rtol=0.1, atol=0.05)
