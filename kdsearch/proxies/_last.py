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
from kdsearch.proxies._weights import within

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


def map_and_classifier(
    model: nn.Module, images: Tensor, target: Tensor, of: str | None
) -> tuple[Tensor, Tensor | None]:
    """The last stage's output [B, ...] and, as `of` says, of the classifier [K, C]: d cross-entropy / d weight
    ("loss"), the weight itself ("weight"), or nothing (None). Batch statistics are in force.

    Raises:
        ValueError: the model has no linear classifier to read.
    """
    spec = seen_by(model, images)
    if of is not None and spec.classifier is None:
        raise ValueError("the model has no linear classifier, so it has no semantic similarity")
    with last_map(model, spec, Need.LOGITS) as run:
        found, signals = run(images)
    if of is None:
        return found.detach(), None
    layer: Any = model.get_submodule(str(spec.classifier))
    read = layer.weight
    if of == "loss":
        (read,) = torch.autograd.grad(F.cross_entropy(signals.logits, within(target, spec.classes)), read)
    return found.detach(), read.detach().flatten(1)
