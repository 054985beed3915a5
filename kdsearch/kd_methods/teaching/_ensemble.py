"""Networks that answer together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch.kd_methods.dry_run import first_tensor


def mean_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Logits [B, C] whose softmax is the mean of the answers' probabilities: logarithms of that mean."""
    answers = torch.stack([answer.log_softmax(1) for answer in logits])
    return answers.logsumexp(0) - math.log(len(logits))


class Ensemble(nn.Module):
    """Frozen networks and one that may still be trained: images to logits of their mean probabilities [B, C].

    Shares the student's parameters. The members stay in evaluation mode and learn nothing.
    """

    def __init__(self, members: Sequence[nn.Module], student: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members).requires_grad_(False).eval()
        self.student = student

    def train(self, mode: bool = True) -> Ensemble:
        super().train(mode)
        self.members.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return mean_probabilities([logits_of(network(images)) for network in (*self.members, self.student)])


def logits_of(output: Any) -> Tensor:
    """The first output where a module gives several."""
    logits = first_tensor(output)
    assert logits is not None
    return logits
