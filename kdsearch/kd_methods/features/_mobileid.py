"""The selection of neurons, and the regression onto them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdsearch.kd_methods.adapters import linear_projector, to_dtype_of
from kdsearch.kd_methods.method import Frozen
from kdsearch.kd_methods.numerics import doubled
from kdsearch.kd_methods.signals import Need

SAMPLES = 2000
AT_ONCE = 1 << 24
"""Entries of samples × neurons × classes that are counted together."""
SWEEPS, DAMPING, TOLERANCE = 50, 0.5, 1e-4
EPS = 1e-6


class Selection(nn.Module):
    """A linear layer onto the selected neurons; `selected` [M] are their indices in the teacher's embedding."""

    def __init__(self, width: int, count: int, ranking: Tensor | None) -> None:
        super().__init__()
        self.ready = ranking is not None
        self.regress = linear_projector(width, count)
        self.selected: Tensor
        chosen = torch.arange(count) if ranking is None else ranking[:count].sort().values
        self.register_buffer("selected", chosen.clone())

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return self.regress(to_dtype_of(self.regress.weight, student)), teacher[:, self.selected]


def rank_neurons(teacher: Frozen, redundancy: float) -> Tensor:
    """Indices [D] of the neurons of the teacher's embedding, the one most worth keeping first.

    Raises:
        ValueError: the data has no labels.
    """
    if teacher.data.labels is None:
        raise ValueError("mobileid needs the labels of the training data: neurons are chosen by the classes they tell")
    count = min(SAMPLES, teacher.data.samples)
    spread = torch.linspace(0, teacher.data.samples - 1, count).round().long()  # also where samples lie class by class
    needs = frozenset({Need.EMBEDDING})
    neurons = torch.cat([s.embedding for _, s in teacher.signals(needs, order=spread) if s.embedding is not None])
    labels = teacher.data.labels.to(neurons.device)[spread.to(neurons.device)]
    told = doubled(selectivity(neurons, labels, teacher.data.classes))  # low probabilities would be lost in float32
    kept = mean_field(costs(told), told, redundancy / len(told))
    # By probability, then by index: equal neurons have an order too.
    return kept.argsort(descending=True, stable=True)


def selectivity(neurons: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Balanced accuracy [D, C] with which a neuron above its best threshold tells class j from the rest.

    Args:
        neurons: responses [N, D].
        labels: [N].

    A silent neuron, and one for a class without samples, scores ½.
    """
    ordered, order = neurons.sort(0, descending=True)
    # Between equal responses there is no threshold.
    cut = torch.cat((ordered[:-1] > ordered[1:], ordered.new_ones(1, ordered.shape[1], dtype=torch.bool)))
    classes_of = torch.nn.functional.one_hot(labels, classes).float()
    positives = classes_of.sum(0)
    negatives = len(labels) - positives
    above = torch.arange(1, len(labels) + 1, device=neurons.device)[:, None, None]
    step = max(1, AT_ONCE // max(len(labels) * classes, 1))
    found = []
    for some, cuts in zip(order.split(step, 1), cut.split(step, 1), strict=True):
        hits = classes_of[some].cumsum(0)  # [N, d, C]: samples of the class among the first
        rate = 0.5 * (hits / positives.clamp(min=1) + 1.0 - (above - hits) / negatives.clamp(min=1))
        found.append(torch.where(cuts[:, :, None], rate, 0.5).amax(0).clamp(min=0.5))
    told = torch.cat(found)
    return torch.where((positives > 0) & (negatives > 0), told, 0.5)


def costs(told: Tensor) -> Tensor:
    """The unary cost f [D] of keeping a neuron: low where it is better at its best class than on average."""
    return 1.0 / (told.amax(1) - told.mean(1) + EPS)


def mean_field(cost: Tensor, told: Tensor, repulsion: float) -> Tensor:
    """Probability [D] of keeping each neuron under E(y) = Σ y_i f_i + λ Σ_{i≠j} y_i y_j exp(-½‖x_i - x_j‖²).

    Args:
        cost: f [D].
        told: x [D, C].
        repulsion: λ.
    """
    alike = torch.exp(-0.5 * torch.cdist(told, told).square())
    alike.fill_diagonal_(0.0)
    kept = torch.sigmoid(-cost)
    for _ in range(SWEEPS):
        new = torch.lerp(kept, torch.sigmoid(-(cost + 2.0 * repulsion * (alike @ kept))), DAMPING)
        change, kept = (new - kept).abs().max(), new
        if change < TOLERANCE:
            break
    return kept
