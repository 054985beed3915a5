"""Auto-KD on logits: which part of the predictions is compared, and how."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import LogitMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Signals
from kdsearch.kd_methods.softening import temper
from kdsearch.parameters import Choice, Float

if TYPE_CHECKING:
    from torch import Tensor

KNOWLEDGE = ("plain", "target", "non_target", "intra")
DISTANCES = ("kl", "pearson")
FEWEST = {"kl": {"plain": 2, "target": 2, "non_target": 3, "intra": 1}, "pearson": {"plain": 3, "non_target": 4}}
"""Classes without which a row says the same of every student: two numbers correlate by ±1."""


def autokd_logits(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    knowledge: str = "plain",
    distance: str = "kl",
    temperature: float | Tensor | tuple[float | Tensor, float | Tensor] = 4.0,
) -> Tensor:
    """T² · divergence, or T² · (1 - correlation), of rows of softened probabilities, averaged over the rows.

    Args:
        student_logits, teacher_logits: [B, C].
        target: [B] labels, read by "target" and "non_target".
        knowledge: "plain" rows are samples; "target" has the labelled class against the rest, "non_target" the others
            among themselves; "intra" rows are classes: for "kl" each class's softmax over the batch, for "pearson" its
            probabilities.
        distance: "kl" or "pearson".
        temperature: float, [B, 1], or (student's, teacher's).

    No `reduction`: the rows of "intra" are no samples.

    Raises:
        ValueError: an unknown name, or too few classes for two students to differ.

    Source: Li et al., Automated Knowledge Distillation via Monte Carlo Tree Search, ICCV 2023. The four kinds and two
    distances are those of code that the same authors released; its correlations are of bare logits, here they are of
    probabilities, so that "plain" and "intra" are DIST's two parts (Huang et al., NeurIPS 2022).
    """
    from kdsearch.kd_methods.decomposed import logit_rows
    from kdsearch.kd_methods.numerics import unit

    _check(knowledge, distance, student_logits.shape[1])
    s, t, factor = temper(student_logits, teacher_logits, temperature)
    if knowledge == "plain":
        log_s, log_t = logit_rows.plain(s), logit_rows.plain(t)
    elif knowledge == "target":
        log_s, log_t = logit_rows.target_class(s, target), logit_rows.target_class(t, target)
    elif knowledge == "non_target":
        log_s, log_t = logit_rows.other_classes(s, target), logit_rows.other_classes(t, target)
    elif distance == "kl":
        log_s, log_t = logit_rows.over_samples(s), logit_rows.over_samples(t)
    else:
        log_s, log_t = logit_rows.plain(s).T, logit_rows.plain(t).T
    if knowledge == "intra" and not isinstance(factor, int | float):
        factor = factor.mean()  # its rows hold every sample
    if distance == "kl":
        rows = (log_t.exp() * (log_t - log_s)).sum(1)
    else:
        p, q = log_s.exp(), log_t.exp()
        rows = 1 - (unit(p - p.mean(1, keepdim=True)) * unit(q - q.mean(1, keepdim=True))).sum(1)
    return (factor * rows).mean()


def _check(knowledge: str, distance: str, classes: int) -> None:
    for value, known in ((knowledge, KNOWLEDGE), (distance, DISTANCES)):
        if value not in known:
            raise ValueError(f"autokd_logits knows {', '.join(known)}, not {value!r}")
    if knowledge == "target" and distance == "pearson":
        raise ValueError("the target class against the rest is two numbers, which correlate by ±1 whatever they are")
    fewest = FEWEST[distance].get(knowledge, 1)
    if classes < fewest:
        raise ValueError(f"knowledge={knowledge} by {distance} needs at least {fewest} classes, not {classes}")


@register
class AutoKDLogits(LogitMethod):
    """A leaf of Auto-KD's space on logits, at T = 4. "target" by "pearson" is refused: it is the same for everybody.

    "plain" by "kl" is plain KD, "target" and "non_target" by "kl" are DKD's parts, by "pearson" "plain" and "intra" are
    DIST's.
    """

    name = "autokd_logits"
    title = "Automated Knowledge Distillation via Monte Carlo Tree Search, on logits"
    paper = "ICCV 2023"
    year = 2023
    reads_labels = True
    searched = False
    functional = staticmethod(autokd_logits)

    weight: float = Float(1.0, low=0.1, high=100, log=True)
    knowledge: str = Choice("plain", KNOWLEDGE, doc="which part of the predictions is compared")
    distance: str = Choice("kl", DISTANCES, doc="divergence or correlation")
    temperature: float = Float(4.0, low=1, high=20, log=True, domain=(1e-3, math.inf))

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> None:
        _check(self.knowledge, self.distance, student.classes)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        soft = self.soften(student, teacher, batch)
        return autokd_logits(
            soft.student,
            soft.teacher,
            batch.target,
            knowledge=self.knowledge,
            distance=self.distance,
            temperature=soft.temperature,
        )
