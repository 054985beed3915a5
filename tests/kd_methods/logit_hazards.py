"""Logits that break careless losses: any logit loss must stay finite on them, gradient included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Triple = tuple[Tensor, Tensor, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def draw(batch: int, classes: int, scale: float = 2.0, dtype: torch.dtype = torch.float32, seed: int = 0) -> Triple:
    """Student's and teacher's logits and labels."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, batch, classes, generator=generator, dtype=torch.float64) * scale
    target = torch.randint(classes, (batch,), generator=generator)
    return student.to(dtype), teacher.to(dtype), target


def identical_rows() -> Triple:
    student, teacher, target = draw(1, 10)
    return student.repeat(4, 1), teacher.repeat(4, 1), target.repeat(4)


def constant_rows() -> Triple:
    _, teacher, target = draw(4, 10)
    return torch.full((4, 10), 0.1), teacher, target


def constant_teacher() -> Triple:
    student, _, target = draw(4, 10)
    return student, torch.full((4, 10), -3.7), target


def equal() -> Triple:
    student, _, target = draw(8, 10)
    return student, student.clone(), target


HAZARDS: dict[str, Callable[[], Triple]] = {
    "identical_rows": identical_rows,
    "constant_student": constant_rows,
    "constant_teacher": constant_teacher,
    "student_equals_teacher": equal,
    "two_classes": lambda: draw(4, 2),
    "batch_of_one": lambda: draw(1, 10),
    "scale30_float32": lambda: draw(32, 100, 30.0),
    "scale30_bfloat16": lambda: draw(32, 100, 30.0, torch.bfloat16),
    "scale300_float32": lambda: draw(8, 100, 300.0),
}

hazards = pytest.mark.parametrize("hazard", list(HAZARDS))


def assert_finite(loss: Loss, hazard: str) -> tuple[Tensor, Tensor]:
    """The loss and its gradient, both finite."""
    student, teacher, target = HAZARDS[hazard]()
    student.requires_grad_(True)
    value = loss(student, teacher, target)
    assert value.ndim == 0
    assert torch.isfinite(value)
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.isfinite(gradient).all()
    return value.detach(), gradient
