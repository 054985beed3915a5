"""SynFlow: how much signal passes through the absolute weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsearch.parameters import Flag
from kdsearch.proxies.catalogue import StudentProxy, register

if TYPE_CHECKING:
    from torch import Tensor, nn


def synflow(model: nn.Module, input_shape: tuple[int, int, int], *, normalised: bool = False) -> Tensor:
    """Σ over convolution and linear weights of |w · dR/dw| in float64, R the summed output for an all-ones input.

    Weights are taken by their absolute values and normalisation is left out: it would make a constant input vanish.
    Attention averages its tokens: the flow through a softmax is not positive, and without normalisation it is rounding
    noise. The model itself is changed.

    Args:
        normalised: leave batch normalisation in, with the input's own statistics.
    """
    import torch
    from torch import nn

    from kdsearch.proxies._attention import AveragingAttention
    from kdsearch.proxies._fresh import BATCH_NORMS, batch_statistics, is_norm

    model = batch_statistics(model.double())
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_norm(child) and not (normalised and isinstance(child, BATCH_NORMS)):
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
    return torch.stack([(w * g).abs().sum() for w, g in zip(weights, grads, strict=True) if g is not None]).sum()


@register
class SynFlow(StudentProxy):
    """The logarithm of the synaptic flow: the sum itself grows beyond any scale with depth. No data.

    `normalised` leaves batch normalisation in, as the `synflow_bn` of the zero-cost code does.

    Source: Tanaka et al., Pruning Neural Networks without Any Data by Iteratively Conserving Synaptic Flow, NeurIPS
    2020; as an architecture score: Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021.
    """

    name = "synflow"
    title = "Synaptic flow"
    paper = "arXiv 2006.05467"
    year = 2020

    normalised: bool = Flag(False, doc="leave batch normalisation in")

    def of(self, model: nn.Module, images: Tensor, target: Tensor, seed: int) -> float:
        shape = (images.shape[1], images.shape[2], images.shape[3])
        value = synflow(model, shape, normalised=self.normalised).item()
        return math.log(value) if value > 0 else float("-inf")
