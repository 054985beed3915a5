"""Early-stopped distillation: the teacher goes, the labels stay."""

from __future__ import annotations

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import ScheduleMethod
from kdsearch.parameters import Float


@register
class ESKD(ScheduleMethod):
    """Every distillation term stops at a share of the training; cross-entropy goes on alone.

    The paper finds the stop for each pair by watching where distillation begins to hurt, so the default is only the
    middle of the range. A recipe with little cross-entropy beside its terms (0.1 beside 0.9, say) takes steps that much
    smaller after the stop. The paper's early-stopped *teacher* is a choice of the teacher's checkpoint, not of this
    slot.

    Source: Cho, Hariharan, On the Efficacy of Knowledge Distillation, ICCV 2019.
    """

    name = "eskd"
    title = "On the Efficacy of Knowledge Distillation"
    paper = "arXiv 1910.01348"
    year = 2019

    stop: float = Float(0.6, low=0.2, high=1.0, domain=(0, 1), doc="share of the training")

    def distillation_weight(self, progress: float) -> float:
        return 1.0 if progress < self.stop else 0.0
