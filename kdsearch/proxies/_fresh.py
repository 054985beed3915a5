"""Copies of networks with fresh random weights, so that scoring changes nothing that was handed in."""

from __future__ import annotations

import copy

import torch
from torch import nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)


def fresh(module: nn.Module, seed: int, *, gaussian: bool) -> nn.Module:
    """A copy in training mode, initialised anew under `seed`; the global random state is left alone.

    `gaussian` draws every weight of two dimensions and more from N(0, 1), as DisWOT does; otherwise the layers' own
    initialisation runs. Normalisation scales are one and not zero: residual branches that start at zero would hide
    from any score.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        out = copy.deepcopy(module).to("cpu").float()
        for layer in out.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
            if isinstance(layer, NORMS):
                for name, value in (("weight", 1.0), ("bias", 0.0)):
                    parameter = getattr(layer, name, None)
                    if parameter is not None:
                        nn.init.constant_(parameter, value)
        if gaussian:
            for layer in out.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    nn.init.normal_(layer.weight)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
    return out.requires_grad_(True).train()
