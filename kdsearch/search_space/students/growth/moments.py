"""The mean and variance of a unit, as far as its normalisation tells them without data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kdsearch.search_space.students.growth.deepening import rectified, undoing
from kdsearch.search_space.students.growth.tracing import Layer, Trace


def undo_norms(model: nn.Module, trace: Trace, reads: Callable[[Layer], Sequence[int] | None]) -> None:
    """Set the batch normalisations among the identity layers so that they give back what they are given.

    In evaluation that is exact whatever the statistics are. In training it is as close as the statistics are to those
    of a batch: what was normalised, and perhaps rectified, is taken to be normally distributed before that. Where other
    operations came in between, mean 0 and variance 1 are all that is known.

    Args:
        reads: for each output of an identity layer, the input that it gives back; None for other layers.

    Raises:
        ValueError: another normalisation, which cannot be undone.
    """
    known: dict[int, tuple[float, float]] = {}
    positive: set[int] = set()
    for event in trace.events:
        if not isinstance(event, Layer):
            kind, labels = event
            numbers = [label for label in labels.long().tolist() if label in known and label not in positive]
            if kind == "other":
                _forget(known, positive, labels.long().tolist())
            elif numbers:
                moments = torch.tensor([known[label] for label in numbers], dtype=torch.float64)
                mean, variance = rectified(moments[:, 0], moments[:, 1])
                known.update(zip(numbers, zip(mean.tolist(), variance.tolist(), strict=True), strict=True))
                positive.update(numbers)
            continue
        module = model.get_submodule(event.path)
        given, made, sources = event.given.long().tolist(), event.made.long().tolist(), reads(event)
        if sources is not None and event.kind == "norm":
            _undo(module, event.path, torch.tensor([known.get(label, (0.0, 1.0)) for label in given]))
        elif sources is not None:
            pairs = [(given[k], label) for k, label in zip(sources, made, strict=True)]
            known.update({label: known[source] for source, label in pairs if source in known})
            positive.update(label for source, label in pairs if source in positive)
        else:
            _forget(known, positive, made)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                moments = torch.stack((module.bias, module.weight.square()), 1)
                known.update({label: (mean, var) for label, (mean, var) in zip(made, moments.tolist(), strict=True)})


def _forget(known: dict[int, tuple[float, float]], positive: set[int], labels: list[int]) -> None:
    for label in labels:
        known.pop(label, None)
        positive.discard(label)


def _undo(module: nn.Module, path: str, moments: Tensor) -> None:
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_mean is None or not module.affine:
        raise ValueError(f"{path} is a {type(module).__name__}, which cannot begin as an identity")
    assert module.running_var is not None
    module.running_mean.copy_(moments[:, 0])
    module.running_var.copy_(moments[:, 1])
    scale, shift = undoing(module.running_mean, module.running_var, module.eps)
    module.weight.copy_(scale)
    module.bias.copy_(shift)
