"""The transforms: pure functions of maps [B, C, H, W], rows [B, C, M] or vectors [B, D]; `shapes` says what each takes.

KD-Zero's list as far as it is known (Li et al., KD-Zero: Evolving Knowledge Distiller for Any Teacher-Student Pairs,
NeurIPS 2023; the formulas are those of code that the same authors released for Auto-DAS, ECCV 2024). Here differ:
`log` is sign(x) · log(1 + |x|), which rises with x, theirs falls below |x| = 1; `sqrt` keeps the sign, theirs is not a
number below zero; the softmax and log-softmax over the batch both run over the batch, where their logarithm runs over
the channels; Gram matrices of rows and of vectors are Gram matrices, where theirs square a matrix or change nothing;
`spatial_attention` is a map of one channel; `mask` and `dropout` hide the same places on both sides; patches and pools
take maps that they do not divide. Powers and exponentials are bounded, so that squares of what follows stay finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from kdsearch.kd_methods.numerics import unit, widen

SOFTNESS = 0.5  # temperature of the attentions
KEPT = 0.35  # share of the positions that `mask` leaves
DROPPED = 0.1  # share of the channels that `dropout` hides
BOUND = 1e8  # of powers and exponentials
WIDEST = 1e16  # of Gram matrices
SMALLEST = 1e-6  # magnitude below which a square root has no gradient


def pooled(x: Tensor, ratio: int) -> Tensor:
    """Maximum over squares of `ratio` × `ratio` positions; those at the lower and right border may be smaller."""
    return x if ratio == 1 else F.max_pool2d(x, ratio, ceil_mode=True)


def patched(x: Tensor, side: int) -> Tensor:
    """[B, C · patches, side, side]: every patch is a channel. What is left over below and on the right is left out."""
    batch, channels, height, width = x.shape
    down, across = height // side, width // side
    x = x[:, :, : down * side, : across * side].reshape(batch, channels, down, side, across, side)
    return x.transpose(3, 4).reshape(batch, channels * down * across, side, side)


def spatial_attention(x: Tensor) -> Tensor:
    """[B, 1, H, W]: the softmax over positions of the channels' mean magnitude at T = ½, times the positions."""
    positions = x.shape[2] * x.shape[3]
    weights = (x.abs().mean(1).flatten(1) / SOFTNESS).softmax(1)
    return positions * weights.unflatten(1, x.shape[2:]).unsqueeze(1)


def channel_attention(x: Tensor) -> Tensor:
    """Softmax over the channels at T = ½, times their number; of a map's mean magnitude, [B, C, 1, 1]."""
    if x.ndim == 4:
        x = x.abs().mean((2, 3), keepdim=True)
    return x.shape[1] * (x / SOFTNESS).softmax(1)


def channel_gram(x: Tensor) -> Tensor:
    """[B, C, C]: inner products of the channels of each sample."""
    x = x.flatten(2)
    return (x @ x.transpose(1, 2)).clamp(-WIDEST, WIDEST)


def batch_gram(x: Tensor) -> Tensor:
    """[B, B]: inner products of the samples."""
    x = x.flatten(1)
    return (x @ x.T).clamp(-WIDEST, WIDEST)


def norm_hw(x: Tensor) -> Tensor:
    """Every channel over its L2 norm."""
    return unit(x.flatten(2), dim=2).view_as(x)


def signed_sqrt(x: Tensor) -> Tensor:
    return x.sign() * x.abs().clamp(min=SMALLEST).sqrt()


def signed_log(x: Tensor) -> Tensor:
    return x.sign() * x.abs().log1p()


def power(x: Tensor, exponent: int) -> Tensor:
    """xᵖ, at most `BOUND`."""
    edge = BOUND ** (1 / exponent)
    return x.clamp(-edge, edge).pow(exponent)


def bounded_exp(x: Tensor) -> Tensor:
    """eˣ, at most `BOUND`."""
    return x.clamp(max=18.42).exp()


def min_max(x: Tensor) -> Tensor:
    """The whole tensor stretched to [0, 1]; zeros where all values are equal."""
    low, high = x.amin(), x.amax()
    span = high - low
    return (x - low) / torch.where(span > 0, span, 1.0)


def batch_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Every channel with mean 0 and variance 1 over the batch and its positions."""
    over = [0, *range(2, x.ndim)]
    centred = x - x.mean(over, keepdim=True)
    return centred * (centred.square().mean(over, keepdim=True) + eps).rsqrt()


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "multi_scale_1": lambda x: pooled(x, 1),
    "multi_scale_2": lambda x: pooled(x, 2),
    "multi_scale_4": lambda x: pooled(x, 4),
    "local_1": lambda x: x.flatten(1),
    "local_2": lambda x: patched(x, 2),
    "local_4": lambda x: patched(x, 4),
    "batch": lambda x: x.flatten(1),
    "channel": lambda x: x.flatten(2),
    "spatial_attention": spatial_attention,
    "channel_attention": channel_attention,
    "batch_attention": lambda x: len(x) * (x / SOFTNESS).softmax(0),
    "channel_gram": channel_gram,
    "batch_gram": batch_gram,
    "norm_hw": norm_hw,
    "norm_c": lambda x: unit(x, dim=1),
    "norm_n": lambda x: unit(x, dim=0),
    "softmax_hw": lambda x: x.flatten(2).softmax(2),
    "softmax_c": lambda x: x.softmax(1),
    "softmax_n": lambda x: x.softmax(0),
    "log_softmax_hw": lambda x: x.flatten(2).log_softmax(2),
    "log_softmax_c": lambda x: x.log_softmax(1),
    "log_softmax_n": lambda x: x.log_softmax(0),
    "sqrt": signed_sqrt,
    "log": signed_log,
    "pow2": lambda x: power(x, 2),
    "pow4": lambda x: power(x, 4),
    "min_max": min_max,
    "abs": torch.abs,
    "sigmoid": torch.sigmoid,
    "swish": F.silu,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "exp": bounded_exp,
    "halve": lambda x: (x + 1) / 2,
    "batch_norm": batch_norm,
}


def mask(x: Tensor, drawn: Tensor) -> Tensor:
    """The positions whose number [B, 1, H, W] in [0, 1) is below `KEPT`; zero elsewhere."""
    return x * (drawn < KEPT)


def dropout(x: Tensor, drawn: Tensor) -> Tensor:
    """Without the channels whose number [B, C, ...] in [0, 1) is below `DROPPED`; the others grow to make up for it."""
    return x * (drawn >= DROPPED) / (1 - DROPPED)


def _positions(x: Tensor) -> tuple[int, ...]:
    return (x.shape[0], 1, *x.shape[2:])


def _channels(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:2], *(1,) * (x.ndim - 2))


DRAWN: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], tuple[int, ...]]]] = {
    "mask": (mask, _positions),
    "dropout": (dropout, _channels),
}
"""Transforms that draw, with the shape of what they draw."""


class Draws:
    """Uniform numbers that both sides of a pair share, as far as their shapes agree."""

    def __init__(self, generator: Generator | None = None) -> None:
        self._generator = generator
        self._kept: list[Tensor] = []
        self._turn = 0

    def rewind(self) -> None:
        """The other side: the same numbers again."""
        self._turn = 0

    def uniform(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        turn = self._turn
        self._turn += 1
        if turn < len(self._kept) and self._kept[turn].shape == shape:
            return self._kept[turn]
        drawn = torch.rand(shape, generator=self._generator, device=like.device, dtype=like.dtype)
        if turn == len(self._kept):
            self._kept.append(drawn)
        return drawn


def chain(x: Tensor, names: Sequence[str], draws: Draws) -> Tensor:
    """All transforms in turn, in float32 at least."""
    x = widen(x)
    for name in names:
        if name in DRAWN:
            change, shape = DRAWN[name]
            x = change(x, draws.uniform(shape(x), x))
        else:
            x = TRANSFORMS[name](x)
    return x
