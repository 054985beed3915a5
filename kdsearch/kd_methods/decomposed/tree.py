"""A leaf of Auto-KD's tree as a loss: attention or not, one scale or several or patches, what is related, how.

Needs torch.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from kdsearch.kd_methods.attention_map import attention_map
from kdsearch.kd_methods.decomposed.distances import g_l2, kl
from kdsearch.kd_methods.decomposed.shapes import Shape
from kdsearch.kd_methods.decomposed.transforms import patched, pooled
from kdsearch.kd_methods.numerics import rescale, unit, widen

RATIOS = (1, 2, 4)  # of the pools, and sides of the patches


class Path(NamedTuple):
    """The decisions down to a leaf, as `autokd` names them."""

    attention: bool
    scale: str
    relation: str
    distance: str


def leaf(student: Tensor, teacher: Tensor, path: Path) -> Tensor:
    """The loss of one pair of maps [B, C, H, W]; at several scales their mean."""
    s, t = widen(student), widen(teacher)
    if path.attention:
        s, t = _attention(s), _attention(t)
    ratios = _ratios((*s.shape[-2:], *t.shape[-2:]), path.scale)
    change = patched if path.scale == "local" else pooled
    losses = [_related(change(s, ratio), change(t, ratio), path.relation, path.distance) for ratio in ratios]
    first, *rest = losses
    return sum(rest, first) / len(losses)


def _ratios(sides: tuple[int, ...], scale: str) -> tuple[int, ...]:
    """Those that the smaller map is large enough for."""
    return RATIOS[:1] if scale == "whole" else tuple(ratio for ratio in RATIOS if ratio <= min(sides))


def _attention(x: Tensor) -> Tensor:
    """[B, 1, H, W]: the channels' sum of squares, of length one over the positions."""
    energy = attention_map(rescale(x))
    return unit(energy.flatten(1)).view_as(energy).unsqueeze(1)


def _related(s: Tensor, t: Tensor, relation: str, distance: str) -> Tensor:
    if relation == "global":
        return (s - t).square().mean()
    if distance == "l2":
        return g_l2(s.flatten(1), t.flatten(1)) if relation == "batch" else g_l2(s, t)
    channels = s.shape[1]
    if relation == "batch":  # what is compared is who, of the batch, has most of a feature
        return kl(s.flatten(1), t.flatten(1), 1.0, dim=0) / channels
    return kl(s.flatten(2), t.flatten(2), 1.0, dim=2) / channels


def reached(path: Path, shape: Shape) -> Shape:
    """What has to be equal on both sides, of a map [B, C, H, W]."""
    channels = 1 if path.attention else shape[1]
    if path.distance == "l2" and path.relation == "batch":
        return shape[:1]
    if path.distance == "l2" and path.relation == "channel" and path.scale != "local":
        return shape[0], channels
    return shape[0], channels, *shape[2:]
