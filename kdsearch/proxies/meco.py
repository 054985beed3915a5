"""MeCo: how little the channels of a layer's map repeat one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdsearch.parameters import Choice, Int
from kdsearch.proxies.catalogue import StudentProxy, register

if TYPE_CHECKING:
    from torch import Tensor, nn


def least_eigenvalue(maps: Tensor) -> Tensor:
    """The smallest eigenvalue of the correlations of the rows of [C, D], in float64.

    A constant row correlates with nothing, itself included. No fewer rows than columns have dependent correlations:
    their smallest eigenvalue is zero and is not computed.
    """
    import torch

    from kdsearch.proxies._spectrum import correlation, eigenvalues

    if not maps.isfinite().all():
        return torch.full((), torch.nan, dtype=torch.float64)
    if len(maps) >= maps.shape[1]:
        return torch.zeros((), dtype=torch.float64)
    constant = (maps == maps[:, :1]).all(1)
    found = correlation(maps).masked_fill(constant[:, None] | constant[None, :], 0)
    return eigenvalues(found)[0].clamp(min=0)


@register
class MeCo(StudentProxy):
    """The smallest eigenvalue of the channels' correlations in the map of the batch's first image, summed over layers.

    The paper shows the network one random image; here the whole batch passes, for the sake of batch normalisation, and
    its first image is looked at. Layers are convolutions and linear layers on tokens; the authors' code looks at the
    output of every module ("all"). `sampled` channels, where not zero, are drawn in each layer and the eigenvalue is
    multiplied by channels / sampled: the authors' MeCo_opt, with 8. A layer of no fewer channels than positions adds
    nothing, so that without sampling most transformers score zero.

    Source: Jiang, Wang, Bie, MeCo: Zero-Shot NAS with One Data and Single Forward Pass via Minimum Eigenvalue of
    Correlation, NeurIPS 2023.
    """

    name = "meco"
    title = "Minimum eigenvalue of the channels' correlation"
    paper = "NeurIPS 2023"
    year = 2023

    layers: str = Choice("weighted", ["weighted", "all"], doc="which modules' outputs")
    sampled: int = Int(0, low=0, high=16, domain=(0, 4096), doc="channels drawn in each layer; 0 takes all")

    def of(self, model: nn.Module, images: Tensor, target: Tensor, seed: int) -> Tensor:
        import torch
        from torch import nn

        generator = torch.Generator().manual_seed(seed)
        found: list[Tensor] = []

        def keep(layer: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.ndim > 2 and len(output) == len(images):
                last = isinstance(layer, nn.Linear) or (output.ndim == 3 and not isinstance(layer, nn.Conv1d))
                maps = output[0].flatten(0, -2).T if last else output[0].flatten(1)
                weight = 1.0
                if 0 < self.sampled < len(maps):
                    weight = len(maps) / self.sampled
                    maps = maps[torch.randperm(len(maps), generator=generator)[: self.sampled]]
                found.append(weight * least_eigenvalue(maps))

        wanted = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear) if self.layers == "weighted" else (nn.Module,)
        handles = [layer.register_forward_hook(keep) for layer in model.modules() if isinstance(layer, wanted)]
        with torch.no_grad():
            model(images)
        for handle in handles:
            handle.remove()
        if not found:
            raise ValueError("the network has no layer whose output is a map or tokens, so there is no correlation")
        return torch.stack(found).sum()
