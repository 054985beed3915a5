"""Copies of networks with fresh random weights, so that scoring changes nothing that was handed in."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORMS = (*BATCH_NORMS, *INSTANCE_NORMS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
SCALE = re.compile(r"gamma|gain|alpha|scale|^ls\d*$|^weight$")
"""Names of a block's own factor on its residual branch."""


def fresh(module: nn.Module, seed: int, *, gaussian: bool) -> nn.Module:
    """A copy on the CPU, initialised anew under `seed`; the global random state is left alone.

    `gaussian` draws every weight of convolutions and linear layers from N(0, 1), as DisWOT does; otherwise the layers'
    own initialisation runs. Scales of normalisation and of residual branches are one and not zero: branches that start
    at zero would hide from any score. Batch normalisation uses the statistics of the batch; dropout and stochastic
    depth are off, so that a score is a function of the seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # the CPU's alone: no other generator is touched
        out = copied(module).to("cpu").float()
        for layer in out.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
            else:
                _draw_own(layer)
            if is_norm(layer):
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
    return batch_statistics(out.requires_grad_(True))


def batch_statistics(module: nn.Module) -> nn.Module:
    """Evaluation mode, but for batch normalisation, which is in training mode."""
    module.eval()
    for layer in module.modules():
        if isinstance(layer, BATCH_NORMS):
            layer.train()
    return module


def frozen_statistics(module: nn.Module, images: Tensor) -> nn.Module:
    """Batch normalisation by this batch's statistics, held constant, so that a sample's output is of that sample alone.

    The variances are the unbiased ones that layers keep for evaluation.
    """
    module.eval()
    for layer in module.modules():
        if isinstance(layer, BATCH_NORMS):
            layer.train()
            layer.momentum = 1.0
            if layer.running_mean is None:
                layer.track_running_stats = True
                layer.running_mean, layer.running_var = (images.new_zeros(layer.num_features) for _ in range(2))
    with torch.no_grad():
        module(images)
    return module.eval()


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer normalises. Not all releases of timm have all of its own layers: they are told by their names."""
    return isinstance(layer, NORMS) or called(layer, "(Rms|Simple)Norm")


def called(layer: nn.Module, pattern: str) -> bool:
    """Whether the name of its class, or of one that it derives from, begins with a pattern."""
    return any(re.match(pattern, cls.__name__) for cls in type(layer).__mro__)


def copied(module: nn.Module) -> nn.Module:
    """A copy without hooks: whoever listens to the original must not hear the copy."""
    memo: dict[int, Any] = {}
    for layer in module.modules():
        for name in HOOKS:
            hooks = getattr(layer, name, None)
            if hooks:
                memo[id(hooks)] = OrderedDict()
    return copy.deepcopy(module, memo)


def _draw_own(layer: nn.Module) -> None:
    """Parameters that a module holds itself without saying how they start: tokens, positions, residual scales."""
    for name, parameter in layer.named_parameters(recurse=False):
        if SCALE.search(name) and parameter.squeeze().ndim <= 1:
            nn.init.ones_(parameter)
        elif parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.02)
        else:
            nn.init.zeros_(parameter)
