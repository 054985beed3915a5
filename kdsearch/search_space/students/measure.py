"""What a network costs: parameters, and multiply-accumulates of its convolutions and linear layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates for one image; normalisation, activations and attention products are not counted.

    Runs the model once on a black image in evaluation mode; its own mode comes back afterwards.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from kdsearch.kd_methods.dry_run import evaluating

    tensors = (*model.parameters(), *model.buffers())
    reference = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(reference.new_zeros(1, *input_shape))
    found = counter.get_flop_counts().get("Global", {})
    aten = torch.ops.aten
    return sum(found.get(op, 0) for op in (aten.convolution, aten.mm, aten.addmm)) // 2
