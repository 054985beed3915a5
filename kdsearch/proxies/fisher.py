"""Fisher: what the loss would lose with single channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdsearch.parameters import Choice
from kdsearch.proxies.catalogue import StudentProxy, register

if TYPE_CHECKING:
    from torch import Tensor, nn


def channel_fisher(activations: Tensor, gradients: Tensor, dim: int) -> Tensor:
    """½ · mean over samples of (Σ over positions of activation · gradient)², by channel.

    Args:
        activations, gradients: [B, ...] with the channels in `dim`; the gradients are of the batch's mean loss.
    """
    flow = (activations.detach() * gradients).movedim(dim, 1)
    flow = flow.flatten(2).sum(2) if flow.ndim > 2 else flow
    return flow.square().mean(0) / 2


def fisher(model: nn.Module, images: Tensor, target: Tensor, *, weighting: str = "channels") -> Tensor:
    """`channel_fisher` of the outputs of all convolutions, linear and recurrent layers, summed.

    Args:
        weighting: "channels" counts a channel once, "weights" as often as it has incoming weights.

    Raises:
        ValueError: the network has no such layer.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    from kdsearch.proxies._weights import logits_of

    seen: list[tuple[nn.Module, Tensor]] = []

    def keep(layer: nn.Module, given: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor):
            return None
        seen.append((layer, output))
        return output.clone()  # what follows may work in place

    layers = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | nn.RNNBase)]
    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        loss = F.cross_entropy(logits_of(model, images), target)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ValueError("the network has no convolution, linear or recurrent layer whose channels could be scored")
    found = torch.autograd.grad(loss, [output for _, output in seen], allow_unused=True, materialize_grads=True)
    parts = []
    for (layer, output), gradient in zip(seen, found, strict=True):
        convolution = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        value = channel_fisher(output, gradient, 1 if convolution else output.ndim - 1).sum()
        if weighting == "weights":
            value = value * _incoming(layer)
        parts.append(value)
    return torch.stack(parts).sum()


def _incoming(layer: Any) -> int:
    """Weights that lead to one channel of the layer's output."""
    if hasattr(layer, "weight"):
        return int(layer.weight[0].numel())
    return int(sum(p.numel() for n, p in layer.named_parameters() if "weight" in n) // layer.hidden_size)


@register
class Fisher(StudentProxy):
    """The Fisher information of all channels, on the batch given.

    `weighting`: the papers count each channel once; the zero-cost code spreads a channel's value over its incoming
    weights before it sums, so that it counts as often as it has any. A recurrent layer's state counts as its channels.

    Source: Theis et al., Faster gaze prediction with dense networks and Fisher pruning, 2018, section 2; as an
    architecture score: Turner et al., BlockSwap, ICLR 2020, section 3, and Abdelfattah et al., Zero-Cost Proxies for
    Lightweight NAS, ICLR 2021.
    """

    name = "fisher"
    title = "Fisher information of the channels"
    paper = "arXiv 1801.05787"
    year = 2018

    weighting: str = Choice("channels", ["channels", "weights"], doc="how often a channel counts")

    def of(self, model: nn.Module, images: Tensor, target: Tensor, seed: int) -> Tensor:
        return fisher(model, images, target, weighting=self.weighting)
