"""Rocket launching: a booster and the light network are trained together, and the light one follows its logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.label_loss import label_loss
from kdsearch.kd_methods.logits.kd import kd
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals, StageSpec
from kdsearch.kd_methods.softening import reduce
from kdsearch.kd_methods.strategy import PEERS, SELF, Lesson, Plan, TeachingStrategy
from kdsearch.parameters import Choice, Flag, Float, Int

if TYPE_CHECKING:
    from torch import Tensor, nn

BOOSTER = "booster"


def rocket(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    hint: str = "logits",
    temperature: float = 4.0,
    reduction: str = "mean",
) -> Tensor:
    """The hint from the booster's answer, [B, C] each; who wants the gradient block detaches it.

    "logits": Σ over classes of the squared difference, mean over the batch (with a mean over classes the published
    weight would be C times as large); "softmax": the same of the probabilities, whose gradient dies where they are
    small; "kd": T² · KL(booster ‖ student).

    Source: Zhou et al., Rocket Launching, AAAI 2018, equation 1 and its variants; reductions of the authors' code.

    Raises:
        ValueError: an unknown hint.
    """
    if hint == "kd":
        return kd(student_logits, teacher_logits, temperature=temperature, reduction=reduction)
    if hint == "softmax":
        student_logits, teacher_logits = student_logits.softmax(1), teacher_logits.softmax(1)
    elif hint != "logits":
        raise ValueError(f"hint must be 'logits', 'softmax' or 'kd', not {hint!r}")
    return reduce((student_logits - teacher_logits).square().sum(1), reduction)


def shared_stage(stages: Sequence[StageSpec], depth: float) -> int:
    """The stage nearest to this share of the depth, never the last one."""
    return min(range(len(stages) - 1), key=lambda k: abs(stages[k].depth - depth))


@register
class Rocket(TeachingStrategy):
    """A booster learns from labels in the same steps, and the student from labels and the booster's logits.

    `share="bottom"`: the booster is a deeper tail on the student's own lower stages, up to the one nearest to `depth`
    of its layers, with the widths and strides of the stages it replaces and `blocks` residual blocks in each (6 in
    the published WRN-40, beside 2 in the light WRN-16; of tokens, half as many transformer blocks). It is absent from
    the exported student. `share="none"`: a network of the teacher's size, which shares nothing. The published interval
    sharing, inside every stage, would take the student apart and is left out.

    With the gradient block the hint never reaches the booster; the shared stages feel it through the student alone.
    The weight is the authors' for the hint on logits. A logit term of the recipe stands in for the hint: the student
    then learns by it from the booster. The published "rocket + KD", a second lesson from a trained teacher, is another
    lesson's term and cannot be had in the same recipe.
    """

    name = "rocket"
    title = "Rocket Launching"
    paper = "arXiv 1708.04106"
    year = 2018
    needs = Needs.of(Need.LOGITS, student=(Need.FEATURES,))
    supplies = frozenset({Need.LOGITS})
    own_objective = True
    functional = staticmethod(rocket)

    weight: float = Float(0.03, low=0.003, high=1, log=True, doc="of the hint")
    hint: str = Choice("logits", ["logits", "softmax", "kd"], searched=["logits"])
    temperature: float = Float(4.0, low=1, high=10, log=True, domain=(1e-3, math.inf), doc="of the hint 'kd'")
    share: str = Choice("bottom", ["bottom", "none"], doc="what the booster shares with the student")
    gradient_block: bool = Flag(True, doc="the hint is a constant for the booster")
    depth: float = Float(0.4, low=0.2, high=0.8, domain=(0, 1), doc="share of the student's layers that is shared")
    blocks: int = Int(6, low=2, high=8, domain=(1, math.inf), doc="residual blocks in a stage of the booster's tail")

    def __init__(self, **hyper: Any) -> None:
        """Raises ValueError where a booster that shares nothing is to feel the hint: a peer's answer is a constant."""
        super().__init__(**hyper)
        if self.share == "none":
            if not self.gradient_block:
                raise ValueError("rocket.gradient_block can be off only where share='bottom', not with share='none'")
            # The class states what the default reads; this instance reads no stages.
            self.needs = Needs.of(Need.LOGITS)  # type: ignore[misc]

    def plan(self) -> Plan:
        if self.share == "none":
            return Plan(teachers=(PEERS,), peers=1, peer_size=1.0, peers_learn=False)
        return Plan(teachers=(SELF,))

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module | None:
        """The booster's tail.

        Raises:
            ValueError: the student has fewer than two stages, so there is nothing to share and replace.
        """
        if self.share == "none":
            return None
        from kdsearch.kd_methods.tails import tail

        if len(student.stages) < 2:
            raise ValueError("rocket shares lower stages and needs a student with two stages or more")
        self._shared = shared_stage(student.stages, self.depth)
        own = student.stages[self._shared :]
        return tail(own, student.classes, blocks=self.blocks, token_blocks=max(self.blocks // 2, 1))

    def _booster(self, student: Signals) -> Signals:
        """The booster's answer. Kept as a view of the student's, so that labels and lessons of a step run it once."""
        if BOOSTER not in student.views:
            student.views[BOOSTER] = Signals(logits=self.parts(student.features[self._shared]))
        return student.views[BOOSTER]

    def lessons(self, student: Signals, teachers: dict[str, list[Signals]], batch: Batch) -> list[Lesson]:
        if self.share == "none":
            return super().lessons(student, teachers, batch)
        booster = self._booster(student)
        return [Lesson(student, booster.detach() if self.gradient_block else booster, 1.0, SELF)]

    def supervise(self, student: Signals, batch: Batch) -> Tensor | None:
        if self.share == "none":
            return None
        return label_loss(self._booster(student).logits, batch)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return rocket(student.logits, teacher.logits, hint=self.hint, temperature=self.temperature)
