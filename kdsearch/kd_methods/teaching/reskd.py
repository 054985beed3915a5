"""Residual-guided distillation: further small students correct the sum of those before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.signals import Need, Needs
from kdsearch.kd_methods.strategy import Plan, TeachingStrategy
from kdsearch.parameters import Float, Int

if TYPE_CHECKING:
    from torch import nn


@register
class ResKD(TeachingStrategy):
    """The teacher teaches a student, then one residual student after the other, whose logits are added to the sum.

    After each the energy of the gap is measured on held-out data: the mean squared norm of the teacher's logits minus
    the sum's, centred over classes. No further residual student is trained where the energy is below `floor` times what
    the first student left, or where the last one took off less than 1 - `stall` of it. The result is the sum; its
    `adaptive` leaves out the networks that a sample does not need, by the entropy of its present answer.

    Known of the paper are the idea (networks that learn the gap in logits, a sample-adaptive rule at inference, an
    entropy of the gap's energy that ends the series); everything else is rebuilt: the energy rule, its constants, the
    entropy threshold, and residual students that learn by the recipe's logit term, or plain KD, on the sum. The paper
    searches their architectures; here they have the share `size` of the student's channels.
    """

    name = "reskd"
    title = "ResKD: Residual-Guided Knowledge Distillation"
    paper = "arXiv 2006.04719"
    year = 2021
    needs = Needs.of(Need.LOGITS)
    same_classes = True

    residuals: int = Int(3, low=1, high=3, domain=(1, 8), doc="residual students at most")
    size: float = Float(0.5, low=0.25, high=1.0, domain=(0.01, 1), doc="their share of the student's channels")
    floor: float = Float(0.05, low=0.01, high=0.2, log=True, domain=(0, 1), doc="gap's energy that is small enough")
    stall: float = Float(0.95, low=0.8, high=1.0, domain=(0, 1), doc="gap's energy after one more that is too much")

    def plan(self) -> Plan:
        return Plan(residuals=self.residuals, residual_size=self.size)

    def combine(self, members: Sequence[nn.Module], student: nn.Module) -> nn.Module:
        from kdsearch.kd_methods.teaching._residual import ResidualSum

        return ResidualSum(members, student)

    def enough(self, energies: Sequence[float]) -> bool:
        first, *later = energies
        if first <= 0:
            return True
        if not later:
            return False
        return energies[-1] < self.floor * first or energies[-1] > self.stall * energies[-2]
