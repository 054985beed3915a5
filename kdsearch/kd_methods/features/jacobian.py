"""Jacobian matching: both networks react alike to changes of the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import FeatureMethod
from kdsearch.kd_methods.signals import Batch, Need, Needs, Signals
from kdsearch.parameters import Choice, Float

if TYPE_CHECKING:
    from torch import Tensor


def jacobian(student_gradient: Tensor, teacher_gradient: Tensor, *, average: str = "elements") -> Tensor:
    """Squared difference of L2-normalised input gradients.

    Of each Jacobian one row is compared, that of the true class' logit: d logit[target] / d input.

    Args:
        student_gradient, teacher_gradient: [B, ...], of equal shape; the student's is part of the graph.
        average: "elements", over batch and input values, as the usual implementation has it, or "samples", the
            paper's squared norm, averaged over the batch; they differ by the number of input values.

    A sample whose gradient vanishes has no direction; it counts with a zero vector.

    Source: Srinivas, Fleuret, Knowledge Transfer with Jacobian Matching, 2018, section 4.

    Raises:
        ValueError: an unknown average.
    """
    from kdsearch.kd_methods.numerics import rescale, unit, widen

    if average not in ("elements", "samples"):
        raise ValueError(f"jacobian: average must be 'elements' or 'samples', not {average!r}")
    s = unit(rescale(widen(student_gradient)).flatten(1))
    t = unit(rescale(widen(teacher_gradient)).flatten(1))
    squared = (s - t).square()
    return squared.mean() if average == "elements" else squared.sum(1).mean()


@register
class Jacobian(FeatureMethod):
    """The input gradient of the true class' logit, direction only. Needs second derivatives of the student.

    No code of the authors is public; weight 20 is the one commonly run with the average over elements.
    """

    name = "jacobian"
    title = "Knowledge Transfer with Jacobian Matching"
    paper = "arXiv 1803.00443"
    year = 2018
    needs = Needs.of(Need.INPUT_GRADIENT)
    functional = staticmethod(jacobian)

    weight: float = Float(20.0, low=1, high=1e4, log=True)
    average: str = Choice("elements", ("elements", "samples"), searched=("elements",), doc="of the squared difference")

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        if student.input_gradient is None or teacher.input_gradient is None:
            raise ValueError("jacobian reads the input gradients of student and teacher, and got none")
        return jacobian(student.input_gradient, teacher.input_gradient, average=self.average)
