"""Weight times gradient: SNIP, its signed sum, and GraSP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.parameters import Float
from kdsearch.proxies.catalogue import StudentProxy, register

if TYPE_CHECKING:
    from torch import Tensor, nn


def snip(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Σ |w · dL/dw| over all weights: how much the loss would change if single weights were switched off."""
    import torch

    return torch.stack([(w.detach() * g).abs().sum() for w, g in zip(weights, gradients, strict=True)]).sum()


def plain(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Σ w · dL/dw over all weights, with its sign."""
    import torch

    return torch.stack([(w.detach() * g).sum() for w, g in zip(weights, gradients, strict=True)]).sum()


def grasp(model: nn.Module, images: Tensor, target: Tensor, *, temperature: float = 1.0) -> Tensor:
    """-Σ w · (H g) over all weights, H the Hessian and g the gradient of the cross-entropy of logits / temperature."""
    import torch
    import torch.nn.functional as F

    from kdsearch.proxies._weights import logits_of, plain_kernels, weights

    on = weights(model)
    with plain_kernels(model):
        loss = F.cross_entropy(logits_of(model, images) / temperature, target)
        first = torch.autograd.grad(loss, on, create_graph=True, allow_unused=True, materialize_grads=True)
        inner = torch.stack([(g * g.detach()).sum() for g in first]).sum()
        second = torch.autograd.grad(inner, on, allow_unused=True, materialize_grads=True)
    return -plain(on, second)


@register
class SNIP(StudentProxy):
    """Connection sensitivity, summed over the weights of all layers, on the batch given (the authors prune by 128).

    The paper divides by the sum over the network, which leaves nothing to compare networks by; as an architecture score
    it is the sum itself.

    Source: Lee, Ajanthan, Torr, SNIP: Single-shot Network Pruning based on Connection Sensitivity, ICLR 2019, section
    4.1; as an architecture score: Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021, section 3.2.
    """

    name = "snip"
    title = "Connection sensitivity"
    paper = "arXiv 1810.02340"
    year = 2019

    def of(self, model: nn.Module, images: Tensor, target: Tensor, seed: int) -> Tensor:
        from kdsearch.proxies._weights import gradients, weights

        on = weights(model)
        return snip(on, gradients(model, images, target, on))


@register
class Plain(StudentProxy):
    """Weight times gradient with its sign, on the batch given: what SNIP is without the absolute value.

    A layer that normalisation makes free of scale adds nothing to it.

    Source: Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021, whose code has it as a baseline, after
    Mozer, Smolensky, Skeletonization, NeurIPS 1988.
    """

    name = "plain"
    title = "Signed sum of weight times gradient"
    paper = "arXiv 2101.08134"
    year = 2021

    def of(self, model: nn.Module, images: Tensor, target: Tensor, seed: int) -> Tensor:
        from kdsearch.proxies._weights import gradients, weights

        on = weights(model)
        return plain(on, gradients(model, images, target, on))


@register
class GraSP(StudentProxy):
    """Preservation of the gradient flow, on the batch given: -Σ w · (H g).

    Temperature 1 is that of the architecture score; the pruning paper divides logits by 200. The paper draws ten images
    of each class.

    Source: Wang, Zhang, Grosse, Picking Winning Tickets before Training by Preserving Gradient Flow, ICLR 2020,
    section 4; as an architecture score: Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021.
    """

    name = "grasp"
    title = "Gradient signal preservation"
    paper = "arXiv 2002.07376"
    year = 2020

    temperature: float = Float(1.0, low=1, high=200, log=True, domain=(1e-3, 1e6), doc="divides the logits")

    def of(self, model: nn.Module, images: Tensor, target: Tensor, seed: int) -> Tensor:
        return grasp(model, images, target, temperature=self.temperature)
