"""Metrics of a classifier on a split, by name."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods import METHODS, AnalysisMethod, Need
from kdsearch.kd_methods.analysis.agreement import calibration_error
from kdsearch.kd_methods.decomposed.cka import linear_cka
from kdsearch.kd_methods.tap import Tap
from kdsearch.runs.data import Split, batches
from kdsearch.runs.network import Network

Direction = Literal["maximize", "minimize"]
DIRECTIONS: dict[str, Direction] = {
    "accuracy": "maximize",
    "balanced_accuracy": "maximize",
    "top5": "maximize",
    "nll": "minimize",
    "cka": "maximize",
    "autokd": "minimize",
}
COMPARING = frozenset({"cka", "autokd"})
"""Metrics that compare a student's embeddings with its teacher's: measured only where the run's metric is one."""


@torch.no_grad()
def predict(network: Network, split: Split, *, batch_size: int = 512) -> Tensor:
    """Logits [N, C] of a split in evaluation mode; the module's mode is restored."""
    module = network.module
    was_training = module.training
    module.eval()
    try:
        return torch.cat([network.logits(images).float() for images, _ in batches(split, batch_size)])
    finally:
        module.train(was_training)


@torch.no_grad()
def represent(network: Network, split: Split, *, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """Logits [N, C] and embeddings [N, D] of a split in evaluation mode; the module's mode is restored.

    Raises:
        TrialFailure: the network has no embedding ("invalid").
    """
    module = network.module
    shape = split.take(torch.zeros(1, dtype=torch.int64, device=split.labels.device)).shape[1:]
    spec = network.spec((shape[0], shape[1], shape[2]))
    if spec.embedding is None:
        raise TrialFailure("invalid", "the metric compares embeddings, and the network to evaluate has none")
    was_training = module.training
    module.eval()
    logits, embeddings = [], []
    try:
        with Tap(module, spec, frozenset({Need.LOGITS, Need.EMBEDDING}), []) as tap:
            for images, _ in batches(split, batch_size):
                signals = tap(network.prepare(images))
                assert signals.embedding is not None
                logits.append(signals.logits.float())
                embeddings.append(signals.embedding.float())
    finally:
        module.train(was_training)
    return torch.cat(logits), torch.cat(embeddings)


def measure(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> dict[str, float]:
    """Every metric of these predictions, as shares (nll in nats, ece the expected calibration error).

    Args:
        teacher_logits: the teacher's predictions [N, C] of the same samples: what every analysis finds in the
            predictions beside them comes along, and has the last word on metrics of the same name.
    """
    correct = logits.argmax(1) == labels
    classes = logits.shape[1]
    hits = torch.zeros(classes, device=logits.device).index_add_(0, labels, correct.float())
    seen = torch.bincount(labels, minlength=classes)
    present = seen > 0
    top = logits.topk(min(5, classes), dim=1).indices
    compared = {} if teacher_logits is None else beside(logits, teacher_logits, labels)
    ece = compared["ece"] if "ece" in compared else calibration_error(logits, labels).item()
    return {
        "accuracy": correct.float().mean().item(),
        "balanced_accuracy": (hits[present] / seen[present]).mean().item(),
        "top5": (top == labels[:, None]).any(1).float().mean().item(),
        "nll": F.cross_entropy(logits, labels).item(),
        "ece": ece,
        **compared,
    }


def beside(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, float]:
    """What every registered analysis finds in a student's predictions beside its teacher's, at published defaults."""
    found: dict[str, float] = {}
    for cls in METHODS:
        if issubclass(cls, AnalysisMethod):
            found |= cls().measure(student_logits, teacher_logits, labels)
    return found


def evaluate(
    network: Network, split: Split, teacher_logits: Tensor | None = None, teacher_embeddings: Tensor | None = None
) -> dict[str, float]:
    """Every metric of a network on a split, from one prediction.

    Args:
        teacher_logits: the teacher's predictions [N, C] of the same split: the network is measured beside them, too.
        teacher_embeddings: the teacher's [N, D]: `cka`, the linear CKA of both, and `autokd`, nll + 1 - cka, come
            along: Auto-KD's reward, the loss beside the representation gap, with the sign of a loss. The weights of
            its two parts are published nowhere; that they are equal is ours.

    Raises:
        TrialFailure: embeddings are compared, and the network has none ("invalid").
    """
    if teacher_embeddings is None:
        return measure(predict(network, split), split.labels, teacher_logits)
    logits, embeddings = represent(network, split)
    found = measure(logits, split.labels, teacher_logits)
    alike = linear_cka(embeddings, teacher_embeddings).item()
    return {**found, "cka": alike, "autokd": found["nll"] + 1 - alike}
