"""What a network costs: parameters, and multiply-accumulates of its convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates for one image; normalisation, activations and attention products are not counted.

    Runs on shapes alone where the model can, so that its own tensors are neither read nor written, and else once on a
    black image. Its training mode is left as it was.
    """
    import torch

    from kdsearch.kd_methods.dry_run import evaluating

    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    reference = next((t for t in tensors.values() if t.is_floating_point()), torch.empty(0))
    with evaluating(model):
        try:
            shapes = {name: torch.empty_like(value, device="meta") for name, value in tensors.items()}
            images = torch.empty(1, *input_shape, device="meta", dtype=reference.dtype)
            return _count(lambda: torch.func.functional_call(model, shapes, (images,)))
        except (RuntimeError, NotImplementedError):  # the model looks at values, or holds tensors of its own
            return _count(lambda: model(reference.new_zeros(1, *input_shape)))


def _count(forward: Callable[[], object]) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward()
    found = counter.get_flop_counts().get("Global", {})
    return sum(found.get(op, 0) for op in (aten.convolution, aten.mm, aten.addmm)) // 2
