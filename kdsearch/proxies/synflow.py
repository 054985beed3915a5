"""SynFlow: how much signal passes through the absolute weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsearch.proxies.catalogue import Proxy, register

if TYPE_CHECKING:
    from torch import Tensor, nn


def synflow(model: nn.Module, input_shape: tuple[int, int, int]) -> Tensor:
    """Σ over convolution and linear weights of w · dR/dw in float64, R the summed output for an all-ones input.

    Weights are taken by their absolute values and normalisation is left out: it would make a constant input vanish.
    Attention averages its tokens: the flow through a softmax is not positive, and without normalisation it is rounding
    noise. The model itself is changed.
    """
    import torch
    from torch import nn

    from kdsearch.proxies._attention import AveragingAttention
    from kdsearch.proxies._fresh import NORMS

    model = model.double().eval()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, NORMS):
                setattr(parent, name, nn.Identity())
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.abs_()
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    with AveragingAttention():
        out = model(torch.ones(1, *input_shape, dtype=torch.float64))
    out = out[0] if isinstance(out, tuple) else out
    grads = torch.autograd.grad(out.sum(), weights, allow_unused=True)
    return torch.stack([(w * g).sum() for w, g in zip(weights, grads, strict=True) if g is not None]).sum()


@register
class SynFlow(Proxy):
    """The logarithm of the synaptic flow: the sum itself grows beyond any scale with depth.

    Source: Tanaka et al., Pruning Neural Networks without Any Data by Iteratively Conserving Synaptic Flow, NeurIPS
    2020; as an architecture score: Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021.
    """

    name = "synflow"
    title = "Synaptic flow"
    paper = "arXiv 2006.05467"
    year = 2020

    def measure(
        self, student: nn.Module, teacher: nn.Module | None, images: Tensor, target: Tensor, *, seed: int
    ) -> float:
        from kdsearch.proxies._fresh import fresh

        copied = fresh(student, seed, gaussian=False)
        value = synflow(copied, (images.shape[1], images.shape[2], images.shape[3])).item()
        return math.log(value) if value > 0 else float("-inf")
