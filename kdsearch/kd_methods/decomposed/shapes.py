"""What a transform makes of a shape, so that a chain can be judged before it is run. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from kdsearch.kd_methods.decomposed.names import OF_MAPS, OF_ROWS

Shape = tuple[int, ...]
KINDS = {2: "vectors", 3: "rows", 4: "maps"}


def transformed(name: str, shape: Shape) -> Shape:
    """The shape after one transform of maps [B, C, H, W], rows [B, C, M] or vectors [B, D].

    Raises:
        ValueError: the transform does not take that kind, or the map is smaller than its patches.
    """
    kind = len(shape)
    if (kind == 2 and name in OF_ROWS) or (kind == 3 and name in OF_MAPS):
        takes = "maps" if name in OF_MAPS else "maps or rows"
        raise ValueError(f"transform {name!r} takes {takes}, and is given {KINDS[kind]} {list(shape)}")
    if name.startswith("multi_scale_"):
        ratio = int(name.rpartition("_")[2])
        return (*shape[:2], *(-(-side // ratio) for side in shape[2:]))
    if name.startswith("local_"):
        side = int(name.rpartition("_")[2])
        if min(shape[2:]) < side:
            raise ValueError(f"transform {name!r} cuts patches of {side}×{side}, and is given maps {list(shape)}")
        patches = (shape[2] // side) * (shape[3] // side)
        return (shape[0], shape[1] * patches, *(() if side == 1 else (side, side)))
    if name == "batch":
        return shape[0], prod(shape[1:])
    if name in ("channel", "softmax_hw", "log_softmax_hw"):
        return *shape[:2], prod(shape[2:])
    if name == "spatial_attention":
        return shape[0], 1, *shape[2:]
    if name == "channel_attention" and kind == 4:
        return *shape[:2], 1, 1
    if name == "channel_gram":
        return shape[0], shape[1], shape[1]
    if name == "batch_gram":
        return shape[0], shape[0]
    return shape


def chained(names: Sequence[str], shape: Shape) -> Shape:
    """The shape after all transforms in turn.

    Raises:
        ValueError: as `transformed`.
    """
    for name in names:
        shape = transformed(name, shape)
    return shape


def compared(distance: str, shape: Shape) -> Shape:
    """What has to be equal on both sides: the shape itself, or that of the Gram matrix it is made into."""
    if distance != "g_l2":
        return shape
    return (shape[0], shape[0]) if len(shape) == 2 else (shape[0], shape[1], shape[1])
