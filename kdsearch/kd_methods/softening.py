"""Temperatures: a number, one per row, or one for each side; their square is applied row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def temper(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor | tuple[float | Tensor, float | Tensor]
) -> tuple[Tensor, Tensor, float | Tensor]:
    """Both logits divided by their temperature, and the factor that keeps the gradient's scale.

    The factor is T² for one temperature and T_s · T_t for two: a float, or [B] where a temperature is [B, 1].
    """
    student_t, teacher_t = temperature if isinstance(temperature, tuple) else (temperature, temperature)
    factor = student_t * teacher_t
    if not isinstance(factor, int | float):
        factor = factor.squeeze(1) if factor.ndim == 2 else factor
    return student_logits / student_t, teacher_logits / teacher_t, factor


def reduce(rows: Tensor, reduction: str) -> Tensor:
    """`mean` over the batch, or the rows themselves for `none`."""
    if reduction == "mean":
        return rows.mean()
    if reduction == "none":
        return rows
    raise ValueError(f"reduction must be 'mean' or 'none', not {reduction!r}")
