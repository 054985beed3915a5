"""Multi-self-distillation: every classifier of a network with exits teaches every other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.logits.kd import kd
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.kd_methods.strategy import SELF, Lesson
from kdsearch.kd_methods.teaching._early_exits import EarlyExits
from kdsearch.parameters import Choice, Float

if TYPE_CHECKING:
    from torch import Tensor, nn


def pairings(classifiers: int, pairs: str = "all") -> list[tuple[int, int, float]]:
    """Who learns from whom, and the share of that lesson; classifiers are counted from the shallowest.

    "all": everybody from the mean over everybody else. "deeper": from every deeper one, added up.

    Raises:
        ValueError: an unknown rule.
    """
    if pairs == "all":
        numbers = range(classifiers)
        return [(k, other, 1.0 / (classifiers - 1)) for k in numbers for other in numbers if other != k]
    if pairs == "deeper":
        return [(k, other, 1.0) for k in range(classifiers) for other in range(k + 1, classifiers)]
    raise ValueError(f"pairs must be 'all' or 'deeper', not {pairs!r}")


def annealed(beta: float, progress: float) -> float:
    """The feature term's weight: half a cosine from `beta` at the beginning to 0 at the end."""
    return 0.5 * beta * (1 + math.cos(math.pi * progress))


def hint(exit_feature: Tensor, deepest_feature: Tensor) -> Tensor:
    """Mean squared difference to the deepest map, a constant, [B, D, H, W] each, at the smaller of their sizes."""
    import torch.nn.functional as F

    from kdsearch.kd_methods.adapters import to_smaller

    return F.mse_loss(*to_smaller(exit_feature, deepest_feature.detach()))


def msd(
    logits: Sequence[Tensor],
    features: Sequence[Tensor],
    *,
    temperature: float = 3.0,
    alpha: float = 1.0,
    beta: float = 0.05,
    pairs: str = "all",
) -> Tensor:
    """α Σ over learners of the mean over their teachers of T² KL(teacher ‖ learner) + β Σ over exits of mean (f - F)².

    Teachers are constants in their lessons, and so is the deepest feature F. `beta` is the present one.

    Args:
        logits: [B, C] of every classifier, the shallowest first.
        features: [B, D, H, W] of every classifier: the map that it pools.

    Source: Luan, Zhao, Yang, Dai, MSD: Multi-Self-Distillation Learning via Multi-classifiers within Deep Neural
    Networks, 2019, section 3; hyper-parameters and reductions are ours.
    """
    total = logits[0].new_zeros(())
    for learner, teacher, share in pairings(len(logits), pairs):
        total = total + alpha * share * kd(logits[learner], logits[teacher].detach(), temperature=temperature)
    for feature in features[:-1]:
        total = total + beta * hint(feature, features[-1])
    return total


@register
class MSD(EarlyExits):
    """Exits after every stage but the last; all classifiers learn from labels and from one another.

    An exit goes on from its stage by one residual block for each stage that follows, of its width and stride (the
    published branch augmentation: 3, 2 and 1 blocks in a network of four stages; of tokens, transformer blocks). What
    it pools is drawn to the student's last stage by a squared difference whose weight falls to 0 along a cosine, as
    it harms late in training.

    The paper is followed as far as it can be read; hyper-parameters, temperature and the rule of pairs are ours, as no
    code of the authors is known. `pairs="deeper"` is the rule of unofficial code: every deeper classifier teaches every
    shallower one, added up; that code blocks no gradient, knows no temperature and averages over classes. A logit term
    of the recipe stands in for the published objective: every pair then learns by it, and the feature term is left out.
    """

    name = "msd"
    title = "Multi-Self-Distillation Learning via Multi-classifiers within Deep Neural Networks"
    paper = "arXiv 1911.09418"
    year = 2019
    needs = Needs.of(Need.LOGITS, student=(Need.FEATURES,))
    supplies = frozenset({Need.LOGITS})
    learns = supplies
    own_objective = True
    functional = staticmethod(msd)

    alpha: float = Float(1.0, low=0.1, high=10, log=True, doc="weight of the lessons")
    beta: float = Float(0.05, low=1e-3, high=1, log=True, doc="weight of the feature term at the beginning")
    temperature: float = Float(3.0, low=1, high=10, log=True, domain=(1e-3, math.inf))
    pairs: str = Choice("all", ["all", "deeper"], doc="who teaches whom")

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        """The exits.

        Raises:
            ValueError: the student has fewer than two stages.
        """
        from kdsearch.kd_methods.teaching._exits import branches

        self.place_exits(student)
        self._last = student.stages[-1]
        return branches(student)

    def signals(self, feature: Tensor, logits: Tensor) -> Signals:
        return Signals(logits=logits, map=feature)

    def lessons(self, student: Signals, teachers: dict[str, list[Signals]], batch: Batch) -> list[Lesson]:
        """Lessons from the deepest classifier hold both sides' maps; no others do."""
        from kdsearch.kd_methods.adapters import to_map

        (final,) = teachers[SELF]
        exits = self.answers(student)
        deepest = to_map(student.features[-1].detach(), self._last)
        constant = [Signals(logits=answer.logits.detach()) for answer in exits] + [replace(final, map=deepest)]
        learners = [*exits, student]
        return [
            Lesson(learners[k], constant[other], share, SELF) for k, other, share in pairings(len(learners), self.pairs)
        ]

    def supervise(self, student: Signals, batch: Batch) -> Tensor:
        return self.exit_labels(student, batch)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        value = self.alpha * kd(student.logits, teacher.logits, temperature=self.temperature)
        if student.map is None or teacher.map is None:
            return value
        # The lesson's share is of a mean over teachers, of which this term has the deepest alone.
        whole = len(self.parts) if self.pairs == "all" else 1
        return value + annealed(self.beta, batch.progress) * whole * hint(student.map, teacher.map)
