"""A network's weights, and the cross-entropy's gradients on them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdsearch.kd_methods.dry_run import first_tensor


def weights(model: nn.Module) -> list[nn.Parameter]:
    """The weight matrices and kernels of convolutions, linear, recurrent and attention layers, each once, in order.

    Biases, scales of normalisation, embeddings, tokens and positions are none.

    Raises:
        ValueError: there are none.
    """
    found: dict[int, nn.Parameter] = {}
    for layer in model.modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            continue
        for name, parameter in layer.named_parameters(recurse=False):
            if "weight" in name and parameter.ndim > 1:
                found[id(parameter)] = parameter
    if not found:
        raise ValueError("the network has no layer with a weight matrix, so there is nothing to score")
    return list(found.values())


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """[B, K].

    Raises:
        ValueError: the model answers with something else than logits.
    """
    logits = first_tensor(model(images))
    if logits is None or logits.ndim != 2:
        raise ValueError("the model must answer with logits [B, K]")
    return logits


def within(target: Tensor, classes: int) -> Tensor:
    """Labels folded into so many classes: a teacher of fewer still has gradients to look at. What has no label keeps
    none, and cross-entropy leaves it out.
    """
    return torch.where(target < 0, target, target % classes)


def gradients(model: nn.Module, images: Tensor, target: Tensor, on: Sequence[Tensor]) -> list[Tensor]:
    """d mean cross-entropy / d each of `on`; zero where the loss does not depend on it."""
    loss = F.cross_entropy(logits_of(model, images), target)
    return list(torch.autograd.grad(loss, on, allow_unused=True, materialize_grads=True))


@contextmanager
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """While entered, no fused attention and no oneDNN recurrence: they have no second and no batched derivative."""
    recurrent = any(isinstance(layer, nn.RNNBase) for layer in model.modules())
    with sdpa_kernel(SDPBackend.MATH), _without_onednn() if recurrent else nullcontext():
        yield


@contextmanager
def _without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # setting oneDNN's flags warns of Intel GPUs that are not there
        flags = torch.backends.mkldnn.flags(enabled=False)
        flags.__enter__()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flags.__exit__(None, None, None)
