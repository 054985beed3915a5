"""Jacobian matching: both networks react alike to changes of the input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import FeatureMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.parameters import Choice, Float

if TYPE_CHECKING:
    from torch import Tensor, nn


def jacobian(student_gradient: Tensor, teacher_gradient: Tensor, *, average: str = "elements") -> Tensor:
    """Squared difference of L2-normalised input gradients.

    Of each Jacobian one row is compared: that of one output, for which both gradients are given.

    Args:
        student_gradient, teacher_gradient: [B, ...]; the student's is part of the graph. Maps [B, C, H, W] of networks
            that see images of other sizes are brought to the smaller.
        average: "elements", over batch and input values, as the usual implementation has it, or "samples", the
            paper's squared norm, averaged over the batch; they differ by the number of input values.

    A sample whose gradient vanishes has no direction; it counts with a zero vector.

    Source: Srinivas, Fleuret, Knowledge Transfer with Jacobian Matching, 2018, section 4.

    Raises:
        ValueError: an unknown average.
    """
    from kdsearch.kd_methods.adapters import to_smaller
    from kdsearch.kd_methods.numerics import rescale, unit, widen

    if average not in ("elements", "samples"):
        raise ValueError(f"jacobian: average must be 'elements' or 'samples', not {average!r}")
    s, t = rescale(widen(student_gradient)), rescale(widen(teacher_gradient))
    if s.ndim == t.ndim == 4 and s.shape != t.shape:
        s, t = to_smaller(s, t)
    s, t = unit(s.flatten(1)), unit(t.flatten(1))
    squared = (s - t).square()
    return squared.mean() if average == "elements" else squared.sum(1).mean()


def attended(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """The student's attention [B] where the teacher's is largest. Attention is the sum of squares over channels.

    Args:
        student_features, teacher_features: maps [B, C, H, W]; where sizes differ, the student's attention is resized to
            the teacher's positions.
    """
    from kdsearch.kd_methods.adapters import resize
    from kdsearch.kd_methods.attention_map import attention_map

    s, t = attention_map(student_features), attention_map(teacher_features)
    s = resize(s.unsqueeze(1), (t.shape[1], t.shape[2])).flatten(1)
    return s.gather(1, t.flatten(1).argmax(1, keepdim=True)).squeeze(1)


@register
class Jacobian(FeatureMethod):
    """Directions of input gradients: of the true class' logit, or of attention maps. Needs second derivatives.

    `match="attention"` is the paper's form for transfer: of each paired stage's attention map, as attention transfer
    defines it, the gradient of one pixel, the teacher's largest; one more pass backwards a stage and side.
    The paper matches Jacobians beside the outputs they belong to; a recipe adds those as terms of their own (kd, at).

    No code of the authors is public; weight 20 is the one commonly run with the average over elements, and the whole
    Jacobian is compared by one of its rows, the paper's own approximation.
    """

    name = "jacobian"
    title = "Knowledge Transfer with Jacobian Matching"
    paper = "arXiv 1803.00443"
    year = 2018
    reads_labels = True
    needs = Needs.of(Need.INPUT_GRADIENT)
    functional = staticmethod(jacobian)

    weight: float = Float(20.0, low=1, high=1e4, log=True)
    average: str = Choice("elements", ("elements", "samples"), searched=("elements",), doc="of the squared difference")
    match: str = Choice("logits", ("logits", "attention"), searched=("logits",), doc="what is differentiated")

    def __init__(self, **hyper: Any) -> None:
        super().__init__(**hyper)
        if self.match == "attention":
            # The class states what the default reads; this instance differentiates stages.
            own = {"student": (Need.INPUT,), "teacher": (Need.ATTENTION_GRADIENT,)}
            self.needs = Needs.of(Need.FEATURES, **own)  # type: ignore[misc]

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module | None:
        if self.match == "logits":
            return None
        from kdsearch.kd_methods.adapters import Layout

        return Layout(student.stages, teacher.stages)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        if self.match == "attention":
            return self._of_attention(student, teacher)
        if student.input_gradient is None or teacher.input_gradient is None:
            raise ValueError("jacobian reads the input gradients of student and teacher, and got none")
        return jacobian(student.input_gradient, teacher.input_gradient, average=self.average)

    def _of_attention(self, student: Signals, teacher: Signals) -> Tensor:
        import torch

        if student.input is None or not teacher.attention_gradient:
            raise ValueError("jacobian reads the student's input and the teacher's attention gradients, and got none")
        losses = []
        with torch.enable_grad():  # the student's gradients are asked for even where the loss alone is
            maps = zip(*self.parts(student.features, teacher.features), strict=True)
            for (s, t), target in zip(maps, teacher.attention_gradient, strict=True):
                (gradient,) = torch.autograd.grad(attended(s, t).sum(), student.input, create_graph=True)
                losses.append(jacobian(gradient[: len(s)], target, average=self.average))
        return torch.stack(losses).sum()
