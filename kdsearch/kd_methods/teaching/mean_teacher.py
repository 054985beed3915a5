"""Mean teacher: the student's own moving average teaches it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.signals import Batch, Need, Needs, Signals
from kdsearch.kd_methods.strategy import AVERAGE, Plan, TeachingStrategy
from kdsearch.parameters import Choice, Flag, Float

if TYPE_CHECKING:
    from torch import Tensor


def mean_teacher(student_logits: Tensor, teacher_logits: Tensor, *, consistency: str = "mse") -> Tensor:
    """Consistency of the student with its average, [B, C] each.

    "mse": squared difference of the probabilities, mean over batch and classes; "kl": KL(average ‖ student), mean over
    the batch.

    Source: Tarvainen, Valpola, Mean Teachers Are Better Role Models, NeurIPS 2017, section 2 and appendix B.
    """
    import torch.nn.functional as F

    if consistency == "mse":
        return F.mse_loss(student_logits.softmax(1), teacher_logits.softmax(1))
    if consistency == "kl":
        log_t = teacher_logits.log_softmax(1)
        return F.kl_div(student_logits.log_softmax(1), log_t, reduction="batchmean", log_target=True)
    raise ValueError(f"consistency must be 'mse' or 'kl', not {consistency!r}")


@register
class MeanTeacher(TeachingStrategy):
    """Consistency with the moving average of the student's weights, which sees another view of each sample.

    The weight rises over the first `rampup` of training as exp(-5 (1 - x)²). The average keeps its own batch-norm
    statistics (the authors' code leaves it in training mode) and is the result, as in the paper, unless
    `keep_average` is off. Defaults are the CIFAR-10 experiment's: mse, weight 100, ramp-up of 5 of 180 epochs.
    """

    name = "mean_teacher"
    title = "Mean Teachers Are Better Role Models"
    paper = "arXiv 1703.01780"
    year = 2017
    needs = Needs.of(Need.LOGITS)
    own_objective = True
    functional = staticmethod(mean_teacher)

    weight: float = Float(100.0, low=1, high=300, log=True, doc="of the published consistency cost")
    consistency: str = Choice("mse", ["mse", "kl"], searched=["mse"])
    decay: float = Float(0.99, low=0.9, high=0.999, domain=(0, 1), doc="of the moving average")
    rampup: float = Float(5 / 180, low=0.01, high=0.5, log=True, domain=(0, 1), doc="share of training")
    keep_average: bool = Flag(True, doc="the moving average is the result")

    def plan(self) -> Plan:
        return Plan(
            teachers=(AVERAGE,),
            average=self.decay,
            second_view=True,
            keep=AVERAGE if self.keep_average else "student",
        )

    def distillation_weight(self, progress: float) -> float:
        if self.rampup <= 0 or progress >= self.rampup:
            return 1.0
        return math.exp(-5 * (1 - progress / self.rampup) ** 2)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return mean_teacher(student.logits, teacher.logits, consistency=self.consistency)
