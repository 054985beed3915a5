"""Loss rejection: is a term's gradient there, finite, and in proportion to the cross-entropy's?"""

from __future__ import annotations

import math


def reject(
    loss: float, ce_gradient_norm: float, term_gradient_norm: float, *, low: float = 1e-4, high: float = 1e4
) -> str | None:
    """Why a weighted term is not worth training with, or None.

    Args:
        ce_gradient_norm, term_gradient_norm: norms of the gradients on the student's parameters.
        low, high: the term's norm must lie within these multiples of the cross-entropy's.
    """
    if not math.isfinite(loss):
        return f"the loss is not finite ({loss})"
    if not math.isfinite(term_gradient_norm):
        return "its gradient is not finite"
    if term_gradient_norm == 0:
        return "its gradient does not reach the student"
    if ce_gradient_norm > 0 and not low <= term_gradient_norm / ce_gradient_norm <= high:
        ratio = term_gradient_norm / ce_gradient_norm
        return f"its gradient is {ratio:.3g} times the cross-entropy's, outside [{low:g}, {high:g}]"
    return None
