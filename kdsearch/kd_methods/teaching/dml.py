"""Deep mutual learning: peers teach one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.signals import Batch, Need, Needs, Signals
from kdsearch.kd_methods.softening import reduce
from kdsearch.kd_methods.strategy import PEERS, Lesson, Plan, TeachingStrategy
from kdsearch.parameters import Choice, Flag, Float, Int

if TYPE_CHECKING:
    from torch import Tensor


def dml(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    guard: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """KL(softmax(peer / T) ‖ softmax(student / T)), mean over the batch; [B, C] each.

    `guard` = 1e-8 gives the published code's form, which adds it inside the logarithm and to the denominator and so
    caps the divergence of far-apart peers; 0 is the paper's equation 4.

    Source: Zhang, Xiang, Hospedales, Lu, Deep Mutual Learning, CVPR 2018, section 3.
    """
    import torch.nn.functional as F

    s, t = student_logits / temperature, teacher_logits / temperature
    if guard:
        p = t.softmax(1)
        rows = (p * (guard + p / (s.softmax(1) + guard)).log()).sum(1)
    else:
        rows = F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="none", log_target=True).sum(1)
    return reduce(rows, reduction)


def together(peers: Sequence[Signals]) -> Signals:
    """The peers as one teacher: logits whose softmax is the mean of their probabilities, in every view.

    What has no mean across networks that were initialised apart (features, embeddings, further heads) is the first
    peer's.
    """
    from kdsearch.kd_methods.teaching._ensemble import mean_probabilities

    first = peers[0]
    return replace(
        first,
        logits=mean_probabilities([signals.logits for signals in peers]),
        views={name: together([signals.views[name] for signals in peers]) for name in first.views},
    )


@register
class DML(TeachingStrategy):
    """Students of the same architecture learn together, each from the mean of its peers' lessons (the paper's K - 1).

    `turns`: the learners move one after the other, each by the present answers of the others, as the paper's algorithm
    has it; off, all answer once before any of them moves, as in the common PyTorch baselines.
    `teach="ensemble"` is the paper's DML_e: one lesson from the peers' mean probabilities, which it finds to do worse
    than a lesson from "each", as the mean is less sharp; terms that read more than logits are then taught by the first
    peer. The first learner is the result. Any loss of the recipe may stand in for the published one.
    """

    name = "dml"
    title = "Deep Mutual Learning"
    paper = "arXiv 1706.00384"
    year = 2018
    needs = Needs.of(Need.LOGITS)
    own_objective = True
    functional = staticmethod(dml)

    weight: float = Float(1.0, low=0.3, high=3, log=True, doc="of the published objective")
    temperature: float = Float(1.0, low=1, high=4, log=True, domain=(1e-3, math.inf))
    peers: int = Int(1, low=1, high=2, domain=(1, 8), doc="further learners beside the student")
    turns: bool = Flag(False, doc="learners move one after the other")
    teach: str = Choice("each", ["each", "ensemble"], searched=["each"], doc="peers one by one, or their mean")

    def plan(self) -> Plan:
        return Plan(teachers=(PEERS,), peers=self.peers, turns=self.turns)

    def lessons(self, student: Signals, teachers: dict[str, list[Signals]], batch: Batch) -> list[Lesson]:
        if self.teach == "each":
            return super().lessons(student, teachers, batch)
        return [Lesson(student, together(teachers[PEERS]), 1.0, PEERS)]

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return dml(student.logits, teacher.logits, temperature=self.temperature)
