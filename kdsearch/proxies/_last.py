"""The last feature map of a network and the gradient on its classifier, from one pass of one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.kd_methods import Need
from kdsearch.kd_methods.signals import ModelSpec, Signals
from kdsearch.kd_methods.tap import Tap, probe
from kdsearch.proxies._fresh import batch_statistics

Pass = Callable[[Tensor], tuple[Tensor, Signals]]


@contextmanager
def last_map(model: nn.Module, spec: ModelSpec, *further: Need) -> Iterator[Pass]:
    """Gives a function of images: the last stage's output [B, ...], before pooling, and the signals asked for.

    The embedding [B, C] stands in for the map of a network without stages, such as a recurrent one. Batch statistics
    are in force.
    """
    batch_statistics(model)
    last = [len(spec.stages) - 1] if spec.stages else []
    with Tap(model, spec, frozenset({Need.FEATURES if last else Need.EMBEDDING, *further}), last) as tap:

        def run(images: Tensor) -> tuple[Tensor, Signals]:
            signals = tap(images)
            found = signals.features[0] if last else signals.embedding
            assert found is not None
            return found, signals

        yield run


def seen_by(model: nn.Module, images: Tensor) -> ModelSpec:
    """What `probe` finds at the resolution of these images."""
    return probe(model, (images.shape[1], images.shape[2], images.shape[3]))


def last_map_and_gradient(model: nn.Module, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The last stage's output [B, ...] and d cross-entropy / d classifier weight [K, C], batch statistics in force.

    Raises:
        ValueError: the model has no linear classifier.
    """
    spec = seen_by(model, images)
    if spec.classifier is None:
        raise ValueError("the model has no linear classifier, so it has no semantic similarity")
    layer: Any = model.get_submodule(spec.classifier)
    with last_map(model, spec, Need.LOGITS) as run:
        found, signals = run(images)
    usable = target % spec.classes  # a teacher of other classes still has a gradient to look at
    (gradient,) = torch.autograd.grad(F.cross_entropy(signals.logits, usable), layer.weight)
    return found.detach(), gradient.flatten(1)


def classifier_weight(model: nn.Module, images: Tensor) -> Tensor:
    """The classifier's own weight, [K, C].

    Raises:
        ValueError: the model has no linear classifier.
    """
    path = seen_by(model, images).classifier
    if path is None:
        raise ValueError("the model has no linear classifier, so it has no semantic similarity")
    layer: Any = model.get_submodule(path)
    return layer.weight.detach().flatten(1)
