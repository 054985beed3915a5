"""The closed form of Auto-DAS' student score: a size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.parameters import Choice
from kdsearch.proxies.catalogue import Proxy, register

if TYPE_CHECKING:
    from torch import Tensor, nn


def autodas(shapes: Sequence[Sequence[int]]) -> float:
    """Σ over weights' shapes, output channels first, of log(output channels) · √(number of weights)."""
    return math.fsum(math.log(shape[0]) * math.sqrt(math.prod(shape)) for shape in shapes)


@register
class AutoDAS(Proxy):
    """Σ over convolutions of log(output channels) · √(weights): a size, of shapes alone.

    Auto-DAS searched its score for S1 and found, for the student's part, the norm of the log-softmax of each
    convolution's gradient over its output channels. The entries of a gradient at initialisation are close to zero, the
    log-softmax is close to -log(output channels) in all of them, and the score to this sum, whatever data and seed are
    (on the 64 networks of S1 the two differ by less than 2 in 10,000). The score was *selected* on those 64 networks:
    what it reaches there is no evidence for it. Auto-DAS' part of student and teacher is not in it.

    Source: Sun et al., Auto-DAS: Automated Proxy Discovery for Training-free Distillation-aware Architecture Search,
    ECCV 2024, and its code; the closed form is ours.
    """

    name = "autodas"
    title = "Closed form of Auto-DAS' student score on S1"
    paper = "ECCV 2024"
    year = 2024

    layers: str = Choice(
        "convolutions", ["convolutions", "all"], doc="convolutions as published, or all weights (ours)"
    )

    def measure(
        self, student: nn.Module, teacher: nn.Module | None, images: Tensor, target: Tensor, *, seed: int
    ) -> float:
        from torch import nn

        from kdsearch.proxies._weights import weights

        if self.layers == "all":
            return autodas([weight.shape for weight in weights(student)])
        shapes = [m.weight.shape for m in student.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
        if not shapes:
            raise ValueError("autodas counts convolutions and the network has none; layers='all' counts all weights")
        return autodas(shapes)
