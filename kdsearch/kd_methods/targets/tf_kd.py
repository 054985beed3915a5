"""Teacher-free distillation: a virtual teacher made of the label, or a trained copy of the student."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.logits.kd import kd
from kdsearch.kd_methods.method import TargetMethod
from kdsearch.kd_methods.signals import Batch, Need, Needs, Signals
from kdsearch.parameters import Choice, Float

if TYPE_CHECKING:
    from torch import Tensor


def virtual_teacher(target: Tensor, like: Tensor, correct: float = 0.99) -> Tensor:
    """`correct` on the label, the rest shared evenly: [B, C] probabilities, in the shape and type of `like`.

    `target` is [B] labels, or [B, C] mixed labels, which mix the virtual teachers in the same shares.
    """
    import torch

    rest = (1 - correct) / (like.shape[1] - 1)
    if target.ndim == 2:
        return target.to(like.dtype) * (correct - rest) + rest
    return torch.full_like(like, rest).scatter_(1, target.unsqueeze(1), correct)


def tf_kd(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    target: Tensor,
    *,
    variant: str = "reg",
    temperature: float | Tensor | tuple[float | Tensor, float | Tensor] = 20.0,
    correct: float = 0.99,
    softening: str = "power",
    average: str = "samples",
    multiplier: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """T² · KL of the student to a virtual teacher ("reg") or to a trained copy of itself ("self").

    Args:
        student_logits: [B, C] with C of at least 2.
        teacher_logits: [B, C], read by "self" alone; None will do for "reg".
        target: [B] labels or [B, C] mixed labels, read by "reg" alone.
        temperature: float, [B, 1], or (student's, teacher's).
        correct: the virtual teacher's probability of the label, in (0, 1).
        softening: of the virtual teacher. "power" is the paper's equation 9: probabilities to the power 1 / T,
            renormalised, against the student at T. "double_softmax" is the authors' code: softmax(probabilities / T),
            almost uniform, against the student at temperature 1 and without T².
        average: "samples", or "elements" for the authors' mean over B · C, which divides by C.
        multiplier: the authors' factor that makes up for that division: 1, 50 or 100, by network.
        reduction: "mean", or "none" for [B].

    Raises:
        ValueError: an unknown option, `correct` outside (0, 1), fewer than two classes, or "self" without a teacher.

    The equations leave T² out; the authors' code of "self" has it, and without it a high temperature switches the term
    off, so "self" and "power" have it here.

    Source: Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, CVPR 2020,
    equations 7 to 9.
    """
    classes = student_logits.shape[1]
    if average not in ("samples", "elements"):
        raise ValueError(f"average must be 'samples' or 'elements', not {average!r}")
    scale = multiplier / classes if average == "elements" else multiplier
    if variant == "self":
        if teacher_logits is None:
            raise ValueError("tf_kd's variant 'self' needs teacher_logits: those of a trained copy of the student")
        return scale * kd(student_logits, teacher_logits, temperature=temperature, reduction=reduction)
    if variant != "reg":
        raise ValueError(f"variant must be 'reg' or 'self', not {variant!r}")
    if not 0 < correct < 1:
        raise ValueError(f"correct must lie between 0 and 1, not {correct!r}")
    if classes < 2:
        raise ValueError(f"tf_kd needs at least 2 classes, not {classes}")
    virtual = virtual_teacher(target, student_logits, correct)
    if softening == "power":
        return scale * kd(student_logits, virtual.log(), temperature=temperature, reduction=reduction)
    if softening == "double_softmax":
        teachers = temperature[1] if isinstance(temperature, tuple) else temperature
        return scale * kd(student_logits, virtual / teachers, temperature=1.0, reduction=reduction)
    raise ValueError(f"softening must be 'power' or 'double_softmax', not {softening!r}")


@register
class TfKD(TargetMethod):
    """(1 - weight) · cross-entropy + weight · tf_kd, `weight` being the paper's alpha.

    Defaults are the authors' for a ResNet-18 on CIFAR-100, where their multiplier of 100 undoes the mean over classes.
    "self" wants a teacher that is a trained copy of the student (alpha 0.95 at T = 6 there), which the recipe's
    teaching has to supply; a search draws "reg" only.
    """

    name = "tf_kd"
    title = "Revisiting Knowledge Distillation via Label Smoothing Regularization"
    paper = "arXiv 1909.11723"
    year = 2020
    reads_labels = True
    of_labels = True
    needs = Needs.of(student=(Need.LOGITS,))
    functional = staticmethod(tf_kd)

    weight: float = Float(0.1, low=0.01, high=0.95, log=True, domain=(0, 1))
    variant: str = Choice("reg", ["reg", "self"], searched=["reg"])
    temperature: float = Float(20.0, low=5, high=40, log=True, domain=(1e-3, math.inf))
    correct: float = Float(0.99, low=0.9, high=0.999, domain=(1e-6, 1 - 1e-6))
    softening: str = Choice("power", ["power", "double_softmax"])
    multiplier: float = Float(1.0, low=0.01, high=1, log=True, doc="the authors' multiplier over the number of classes")

    def __init__(self, **hyper: Any) -> None:
        super().__init__(**hyper)
        if self.variant == "self":
            # The class states what the default reads; this instance reads a teacher too.
            self.needs = Needs.of(Need.LOGITS)  # type: ignore[misc]
            self.same_classes = True  # type: ignore[misc]
            self.of_labels = False  # type: ignore[misc]

    def label_weight(self) -> float:
        return 1.0 - self.weight

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return tf_kd(
            student.logits,
            teacher.logits if self.variant == "self" else None,
            batch.target if batch.soft_target is None else batch.soft_target,
            variant=self.variant,
            temperature=self.temperature,
            correct=self.correct,
            softening=self.softening,
            multiplier=self.multiplier,
        )
