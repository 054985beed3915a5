"""Products of maps with windows that slide over other maps, without a copy of the windows.

`scores` and `sums` are each other's derivatives, with `spread` as the third: all three can be differentiated as often
as one likes, and what they keep for it is their inputs alone. Loops run over the offsets of a window, never over
positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """How a window slides: its sides, its strides and at how many places it stops, each down and across."""

    sides: tuple[int, int]
    strides: tuple[int, int]
    places: tuple[int, int]

    def views(self, padded: Tensor) -> Iterator[Tensor]:
        """[..., *places] for every offset in the window, row by row: views, not copies."""
        (tall, wide), (down, across), (rows, columns) = self
        for top in range(tall):
            for left in range(wide):
                below, right = top + down * (rows - 1) + 1, left + across * (columns - 1) + 1
                yield padded[..., top:below:down, left:right:across]


def scores(queries: Tensor, padded: Tensor, window: Window) -> Tensor:
    """Products of a place's vector with those in its window, summed over channels.

    Args:
        queries: [B, heads, channels, *places].
        padded: [B, heads, channels, H, W].

    Returns:
        [B, heads, offsets, *places].
    """
    # A trace for the ONNX exporter cannot look into functions with a derivative of their own.
    return _products(queries, padded, window) if torch.jit.is_tracing() else _Scores.apply(queries, padded, window)


def sums(weights: Tensor, padded: Tensor, window: Window) -> Tensor:
    """Weighted sums of the windows' vectors: weights [B, heads, offsets, *places] to [B, heads, channels, *places]."""
    return _weighted(weights, padded, window) if torch.jit.is_tracing() else _Sums.apply(weights, padded, window)


def spread(weights: Tensor, queries: Tensor, window: Window, shape: torch.Size) -> Tensor:
    """What each place of a map of `shape` collects when every place hands its vector to its window, weighted."""
    return _Spread.apply(weights, queries, window, shape)


def _products(queries: Tensor, padded: Tensor, window: Window) -> Tensor:
    return torch.stack([(queries * part).sum(2) for part in window.views(padded)], 2)


def _weighted(weights: Tensor, padded: Tensor, window: Window) -> Tensor:
    parts = window.views(padded)
    out = weights[:, :, 0, None] * next(parts)
    for offset, part in enumerate(parts, 1):
        out = torch.addcmul(out, weights[:, :, offset, None], part)
    return out


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, padded: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(queries, padded)
        ctx.window = window
        return _products(queries, padded, window)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        queries, padded = ctx.saved_tensors
        to_queries, to_padded, _ = ctx.needs_input_grad
        return (
            sums(gradients[0], padded, ctx.window) if to_queries else None,
            spread(gradients[0], queries, ctx.window, padded.shape) if to_padded else None,
            None,
        )


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, padded: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(weights, padded)
        ctx.window = window
        return _weighted(weights, padded, window)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        weights, padded = ctx.saved_tensors
        to_weights, to_padded, _ = ctx.needs_input_grad
        return (
            scores(gradients[0], padded, ctx.window) if to_weights else None,
            spread(weights, gradients[0], ctx.window, padded.shape) if to_padded else None,
            None,
        )


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, queries: Tensor, window: Window, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(weights, queries)
        ctx.window = window
        out = queries.new_zeros(shape)
        for offset, part in enumerate(window.views(out)):
            part.addcmul_(weights[:, :, offset, None], queries)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        weights, queries = ctx.saved_tensors
        to_weights, to_queries, _, _ = ctx.needs_input_grad
        return (
            scores(queries, gradients[0], ctx.window) if to_weights else None,
            sums(weights, gradients[0], ctx.window) if to_queries else None,
            None,
            None,
        )
