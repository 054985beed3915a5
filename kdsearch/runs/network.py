"""A network as training sees it: the module, its own normalisation and resolution, and the tap on its signals."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.kd_methods import ModelSpec, Need, Signals
from kdsearch.kd_methods.sparse import Visible
from kdsearch.kd_methods.tap import Tap, probe


class Network:
    """A module that takes images in [0, 1] and answers with signals.

    Args:
        mean, std: per channel; each network sees its own normalisation.
        side: resize inputs to this many pixels first; None leaves them as they come.
    """

    def __init__(
        self, module: nn.Module, mean: Tensor, std: Tensor, *, side: int | None = None, channels_last: bool = False
    ) -> None:
        device = mean.device
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.module = module.to(device=device).to(memory_format=self.memory_format)
        self.scale = (1.0 / std).view(1, -1, 1, 1)
        self.shift = (-mean / std).view(1, -1, 1, 1)
        self.side = side
        self.tap: Tap | None = None
        self._spec: ModelSpec | None = None

    def holding(self, module: nn.Module) -> Network:
        """Another module in this network's place: same normalisation, resolution and memory format."""
        other = copy.copy(self)
        other.module = module.to(self.scale.device).to(memory_format=self.memory_format)
        other.tap, other._spec = None, None
        return other

    def spec(self, input_shape: tuple[int, int, int]) -> ModelSpec:
        """The stages and sizes of the network at this input, measured once."""
        if self._spec is None:
            shape = (input_shape[0], self.side, self.side) if self.side else input_shape
            self._spec = probe(self.module, shape)
        return self._spec

    def known(self, spec: ModelSpec) -> None:
        """This is what `spec` would measure: of another network of the same architecture, at the same input."""
        self._spec = spec

    def listen(self, needs: frozenset[Need], spec: ModelSpec, stages: Sequence[int] | None = None) -> None:
        """Tap these signals from now on, and no others."""
        if self.tap is not None:
            self.tap.close()
        self.tap = Tap(self.module, spec, needs, stages)

    def prepare(self, images: Tensor) -> Tensor:
        if self.side is not None and images.shape[-1] != self.side:
            images = F.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)
        return torch.addcmul(self.shift, images, self.scale).contiguous(memory_format=self.memory_format)

    def spares(self, visible: Visible | None) -> bool:
        """Whether the module would be kept to what is visible."""
        assert self.tap is not None
        return self.tap.spares(visible)

    def __call__(
        self,
        images: Tensor,
        target: Tensor | None = None,
        *,
        create_graph: bool = False,
        visible: Visible | None = None,
    ) -> Signals:
        assert self.tap is not None
        return self.tap(self.prepare(images), target, create_graph, visible)

    def logits(self, images: Tensor) -> Tensor:
        """Plain inference, [B, C]: the first output where the module gives several."""
        out = self.module(self.prepare(images))
        return out[0] if isinstance(out, tuple) else out

    def close(self) -> None:
        if self.tap is not None:
            self.tap.close()
            self.tap = None
