"""Parameters that take no weight decay."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def groups(parameters: list[Tensor]) -> list[Any]:
    """The parameters; in groups where some have the attribute `no_weight_decay = True`, which then get none.

    Groups are runs of neighbours: one after the other they are the parameters in their order, which whoever hands
    gradients to an optimiser as a list relies on.
    """
    runs = [(free, list(run)) for free, run in groupby(parameters, lambda p: getattr(p, "no_weight_decay", False))]
    if not any(free for free, _ in runs):
        return parameters
    return [{"params": run, "weight_decay": 0.0} if free else {"params": run} for free, run in runs]
