"""What Auto-KD compares of logits: rows of probabilities, given by their logarithms.

Needs torch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def plain(logits: Tensor) -> Tensor:
    """[B, C]: every sample's distribution over the classes."""
    return logits.log_softmax(1)


def over_samples(logits: Tensor) -> Tensor:
    """[C, B]: every class's distribution over the samples of the batch."""
    return logits.T.log_softmax(1)


def target_class(logits: Tensor, target: Tensor) -> Tensor:
    """[B, 2]: the labelled class against all others, from m = z_y - logsumexp of the others, finite at any scale."""
    label = target.unsqueeze(1)
    margin = logits.gather(1, label) - others(logits, target).logsumexp(1, keepdim=True)
    return torch.cat([F.logsigmoid(margin), F.logsigmoid(-margin)], 1)


def other_classes(logits: Tensor, target: Tensor) -> Tensor:
    """[B, C - 1]: the distribution over the classes other than the labelled one."""
    return others(logits, target).log_softmax(1)


def others(logits: Tensor, target: Tensor) -> Tensor:
    """[B, C - 1]: logits without the labelled class, in order."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, columns + (columns >= target.unsqueeze(1)).long())
