"""Attention over windows: against a definition position by position, at every padding, stride and size."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from kdsearch.search_space.students.networks import local_attention as module
from kdsearch.search_space.students.networks.local_attention import local_attention
from kdsearch.search_space.students.networks.windows import Window, scores, spread, sums


def reflected(place: int, length: int) -> int:
    place = abs(place)
    return place if place < length else 2 * (length - 1) - place


def by_definition(
    query: Tensor, key: Tensor, value: Tensor, *, heads: int, window: int, padding: str, position: Tensor | None
) -> Tensor:
    """One position at a time."""
    batch, channels, height, width = key.shape
    stride = -(-height // query.shape[2])
    half, per_head = window // 2, channels // heads
    out = torch.zeros_like(query)
    for b, head, i, j in product(range(batch), range(heads), range(query.shape[2]), range(query.shape[3])):
        part = slice(head * per_head, (head + 1) * per_head)
        scores, values = [], []
        for u, v in product(range(-half, half + 1), repeat=2):
            row, column = stride * i + u, stride * j + v
            inside = 0 <= row < height and 0 <= column < width
            k = val = torch.zeros(per_head, dtype=key.dtype)
            if padding == "reflect":
                row, column = reflected(row, height), reflected(column, width)
            if inside or padding == "reflect":
                k, val = key[b, part, row, column], value[b, part, row, column]
            elif padding == "cut":
                continue
            if position is not None:
                k = k + position[part, u + half, v + half]
            scores.append((query[b, part, i, j] * k).sum())
            values.append(val)
        out[b, part, i, j] = (torch.stack(scores).softmax(0)[:, None] * torch.stack(values)).sum(0)
    return out


def case(height: int, width: int, stride: int, window: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "query": draw(2, 4, -(-height // stride), -(-width // stride)),
        "key": draw(2, 4, height, width),
        "value": draw(2, 4, height, width),
        "position": draw(4, window, window),
    }


CASES = [
    (padding, positioned)
    for padding in ("cut", "zeros", "reflect")
    for positioned in (False, True)
    if not (padding == "reflect" and positioned)
]


@pytest.mark.parametrize("dense", [0, 10**6], ids=["windows", "all"])
@pytest.mark.parametrize(("padding", "positioned"), CASES)
@pytest.mark.parametrize(("height", "width", "stride"), [(5, 4, 1), (5, 5, 2), (6, 4, 2), (3, 3, 1)])
def test_the_definition(
    padding: str,
    positioned: bool,
    height: int,
    width: int,
    stride: int,
    dense: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "DENSE", dense)
    maps = case(height, width, stride, 5)
    position = maps["position"] if positioned else None
    three = maps["query"], maps["key"], maps["value"]
    got = local_attention(*three, heads=2, window=5, padding=padding, position=position)
    expected = by_definition(*three, heads=2, window=5, padding=padding, position=position)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (1, 1), (1, 4), (2, 3)])
def test_windows_that_are_larger_than_the_map_are_cut_without_a_change(height: int, width: int) -> None:
    maps: Any = case(height, width, 1, 9)
    expected = by_definition(**maps, heads=2, window=9, padding="cut")
    torch.testing.assert_close(local_attention(**maps, heads=2, window=9), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("side", "shrunk"), [(2, 3), (3, 5), (1, 1)])
def test_reflection_goes_as_far_as_the_map_does(side: int, shrunk: int) -> None:
    maps: Any = case(side, side, 1, 9)
    del maps["position"]
    got = local_attention(**maps, heads=2, window=9, padding="reflect")
    torch.testing.assert_close(got, local_attention(**maps, heads=2, window=shrunk, padding="reflect"))


@pytest.mark.parametrize("dense", [0, 10**6], ids=["windows", "all"])
@pytest.mark.parametrize("padding", ["cut", "zeros", "reflect"])
def test_gradient(padding: str, dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DENSE", dense)
    maps = [t.requires_grad_() for t in case(3, 4, 2, 3).values()]

    def function(query: Tensor, key: Tensor, value: Tensor, position: Tensor) -> Tensor:
        here = None if padding == "reflect" else position
        return local_attention(query, key, value, heads=2, window=3, padding=padding, position=here)

    assert torch.autograd.gradcheck(function, tuple(maps))


def test_sliding_products_have_second_derivatives() -> None:
    window = Window((3, 1), (2, 1), (2, 2))
    queries, weights, padded = (
        torch.randn(1, 2, size, *sides, dtype=torch.float64, requires_grad=True)
        for size, sides in ((2, (2, 2)), (3, (2, 2)), (2, (5, 2)))
    )
    assert torch.autograd.gradgradcheck(lambda q, p: scores(q, p, window), (queries, padded))
    assert torch.autograd.gradgradcheck(lambda w, p: sums(w, p, window), (weights, padded))
    assert torch.autograd.gradgradcheck(lambda w, q: spread(w, q, window, padded.shape), (weights, queries))


def test_equal_keys_average_the_window() -> None:
    maps = case(6, 6, 1, 3)
    key = torch.ones_like(maps["key"])
    got = local_attention(maps["query"], key, maps["value"], heads=4, window=3)
    inner = torch.nn.functional.avg_pool2d(maps["value"], 3, 1)
    torch.testing.assert_close(got[:, :, 1:-1, 1:-1], inner)


def test_what_is_kept_for_the_backward_pass_is_no_copy_for_every_offset() -> None:
    """A copy of keys or values for each of the 49 offsets would be 49 maps of 32 channels; the scores have 2."""
    maps = [t.requires_grad_() for t in (torch.randn(2, 32, 16, 16) for _ in range(3))]
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        local_attention(*maps, heads=2, window=7)
    map_bytes = maps[0].numel() * 4
    assert sum(held.values()) < 12 * map_bytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 4}, "window must be odd, not 4"),
        ({"heads": 3}, "4 channels cannot be divided among 3 heads"),
        ({"padding": "circular"}, "padding must be one of cut, zeros, reflect, not 'circular'"),
        ({"padding": "reflect", "position": torch.zeros(4, 3, 3)}, "a reflected map takes no position"),
    ],
)
def test_mistakes(change: dict[str, object], message: str) -> None:
    maps = case(3, 3, 1, 3)
    options: dict[str, object] = {"heads": 2, "window": 3, "padding": "cut", **change}
    with pytest.raises(ValueError, match=message):
        local_attention(maps["query"], maps["key"], maps["value"], **options)  # type: ignore[arg-type]
