"""What a teacher says of a batch: a search shows it the same batch for every student."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

T = TypeVar("T")
KEPT = 8
"""Answers that are kept of a teacher; the oldest goes first."""

_SEEN: WeakKeyDictionary[nn.Module, dict[Hashable, tuple[Tensor, Tensor, Any]]] = WeakKeyDictionary()


def remembered(teacher: nn.Module, question: Hashable, images: Tensor, target: Tensor, work: Callable[[], T]) -> T:
    """The result of `work`, kept for when the teacher is asked the same question about the same batch again.

    For what does not depend on the teacher's own weights, which are not compared.
    """
    kept = _SEEN.setdefault(teacher, {})
    seen = kept.get(question)
    if seen is not None and torch.equal(seen[0], images) and torch.equal(seen[1], target):
        return seen[2]
    found = work()
    kept.pop(question, None)
    kept[question] = (images.clone(), target.clone(), found)
    while len(kept) > KEPT:
        kept.pop(next(iter(kept)))
    return found
