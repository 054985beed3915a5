"""The Gram matrix of per-sample gradients, from one forward and one backward pass of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.proxies._weights import logits_of, plain_kernels, weights

PIECE = 2**26
"""Numbers that a piece of all samples' gradients on a layer may have at once."""


@dataclass
class _Use:
    """A layer's weight, what entered it and what came out, at each of its calls."""

    layer: Any
    entered: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def gradient_gram(model: nn.Module, images: Tensor, scalar: Callable[[Tensor], Tensor]) -> Tensor:
    """[B, B] inner products, over all weights, of the samples' gradients of `scalar`, which takes logits to [B].

    No sample may depend on another: batch normalisation must be in evaluation mode. A sample's gradient on the
    weight of a convolution or a linear layer is a product of what entered it and what came back to its output, summed
    over positions; on other layers, such as recurrent ones or linear ones on tokens that are not sample by sample, all
    samples are differentiated as one batch.
    """
    uses: dict[int, _Use] = {}
    refused: set[int] = set()

    def keep(layer: Any, given: tuple[Any, ...], output: Any) -> Any:
        rows = len(given[0]) if len(given) == 1 else 0
        folded = rows % len(images) == 0 and (isinstance(layer, nn.Conv2d) or given[0].ndim == 2)  # sample by sample
        if not rows or not (folded or rows == len(images)):
            refused.add(id(layer.weight))
            return None
        use = uses.setdefault(id(layer.weight), _Use(layer))
        use.entered.append(given[0].detach())
        use.outputs.append(output)
        return output.clone()  # what follows may work in place

    handles = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    try:
        with plain_kernels(model):
            scalars = scalar(logits_of(model, images))
            uses = {key: use for key, use in uses.items() if key not in refused}
            outputs = [output for use in uses.values() for output in use.outputs]
            others = [weight for weight in weights(model) if id(weight) not in uses]
            gram = images.new_zeros(len(images), len(images), dtype=torch.float64)
            returned: tuple[Tensor, ...] = ()
            if outputs:
                returned = torch.autograd.grad(
                    scalars.sum(), outputs, retain_graph=bool(others), allow_unused=True, materialize_grads=True
                )
            if others:
                gram += _batched(scalars, others)
    finally:
        for handle in handles:
            handle.remove()
    position = 0
    for use in uses.values():
        back = returned[position : position + len(use.outputs)]
        position += len(use.outputs)
        sides = [_sides(use.layer, x, g, len(images)) for x, g in zip(use.entered, back, strict=True)]
        gram += _of_layer(torch.cat([s[0] for s in sides], -1), torch.cat([s[1] for s in sides], -1))
    return gram


def _batched(scalars: Tensor, on: list[nn.Parameter]) -> Tensor:
    eye = torch.eye(len(scalars), dtype=scalars.dtype, device=scalars.device)
    found = torch.autograd.grad(scalars, on, eye, is_grads_batched=True, allow_unused=True, materialize_grads=True)
    return torch.stack([(rows := g.flatten(1)) @ rows.T for g in found]).sum(0).double()


def _sides(layer: Any, entered: Tensor, back: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """What entered [B, groups, D, P] and what came back [B, groups, E, P], P positions a sample."""
    if isinstance(layer, nn.Linear):
        x, g = (side.reshape(batch, 1, -1, side.shape[-1]).mT for side in (entered, back))
        return x, g
    padded = entered
    if layer.padding_mode != "zeros":
        padded = F.pad(entered, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    elif any(layer._reversed_padding_repeated_twice):
        padded = F.pad(entered, layer._reversed_padding_repeated_twice)
    x = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)

    def by_sample(side: Tensor) -> Tensor:
        rows = side.reshape(batch, -1, layer.groups, side.shape[1] // layer.groups, prod(side.shape[2:]))
        return rows.permute(0, 2, 3, 1, 4).flatten(3)

    return by_sample(x), by_sample(back)


def _of_layer(entered: Tensor, back: Tensor) -> Tensor:
    """Σ over a layer's weights of products of all pairs of samples, [B, B], by the cheaper of two ways."""
    batch, groups, d, positions = entered.shape
    e = back.shape[2]
    rows = batch * positions
    if groups == 1 and rows**2 <= PIECE and rows**2 * (d + e) < batch * positions * d * e + batch**2 * d * e:
        u, v = (side[:, 0].mT.reshape(rows, -1) for side in (entered, back))
        return ((u @ u.T) * (v @ v.T)).view(batch, positions, batch, positions).sum((1, 3)).double()
    gram = entered.new_zeros(batch, batch, dtype=torch.float64)
    for piece in back.split(max(1, PIECE // (batch * groups * d)), 2):
        gradient = (entered @ piece.mT).flatten(1)
        gram += gradient @ gradient.T
    return gram
