"""Online distillation with parameter hybridisation: the learners' mean in weight space learns and teaches with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.label_loss import label_loss
from kdsearch.kd_methods.logits.kd import kd
from kdsearch.kd_methods.signals import Batch, Need, Needs, Signals
from kdsearch.kd_methods.strategy import HYBRID, PEERS, Lesson, Plan, TeachingStrategy
from kdsearch.parameters import Choice, Flag, Float, Int

if TYPE_CHECKING:
    from torch import Tensor


def consensus(logits: Sequence[Tensor]) -> Tensor:
    """Mean of everybody's logits, [B, C] each; a constant for all of them."""
    import torch

    return torch.stack([x.detach() for x in logits]).mean(0)


def okdph(
    student_logits: Tensor,
    hybrid_logits: Tensor,
    peer_logits: Sequence[Tensor],
    target: Tensor,
    *,
    omega: float = 0.8,
    beta: float = 0.8,
    temperature: float = 4.0,
) -> Tensor:
    """ω CE(student) + (1 - ω) CE(hybrid) + β T² KL(mean of all logits ‖ student), [B, C] each; labels [B].

    The mean is over student, peers and hybrid and is a constant. Whether CE(hybrid) moves anybody is the caller's
    business: it does where the hybrid's weights are a function of the learners', not where they are a copy.

    Source: Zhang et al., Generalization Matters: Loss Minima Flattening via Parameter Hybridization for Efficient
    Online Knowledge Distillation, CVPR 2023; the mean over all logits is the published code's.
    """
    import torch.nn.functional as F

    labels = omega * F.cross_entropy(student_logits, target) + (1 - omega) * F.cross_entropy(hybrid_logits, target)
    stable = consensus([student_logits, *peer_logits, hybrid_logits])
    return labels + beta * kd(student_logits, stable, temperature=temperature)


@register
class OKDPH(TeachingStrategy):
    """Learners that start alike keep close to their mean in weight space, which is trained through all of them.

    Every step the learners' weights are averaged to a hybrid. Its cross-entropy has the share 1 - ω of each learner's
    label loss, and all learn from the mean of everybody's logits; at every interval the share γ of the hybrid is
    blended into each. The published code trains a copy of the mean, so that the hybrid's cross-entropy moves nobody:
    `gradient` off gives that. The hybrid is the plain mean, the code's default, where the abstract speaks of sampled
    convex combinations. Each learner sees its own view of a sample, which losses on maps compare place by place;
    `own_views` off shows all the same one. A term on anything but logits learns from the hybrid. The default result is
    the hybrid: the paper reports the best of hybrid and learners.

    Defaults are those of the CIFAR-10 ResNet-32 (ω 0.8, β 0.8, γ 0.5, every epoch); for the CIFAR-100 one they are 1.0,
    0.5, 1.0 and every five steps.
    """

    name = "okdph"
    title = "Generalization Matters: Loss Minima Flattening via Parameter Hybridization"
    paper = "arXiv 2303.14666"
    year = 2023
    needs = Needs.of(Need.LOGITS)
    own_objective = True
    functional = staticmethod(okdph)

    weight: float = Float(0.8, low=0.1, high=3, log=True, doc="β, of the published objective")
    omega: float = Float(0.8, low=0.3, high=1.0, domain=(0, 1), doc="share of a learner's own cross-entropy")
    gamma: float = Float(0.5, low=0.25, high=1.0, domain=(0, 1), doc="share of the hybrid that is blended in")
    interval: int = Int(0, low=0, high=5, step=5, doc="steps between blendings; 0 for once an epoch")
    temperature: float = Float(4.0, low=1, high=10, log=True, domain=(1e-3, math.inf))
    peers: int = Int(1, low=1, high=2, domain=(1, 8), doc="further learners beside the student")
    keep: str = Choice(HYBRID, [HYBRID, "student"], searched=[HYBRID], doc="whose weights are the result")
    gradient: bool = Flag(True, doc="the hybrid's cross-entropy moves the learners")
    own_views: bool = Flag(True, doc="each learner sees its own view of a sample")

    def plan(self) -> Plan:
        # Peers supply logits for the mean alone; every lesson is the hybrid's.
        return Plan(
            teachers=(HYBRID, PEERS),
            peers=self.peers,
            alike=True,
            own_views=self.own_views,
            fuse=self.gamma,
            fuse_every=self.interval,
            keep=self.keep,
        )

    def lessons(self, student: Signals, teachers: dict[str, list[Signals]], batch: Batch) -> list[Lesson]:
        (hybrid,) = teachers[HYBRID]
        everybody = [student.logits, *(other.logits for other in teachers[PEERS]), hybrid.logits]
        return [Lesson(student, replace(hybrid, logits=consensus(everybody)), 1.0, HYBRID)]

    def supervise(self, student: Signals, batch: Batch) -> Tensor | None:
        if self.omega == 1:
            return None
        logits = student.views[HYBRID].logits
        # In a view of its own the hybrid may see other mixtures of the batch's samples than the learner does.
        seen = batch.views.get(HYBRID, batch)
        return (1 - self.omega) * label_loss(logits if self.gradient else logits.detach(), seen)

    def label_weight(self) -> float:
        return self.omega

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return kd(student.logits, teacher.logits, temperature=self.temperature)
