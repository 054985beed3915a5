"""Other modules in the place of a student's full convolutions."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import nn

log = logging.getLogger(__name__)

Make = Callable[[nn.Conv2d], nn.Module]


def check_full(conv: nn.Conv2d) -> None:
    """Raises ValueError where a convolution is no ordinary one: grouped, dilated, not square, specially padded."""
    if type(conv) is not nn.Conv2d:
        raise ValueError(f"is a {type(conv).__name__}")
    if conv.groups != 1:
        raise ValueError(f"is grouped already ({conv.groups} groups)")
    if len(set(conv.kernel_size)) > 1 or max(conv.dilation) > 1 or conv.padding_mode != "zeros":
        raise ValueError("is not square, or dilated, or padded with other than zeros")


def put(model: nn.Module, path: str, part: nn.Module) -> None:
    """Sets the module at a path."""
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, part)


def replace_3x3(model: nn.Module, title: str, make: Make, *, late: bool = False) -> nn.Module:
    """`model` with `make(conv)` for every full 3×3 convolution but the first convolution, which reads the image.

    Strides are `make`'s to keep; a map of side n becomes one of side ceil(n / stride). The log says which spatial
    convolutions stay as they are, and why.

    Args:
        late: only in the deeper half of these convolutions.

    Raises:
        ValueError: nothing can be replaced.
    """
    convolutions = [(path, part) for path, part in model.named_modules() if isinstance(part, nn.Conv2d)]
    found, kept = [], {}
    for path, conv in convolutions[1:]:
        if max(conv.kernel_size) == 1:
            continue
        try:
            _check_3x3(conv)
            found.append((path, make(conv).to(conv.weight)))
        except ValueError as error:
            kept[path] = str(error)
    reasons = "; ".join(f"{path}: {reason}" for path, reason in kept.items())
    if not found:
        raise ValueError(f"{title} can replace no convolution of this student ({reasons or 'none'})")
    for path, part in found[len(found) // 2 :] if late else found:
        put(model, path, part)
    if kept:
        log.info("%s left %d convolutions as they are: %s", title, len(kept), reasons)
    return model


def _check_3x3(conv: nn.Conv2d) -> None:
    check_full(conv)
    if conv.kernel_size != (3, 3) or conv.padding not in ((1, 1), "same"):
        raise ValueError(f"is not 3×3 under padding 1, but {conv.kernel_size[0]}×{conv.kernel_size[1]}")


def heads_for(channels: int, heads: int, least: int = 1) -> int:
    """The most attention heads, `heads` at most, that divide the channels and leave each at least `least` of them.

    Raises:
        ValueError: fewer channels than a single head needs.
    """
    fitting = [h for h in range(1, heads + 1) if channels % h == 0 and channels // h >= least]
    if not fitting:
        raise ValueError(f"{channels} channels are too few for a head of {least}")
    return fitting[-1]
