"""The learners' mean in weight space, as a network that answers: its losses reach every learner."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdsearch.kd_methods import Signals
from kdsearch.kd_methods.sparse import Visible
from kdsearch.runs.network import Network

SUBMODULE = "module."


class _Answering(nn.Module):
    """A tapped network as a module, so that it can be called with other weights."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.module = network.module

    def forward(self, images: Tensor, target: Tensor, visible: Visible | None) -> Signals:
        return self.network(images, target, create_graph=True, visible=visible)


class Hybrid:
    """The mean of networks of one architecture. Nothing is stored: it is what the learners are at the moment."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self.modules = [network.module for network in networks]
        self._answering = _Answering(networks[0])

    def __call__(self, images: Tensor, target: Tensor, visible: Visible | None = None) -> Signals:
        """Signals of images [B, ...] under the mean weights, in the graph of all learners' weights.

        Batch normalisation works on the batch's own statistics; the running ones it would move are a passing copy.
        """
        own = [dict(module.named_parameters()) for module in self.modules]
        mean: dict[str, Tensor] = {
            SUBMODULE + name: torch.stack([weights[name] for weights in own]).mean(0) for name in own[0]
        }
        with torch.no_grad():
            mean |= {SUBMODULE + name: value for name, value in self._buffers().items()}
        answer: Signals = functional_call(self._answering, mean, (images, target, visible))
        return answer

    def _buffers(self) -> dict[str, Tensor]:
        own = [dict(module.named_buffers()) for module in self.modules]
        return {
            name: torch.stack([buffers[name] for buffers in own]).mean(0)
            if first.is_floating_point()
            else first.clone()
            for name, first in own[0].items()
        }

    @torch.no_grad()
    def fill(self, module: nn.Module) -> None:
        """Give a module the mean weights and running statistics, as they are now."""
        own = [dict(m.named_parameters()) for m in self.modules]
        for name, weight in module.named_parameters():
            weight.copy_(torch.stack([weights[name] for weights in own]).mean(0))
        means = self._buffers()
        for name, value in module.named_buffers():
            value.copy_(means[name])

    @torch.no_grad()
    def fuse(self, share: float) -> None:
        """Blend this share of the mean into every learner, running statistics included."""
        for name in dict(self.modules[0].named_parameters()):
            weights: list[Tensor] = [module.get_parameter(name) for module in self.modules]
            mean = torch.stack(weights).mean(0)
            torch._foreach_lerp_(weights, [mean] * len(weights), share)
        means = self._buffers()
        for module in self.modules:
            for name, value in module.named_buffers():
                if value.is_floating_point():
                    value.lerp_(means[name], share)
