"""Zen-Score: how much the last map moves when the input is shaken, with the normalisation's scaling undone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kdsearch.parameters import Choice, Float
from kdsearch.proxies.catalogue import StudentProxy, register

if TYPE_CHECKING:
    from torch import Tensor, nn


def log_scaling(variances: Sequence[Tensor]) -> Tensor:
    """Σ over layers of log √(mean over channels of the variance that the layer divides by)."""
    import torch

    return torch.stack([variance.double().mean().log() / 2 for variance in variances]).sum()


def running_variances(passes: Sequence[Sequence[Tensor]], momentum: float = 0.1) -> list[Tensor]:
    """What layers that start at variance one have as moving averages after these passes, each a list by layer."""
    import torch

    running = [torch.ones_like(variance) for variance in passes[0]]
    for variances in passes:
        running = [(1 - momentum) * r + momentum * v for r, v in zip(running, variances, strict=True)]
    return running


def log_change(before: Tensor, after: Tensor, *, norm: str = "euclidean") -> Tensor:
    """log of the mean over the batch of the maps' distance: its Euclidean norm, or the sum of absolute values."""
    order = 2 if norm == "euclidean" else 1
    return (after - before).double().flatten(1).norm(p=order, dim=1).mean().log()


@contextmanager
def variances_of(model: nn.Module, *, unbiased: bool = False) -> Iterator[list[Tensor]]:
    """While entered, each pass appends the variance that a normalisation layer divides by, in the order of calls.

    [C] for batch normalisation, over batch and positions; one for each row of layer normalisation, whose channels may
    come first, for each group and image of group normalisation and each channel and image of instance normalisation.
    Root-mean-square normalisation divides by the mean square, which is taken for its variance.
    """
    import torch
    from torch import nn

    from kdsearch.proxies._fresh import BATCH_NORMS, INSTANCE_NORMS, called, is_norm

    found: list[Tensor] = []

    def keep(layer: Any, given: tuple[Any, ...]) -> None:
        x = given[0].detach()
        if isinstance(layer, BATCH_NORMS):
            rows = x.transpose(0, 1).flatten(1)
        elif isinstance(layer, nn.GroupNorm):
            rows = x.reshape(len(x) * layer.num_groups, -1)
        elif isinstance(layer, INSTANCE_NORMS):
            rows = x.flatten(2)
        else:
            first = x.ndim == 4 and (called(layer, ".*2d") or x.shape[-1] != layer.normalized_shape[-1])
            rows = (x.movedim(1, -1) if first else x).flatten(-len(layer.normalized_shape))
        squares = called(layer, "R(ms|MS)Norm")
        found.append(rows.square().mean(-1) if squares else torch.var(rows, -1, correction=int(unbiased)))

    handles = [layer.register_forward_pre_hook(keep) for layer in model.modules() if is_norm(layer)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@register
class Zen(StudentProxy):
    """Expressivity: log of the last map's change under a small noise on its input, plus Σ log of what normalisation
    divides by.

    Input and noise are drawn from N(0, 1); of the batch given only its shape counts (the paper's has 16 images and is
    averaged over 32 draws; here a seed is a draw). The map is that before pooling.

    `variant`: the paper takes the Euclidean norm and the batch's variances; its code sums absolute values and takes
    moving averages with momentum 0.1 after both passes. The paper's networks are scored without their shortcuts, which
    stay here. Other normalisation counts as batch normalisation does (ours): the paper knows only that.

    Source: Lin et al., Zen-NAS: A Zero-Shot NAS for High-Performance Image Recognition, ICCV 2021, algorithm 1.
    """

    name = "zen"
    title = "Zen-Score"
    paper = "arXiv 2102.01063"
    year = 2021

    init: str = Choice("gaussian", ["gaussian", "default"], doc="the copy's weights: N(0, 1), or the layers' own")
    noise: float = Float(0.01, low=0.001, high=0.1, log=True, domain=(1e-6, 1), doc="scale of the noise on the input")
    variant: str = Choice("paper", ["paper", "code"], doc="norm and variances")

    def of(self, model: nn.Module, images: Tensor, target: Tensor, seed: int) -> Tensor:
        import torch

        from kdsearch.proxies._last import last_map, seen_by

        generator = torch.Generator().manual_seed(seed)
        x, shake = (torch.randn(images.shape, generator=generator) for _ in range(2))
        as_code = self.variant == "code"
        spec = seen_by(model, images)
        with torch.no_grad(), last_map(model, spec) as run, variances_of(model, unbiased=as_code) as found:
            after = run(x + self.noise * shake)[0].clone()
            shaken = len(found)
            before, _ = run(x)  # ends at the last stage, so that what normalises after it does not count
        change = log_change(before, after, norm="absolute" if as_code else "euclidean")
        variances = found[shaken:]
        if not variances:
            return change
        if as_code:
            variances = running_variances([variances, found[: len(variances)]])
        return change + log_scaling(variances)
