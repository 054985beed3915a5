"""Passes over the visible part of an image: what is hidden takes no part, or stays at zero.

A transformer is spared the hidden patches: they leave once positions are added, and come back as zeros. In a network
of convolutions every map is zero in hidden places where a convolution or a pooling would carry them further.

Sources: He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, section 3; masked convolutions from
Lao et al., Masked Autoencoders Are Stronger Knowledge Distillers, ICCV 2023, section 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from kdsearch.kd_methods.signals import ModelSpec

SPREADING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


class Visible(NamedTuple):
    """Cells [B, h, w] of each image that are shown; in every image they are `kept`. `kinds` is of `View.sparse`."""

    cells: Tensor
    kept: int
    kinds: tuple[str, ...] = ("token",)

    def divides(self, grid: tuple[int, int]) -> bool:
        """Whether every patch of a grid lies in one cell: then all images keep equally many patches."""
        return all(side % own == 0 for side, own in zip(grid, self.cells.shape[1:], strict=True))

    def patches(self, grid: tuple[int, int]) -> Tensor:
        """The places [B, N] of visible patches on a grid that the cells divide, in order."""
        down, across = grid[0] // self.cells.shape[1], grid[1] // self.cells.shape[2]
        cells = self.cells.repeat_interleave(down, 1).repeat_interleave(across, 2).flatten(1)
        order = cells.int().argsort(dim=1, descending=True, stable=True)
        return order[:, : self.kept * down * across]


def keep(tokens: Tensor, places: Tensor, prefix: int) -> Tensor:
    """Of tokens [B, prefix + N, D] the prefix and the patches in these places [B, n]."""
    patches = tokens[:, prefix:].gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))
    return torch.cat((tokens[:, :prefix], patches), 1) if prefix else patches


def put_back(tokens: Tensor, places: Tensor, prefix: int, patches: int) -> Tensor:
    """Tokens that `keep` has left, in their places among `patches` of which the others are zero."""
    index = places[:, :, None].expand(-1, -1, tokens.shape[2])
    whole = tokens.new_zeros(len(tokens), patches, tokens.shape[2]).scatter(1, index, tokens[:, prefix:])
    return torch.cat((tokens[:, :prefix], whole), 1) if prefix else whole


class Thinning:
    """Passes of one model over the visible part of its images, as far as the model can be kept to it."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        self._model = model
        self._entrance = None if spec.entrance is None else model.get_submodule(spec.entrance)
        self._stage = spec.stages[0] if spec.stages else None
        self._maps = bool(spec.stages) and all(stage.kind == "map" for stage in spec.stages)
        self._places: Tensor | None = None  # of the patches that take part; None for all of them
        self._handles: list[RemovableHandle] = []
        self._momenta: list[tuple[Any, float | None]] = []

    def admits(self, visible: Visible | None) -> bool:
        """Whether `begin` would change anything."""
        if visible is None or self._stage is None:
            return False
        if self._entrance is not None:
            return "token" in visible.kinds and visible.divides(self._stage.size)
        return self._maps and "map" in visible.kinds

    def begin(self, visible: Visible | None) -> None:
        """From now on until `end`, passes are kept to what is visible, if the model admits it.

        Running statistics stand still meanwhile: they are those of whole images.
        """
        if visible is None or not self.admits(visible):
            return
        if self._entrance is not None:
            self._spare_patches(visible)
        else:
            self._mask_maps(visible.cells)
        for norm in self._model.modules():
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                self._momenta.append((norm, norm.momentum))
                norm.momentum = 0.0

    def end(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        while self._momenta:
            norm, momentum = self._momenta.pop()
            norm.momentum = momentum
        self._places = None

    def whole(self, tokens: Tensor | None) -> Tensor | None:
        """A stage's output with zeros for the patches that are left out of this pass, if any are."""
        if tokens is None or self._places is None or self._stage is None:
            return tokens
        return put_back(tokens, self._places, self._stage.prefix, self._stage.size[0] * self._stage.size[1])

    def _spare_patches(self, visible: Visible) -> None:
        assert self._stage is not None
        assert self._entrance is not None
        places, prefix = visible.patches(self._stage.size), self._stage.prefix

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            return keep(output, places, prefix)

        self._places = places
        self._handles.append(self._entrance.register_forward_hook(hook))

    def _mask_maps(self, cells: Tensor) -> None:
        masks: dict[tuple[int, int], Tensor] = {}

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            x = args[0]
            size = (x.shape[-2], x.shape[-1])
            if size[0] < cells.shape[1] or size[1] < cells.shape[2]:
                return None  # coarser than the mask: squeezed channels, and what lies behind all that is read
            if size not in masks:
                masks[size] = F.interpolate(cells[:, None].to(x.dtype), size=size, mode="nearest")
            return x * masks[size].to(x.dtype), *args[1:]

        for module in self._model.modules():
            # A window of one pixel carries nothing further.
            if isinstance(module, SPREADING) and module.kernel_size not in (1, (1, 1)):
                self._handles.append(module.register_forward_pre_hook(hook))
