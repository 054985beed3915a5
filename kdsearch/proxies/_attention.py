"""Attention that gives every token the same weight, whatever the queries and keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

SOFTMAX = (torch.softmax, torch.nn.functional.softmax, Tensor.softmax)


class AveragingAttention(TorchFunctionMode):
    """While entered, softmax is uniform and scaled dot-product attention is the mean of the values.

    Calls of torch functions are answered in this thread only; the model stays as it is.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in SOFTMAX:
            weights, dim = args[0], kwargs.get("dim", args[1] if len(args) > 1 else -1)
            return torch.full_like(weights, 1.0 / weights.shape[dim])
        if func is F.scaled_dot_product_attention:
            query, value = args[0], args[2] if len(args) > 2 else kwargs["value"]
            return value.mean(-2, keepdim=True).expand(*value.shape[:-2], query.shape[-2], value.shape[-1])
        if func is F.multi_head_attention_forward:  # answered whole: what it calls does not come by here
            width, projection, bias = args[3], args[5], args[6]
            args = (*args[:5], _values_only(projection, width), _values_only(bias, width), *args[7:])
        return func(*args, **kwargs)


def _values_only(stacked: Tensor | None, width: int) -> Tensor | None:
    """A stacked projection of queries, keys and values, the first two of them zero."""
    if stacked is None:
        return None
    return torch.cat([torch.zeros_like(stacked[: 2 * width]), stacked[2 * width :]])
