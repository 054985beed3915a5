"""Self-attention of every position over a window around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.search_space.students.networks.windows import Window, scores, sums

PADDINGS = ("cut", "zeros", "reflect")

DENSE = 2
"""Maps of at most so many times a window's positions are attended to as a whole: two matrix products, with a mask."""


def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    heads: int,
    window: int,
    padding: str = "cut",
    position: Tensor | None = None,
) -> Tensor:
    """Softmax over a window of queries times keys, summed over a head's channels, as weights of the values.

    As many heads as channels make a softmax of each channel's own. What is kept for the backward pass grows with the
    window's positions times the heads, not times the channels.

    Args:
        query: [B, C, ceil(H / stride), ceil(W / stride)]: from which pixels is taken is read off the sizes.
        key, value: [B, C, H, W].
        window: odd side length. A window never reaches further than the map: one on a side of n pixels has 2n - 1
            positions at most, except under "zeros".
        padding: beyond the map there is nothing ("cut": the softmax is over the pixels there are), or keys and values
            of zero that take part ("zeros"), or the map's reflection ("reflect").
        position: [C, window, window], added to the key at each offset; not under "reflect".

    Returns:
        [B, C, ceil(H / stride), ceil(W / stride)] in the values' type.

    Raises:
        ValueError: an even window, heads that do not divide the channels, an unknown padding, or positions under
            reflection.
    """
    channels, height, width = key.shape[1:]
    if window % 2 == 0:
        raise ValueError(f"window must be odd, not {window!r}")
    if channels % heads:
        raise ValueError(f"{channels} channels cannot be divided among {heads} heads")
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, not {padding!r}")
    if position is not None and padding == "reflect":
        raise ValueError("a reflected map takes no position: its pixels lie at several offsets at once")
    rows, columns = query.shape[2:]
    half = window // 2
    up, left = (half, half) if padding == "zeros" else (min(half, height - 1), min(half, width - 1))
    sliding = Window((2 * up + 1, 2 * left + 1), (-(-height // rows), -(-width // columns)), (rows, columns))
    if position is not None:
        position = position[:, half - up : half + up + 1, half - left : half + left + 1].flatten(1)
    few = height * width <= DENSE * sliding.sides[0] * sliding.sides[1]
    attend = _over_all if few and padding != "zeros" else _over_windows
    return attend(query, key, value, heads, sliding, padding, position).to(value.dtype)


def _over_windows(
    query: Tensor, key: Tensor, value: Tensor, heads: int, window: Window, padding: str, position: Tensor | None
) -> Tensor:
    """By views of the padded maps. In float32 at least: sums of so many terms lose too much below."""
    wide = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
    up, left = (side // 2 for side in window.sides)
    mode = "reflect" if padding == "reflect" else "constant"
    queries = _split(query.to(wide), heads)
    keys, values = (_split(F.pad(maps.to(wide), (left, left, up, up), mode), heads) for maps in (key, value))
    found = scores(queries, keys, window)
    if position is not None:
        found = found + torch.einsum("bhcij,hco->bhoij", queries, _split(position.to(wide), heads, 0))
    if padding == "cut":
        down, across = (
            (at >= 0) & (at < size) for at, size in zip(_reached(window, key.device), key.shape[2:], strict=True)
        )
        there = down.T[:, None, :, None] & across.T[None, :, None, :]
        found = found.masked_fill(~there.flatten(0, 1), -torch.inf)
    return sums(found.softmax(2), values, window).flatten(1, 2)


def _over_all(
    query: Tensor, key: Tensor, value: Tensor, heads: int, window: Window, padding: str, position: Tensor | None
) -> Tensor:
    """By matrix products with the whole map. A pixel that a window holds several times counts so often."""
    pixels, device = [torch.arange(size, device=key.device) for size in key.shape[2:]], key.device
    counts = []
    for at, there in zip(_reached(window, device), pixels, strict=True):
        last = len(there) - 1
        folded = last - (last - at.abs()).abs() if padding == "reflect" else at
        counts.append((folded[..., None] == there).sum(1))
    queries, keys, values = (_split(maps, heads).flatten(3) for maps in (query, key, value))
    found = queries.transpose(2, 3) @ keys
    if position is not None:
        offsets = [
            (there - stride * torch.arange(places, device=device)[:, None] + side // 2).clamp(0, side - 1)
            for there, side, stride, places in zip(pixels, *window, strict=True)
        ]
        which = offsets[0][:, None, :, None] * window.sides[1] + offsets[1][None, :, None, :]
        products = queries.transpose(2, 3) @ _split(position, heads, 0)
        found = found + products.gather(3, which.flatten(0, 1).flatten(1).expand_as(found))
    often = (counts[0][:, None, :, None] * counts[1][None, :, None, :]).flatten(0, 1).flatten(1)
    held = often.to(torch.promote_types(found.dtype, torch.float32)).log()
    weights = (found + held).softmax(-1).to(values.dtype)
    return (values @ weights.transpose(2, 3)).unflatten(-1, window.places).flatten(1, 2)


def _reached(window: Window, device: torch.device) -> list[Tensor]:
    """Down and across, [places, side]: the coordinate at every offset of every window; some lie beyond the map."""
    return [
        stride * torch.arange(places, device=device)[:, None] + torch.arange(side, device=device) - side // 2
        for side, stride, places in zip(*window, strict=True)
    ]


def _split(maps: Tensor, heads: int, dimension: int = 1) -> Tensor:
    return maps.unflatten(dimension, (heads, -1))
