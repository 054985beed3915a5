"""Be your own teacher: the deepest classifier teaches exits after the shallower stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.kd_methods.strategy import SELF, Lesson
from kdsearch.kd_methods.teaching._early_exits import EarlyExits
from kdsearch.parameters import Float

if TYPE_CHECKING:
    from torch import Tensor, nn


def byot(
    exit_logits: Sequence[Tensor],
    final_logits: Tensor,
    exit_features: Sequence[Tensor],
    final_feature: Tensor,
    *,
    temperature: float = 3.0,
    alpha: float = 0.1,
    beta: float = 1e-6,
) -> Tensor:
    """Σ over exits of α T² CE(softmax(final / T), exit / T) + β Σ (exit feature - final feature)².

    The final classifier's outputs are targets: no gradient reaches it. The feature difference counts where either
    side is positive and is summed over everything, as published code has it.

    Args:
        exit_logits, final_logits: [B, C]; exit_features, final_feature: [B, ...] of one shape.

    Source: Zhang et al., Be Your Own Teacher, ICCV 2019, section 3; hyper-parameters of the common third-party code,
    as the paper names none.
    """
    import torch

    soft = (final_logits.detach() / temperature).softmax(1)
    fixed = final_feature.detach()
    total = final_logits.new_zeros(())
    for logits, feature in zip(exit_logits, exit_features, strict=True):
        cross = -(soft * (logits / temperature).log_softmax(1)).sum(1).mean()
        counted = (feature > 0) | (fixed > 0)
        hint = torch.where(counted, (feature - fixed).square(), 0.0).sum()
        total = total + alpha * temperature**2 * cross + beta * hint
    return total


@register
class BYOT(EarlyExits):
    """Exits after every stage but the last learn from labels (1 - α) and from the deepest classifier; no other teacher.

    The exits are absent from the exported student unless `keep_exits` asks for them: then each can be used alone, and
    `result="ensemble"` gives the mean of all classifiers' probabilities, which the paper reports beside each exit. A
    logit term of the recipe stands in for the published objective: each exit then learns by it. The paper names neither
    hyper-parameters nor the branches' layers; both are those of the common third-party code.
    """

    name = "byot"
    title = "Be Your Own Teacher"
    paper = "arXiv 1905.08094"
    year = 2019
    needs = Needs.of(Need.LOGITS, Need.EMBEDDING, student=(Need.FEATURES,))
    supplies = frozenset({Need.LOGITS, Need.EMBEDDING})
    learns = supplies
    own_objective = True
    functional = staticmethod(byot)

    alpha: float = Float(0.1, low=0.05, high=0.9, domain=(0, 1), doc="share of the soft labels")
    beta: float = Float(1e-6, low=1e-7, high=1e-2, log=True, doc="weight of the hint")
    temperature: float = Float(3.0, low=1, high=10, log=True, domain=(1e-3, math.inf))

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        """The exits.

        Raises:
            ValueError: the student has a single stage, or no pooled feature to imitate.
        """
        from kdsearch.kd_methods.teaching._exits import exits

        self.place_exits(student)
        return exits(student)

    def signals(self, feature: Tensor, logits: Tensor) -> Signals:
        return Signals(logits=logits, embedding=feature)

    def lessons(self, student: Signals, teachers: dict[str, list[Signals]], batch: Batch) -> list[Lesson]:
        (final,) = teachers[SELF]
        return [Lesson(answer, final, 1.0, SELF) for answer in self.answers(student)]

    def supervise(self, student: Signals, batch: Batch) -> Tensor:
        return (1 - self.alpha) * self.exit_labels(student, batch)

    def label_weight(self) -> float:
        return 1 - self.alpha

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        assert student.embedding is not None
        assert teacher.embedding is not None
        return byot(
            [student.logits],
            teacher.logits,
            [student.embedding],
            teacher.embedding,
            temperature=self.temperature,
            alpha=self.alpha,
            beta=self.beta,
        )
