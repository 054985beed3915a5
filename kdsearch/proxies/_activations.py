"""Which units of a network are on, at every pointwise nonlinearity, called as a layer or as a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

POINTWISE = frozenset(
    {torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu, F.relu_, F.relu6, F.hardtanh, F.leaky_relu, F.prelu}
    | {torch.prelu, F.rrelu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.softplus}
)
"""Nonlinearities that pass what is positive and hold back what is not."""


class Watching(TorchFunctionMode):
    """While entered, hands the input of each pointwise nonlinearity to `seen`, before it may be overwritten.

    Calls of torch functions are watched in this thread only.
    """

    def __init__(self, seen: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in POINTWISE:
            self.seen(args[0] if args else kwargs["input"])
        return func(*args, **kwargs)
