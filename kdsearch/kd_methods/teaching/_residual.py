"""Networks whose logits add up: their sum, what is left of the gap to a teacher, and leaving networks out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdsearch.kd_methods.teaching._ensemble import logits_of


def energy(gap: Tensor) -> Tensor:
    """Mean over samples of ‖gap - its mean over classes‖², [N, C] to a scalar: softmax does not see a constant."""
    return (gap - gap.mean(1, keepdim=True)).square().sum(1).mean()


def entropy(logits: Tensor) -> Tensor:
    """Of softmax over the last dimension, in nats: [..., C] to [...]."""
    return torch.special.entr(logits.softmax(-1)).sum(-1)


class ResidualSum(nn.Module):
    """The first student and its residual students, of which the last one is trained: the sum of all logits.

    Args:
        members: the first student and earlier residual students. They are frozen and stay in evaluation mode.
        student: the residual student that corrects them.
    """

    def __init__(self, members: Sequence[nn.Module], student: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members).requires_grad_(False)
        self.student = student
        self.train(student.training)

    def train(self, mode: bool = True) -> ResidualSum:
        super().train(mode)
        self.members.eval()
        return self

    def cumulative(self, images: Tensor) -> list[Tensor]:
        """Logits [B, C] of the first network, of the first two together, and so on.

        No gradient is switched off: frozen members record no graph, and gradients by the images are those of the sum.
        """
        return list(accumulate(logits_of(network(images)) for network in (*self.members, self.student)))

    def forward(self, images: Tensor) -> Tensor:
        return self.cumulative(images)[-1]

    @torch.no_grad()
    def adaptive(self, images: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """Logits [B, C], and how many networks each sample [B] went through; for evaluation mode.

        A sample is done when the entropy of its present answer is below the threshold, in nats. A threshold of 0 uses
        all networks, one above log C the first alone.
        """
        first, *others = (*self.members, self.student)
        total = logits_of(first(images)).clone()
        rest = torch.arange(len(images), device=images.device)
        used = torch.ones_like(rest)
        for network in others:
            rest = rest[entropy(total[rest].float()) >= threshold]
            if not len(rest):
                break
            total[rest] += logits_of(network(images[rest]))
            used[rest] += 1
        return total, used


def adaptive_curve(logits: Sequence[Tensor], target: Tensor, costs: Sequence[float]) -> Tensor:
    """Accuracy and mean cost at every threshold that changes anything: rows (threshold, accuracy, cost), float64.

    The first row uses all networks (threshold 0), the last the first network alone. Thresholds lie midway between two
    entropies that occur.

    Args:
        logits: as `ResidualSum.cumulative` gives them, [N, C] each.
        target: [N].
        costs: of each network, in any unit.
    """
    stacked = torch.stack(list(logits)).double()
    right = (stacked.argmax(2) == target).double()
    spent = torch.tensor(costs, dtype=torch.float64, device=stacked.device).cumsum(0)
    samples, classes = len(target), stacked.shape[2]
    whole = torch.stack([spent.new_zeros(()), right[-1].mean(), spent[-1]])
    if len(logits) == 1:
        return whole[None]
    # A sample's last network is k or an earlier one wherever the threshold exceeds its least entropy up to k: there it
    # moves from k + 1 to k, so that sums over sorted entropies give every threshold at once.
    least = entropy(stacked[:-1]).cummin(0).values.flatten()
    order = least.argsort()
    events, counts = least[order].unique_consecutive(return_counts=True)
    ends = counts.cumsum(0) - 1
    gained = (right[:-1] - right[1:]).flatten()[order].cumsum(0)[ends]
    saved = (spent[1:] - spent[:-1])[:, None].expand(-1, samples).flatten()[order].cumsum(0)[ends]
    after = torch.cat([events[1:], events[-1:].clamp(min=math.log(classes)) + 1])
    middle = (events + after) / 2
    thresholds = torch.where(middle > events, middle, after)
    rows = torch.stack([thresholds, (right[-1].sum() + gained) / samples, spent[-1] - saved / samples], 1)
    return torch.cat([whole[None], rows])


class Point(NamedTuple):
    """One row of an accuracy-cost curve."""

    threshold: float
    accuracy: float
    cost: float


def choose(curve: Tensor, tolerance: float = 0.001) -> Point:
    """The cheapest row of `adaptive_curve` whose accuracy is within `tolerance` of using all networks."""
    near = curve[:, 1] >= curve[0, 1] - tolerance - 1e-12
    best = curve[:, 2].masked_fill(~near, math.inf).argmin()
    return Point(*curve[best].tolist())
