"""Norms of weights and of gradients, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.proxies.catalogue import StudentProxy, register

if TYPE_CHECKING:
    from torch import Tensor, nn


def summed_norms(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of the tensors' Euclidean norms."""
    import torch

    return torch.stack([torch.linalg.vector_norm(x.detach()) for x in tensors]).sum()


@register
class GradNorm(StudentProxy):
    """The Euclidean norm of the cross-entropy's gradient on each layer's weights, summed; on the batch given.

    Source: Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021, section 3.2 (one batch of 64).
    """

    name = "grad_norm"
    title = "Norm of the gradient"
    paper = "arXiv 2101.08134"
    year = 2021

    def of(self, model: nn.Module, images: Tensor, target: Tensor, seed: int) -> Tensor:
        from kdsearch.proxies._weights import gradients, weights

        return summed_norms(gradients(model, images, target, weights(model)))


@register
class L2Norm(StudentProxy):
    """The Euclidean norm of each layer's weights, summed. No data: up to its draw it is a size, of init and shapes.

    Source: Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021, whose code has it as a baseline.
    """

    name = "l2_norm"
    title = "Norm of the weights"
    paper = "arXiv 2101.08134"
    year = 2021

    def of(self, model: nn.Module, images: Tensor, target: Tensor, seed: int) -> Tensor:
        from kdsearch.proxies._weights import weights

        return summed_norms(weights(model))
