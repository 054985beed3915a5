"""ZiCo: gradients that are large and agree between batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.parameters import Choice, Int
from kdsearch.proxies.catalogue import StudentProxy, register

if TYPE_CHECKING:
    from torch import Tensor, nn


def zico(gradients: Sequence[Tensor], *, spread: str = "absolute") -> Tensor:
    """Σ over layers of log Σ over weights of mean |g| / standard deviation, both over the batches.

    A weight whose gradient is the same in all batches is left out, and so is a layer of such weights alone; -inf where
    that leaves nothing.

    Args:
        gradients: by layer, [batches, ...].
        spread: the deviation of |g|, or that of g with its sign ("signed").
    """
    import torch

    total = torch.zeros((), dtype=torch.float64)
    counted = torch.zeros((), dtype=torch.bool)
    for gradient in gradients:
        size = gradient.abs()
        deviation = torch.std(size if spread == "absolute" else gradient, 0, correction=0)
        ratio = (size.mean(0) / deviation).masked_fill(deviation == 0, 0).double().sum()
        total = total + torch.where(ratio == 0, 0.0, ratio.log())
        counted = counted | (ratio != 0)
    return torch.where(counted, total, -torch.inf)


@register
class ZiCo(StudentProxy):
    """Inverse coefficient of variation of the cross-entropy's gradients between batches, by layer.

    The batch given is cut into `batches` equal parts, in its order; what is left over is not looked at. The paper draws
    two batches (of 128 images for CIFAR) and takes the deviation of the gradient's absolute value; its code takes that
    of the gradient itself (`spread` "signed").

    Source: Li, Yang, Bhardwaj, Marculescu, ZiCo: Zero-shot NAS via Inverse Coefficient of Variation on Gradients, ICLR
    2023, section 3.
    """

    name = "zico"
    title = "Inverse coefficient of variation of gradients"
    paper = "arXiv 2301.11300"
    year = 2023

    batches: int = Int(2, low=2, high=8, domain=(2, 1024), doc="parts that the batch is cut into")
    spread: str = Choice("absolute", ["absolute", "signed"], doc="whose deviation is taken")

    def of(self, model: nn.Module, images: Tensor, target: Tensor, seed: int) -> Tensor:
        import torch

        from kdsearch.proxies._weights import gradients, weights

        size = len(images) // self.batches
        if not size:
            raise ValueError(f"zico cuts the batch into {self.batches} parts; it has {len(images)} images")
        on = weights(model)
        parts = range(0, size * self.batches, size)
        found = [gradients(model, images[k : k + size], target[k : k + size], on) for k in parts]
        return zico([torch.stack(layer) for layer in zip(*found, strict=True)], spread=self.spread)
