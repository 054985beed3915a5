"""A transformer that sees a random share of the patches while it learns, and all of them when it is measured."""

from __future__ import annotations

import torch
from torch import Tensor

from kdsearch.kd_methods import ModelSpec, Signals
from kdsearch.kd_methods.sparse import Visible
from kdsearch.runs.network import Network


def masks_patches(spec: ModelSpec) -> bool:
    """Whether patches can be left out of a model's passes: a transformer whose positions are added in one place."""
    return spec.entrance is not None and bool(spec.stages)


class PatchMasked(Network):
    """The network in training with `share` of its patches, drawn anew for each image of each pass.

    Patches that are left out cost nothing behind the patch embedding; whoever reads tokens finds zeros in their places.
    Draws are counted, so that all trials under one seed see the same ones. Passes that a method keeps to a part of the
    image itself stay as they are.

    Source: token masks as in He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, section 3.
    """

    share: float
    seed: int
    draws: int

    @classmethod
    def of(cls, network: Network, share: float, seed: int) -> PatchMasked:
        """The same module and preparation, seen so."""
        masked = cls.__new__(cls)
        masked.__dict__.update(network.__dict__)
        masked.share, masked.seed, masked.draws = share, seed, 0
        return masked

    def __call__(
        self,
        images: Tensor,
        target: Tensor | None = None,
        *,
        create_graph: bool = False,
        visible: Visible | None = None,
    ) -> Signals:
        if visible is None and self.module.training and self._spec is not None and masks_patches(self._spec):
            visible = self._draw(len(images), self._spec.stages[0].size, images.device)
        return super().__call__(images, target, create_graph=create_graph, visible=visible)

    def _draw(self, count: int, grid: tuple[int, int], device: torch.device) -> Visible:
        cells = grid[0] * grid[1]
        kept = max(1, round(self.share * cells))
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + self.draws)
        self.draws += 1
        first = torch.rand(count, cells, generator=generator, device=device).argsort(1)[:, :kept]
        shown = torch.zeros(count, cells, device=device).scatter_(1, first, 1.0)
        return Visible(shown.view(count, *grid), kept)
