"""Thinning: a random structured mask on the student, applied for good, so that a cheap trial costs less for true.

The mask of AutoKD's cheap trials keeps a share of the channels. Zeroed channels would cost as much as live ones, so
they are left out: by the family's own constructor where it has one for the width, else by cutting them out of the
built network.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch.kd_methods.tap import probe
from kdsearch.search_space.students.family import StudentFamily
from kdsearch.search_space.students.measure import macs
from kdsearch.search_space.students.transforms import StudentTransform

InputShape = tuple[int, int, int]


def thin(
    family: StudentFamily,
    transform: StudentTransform,
    input_shape: InputShape,
    classes: int,
    keep: float,
    seed: int,
    *,
    branches: frozenset[str] = frozenset(),
    time_limit: float = 20.0,
) -> tuple[nn.Module, str]:
    """The student with about `keep` of its channels, and a note: empty, or why this is the full student after all.

    The weights and the choice of channels are functions of `seed`; the global random state is left as it was. The
    classifier keeps its classes. A thinned student has run once and costs fewer multiply-accumulates than the full one.

    Args:
        keep: share of the channels, in (0, 1].
        time_limit: seconds after which cutting channels out of a built network is given up.

    Raises:
        ValueError: `keep` outside (0, 1], or a student that cannot be built at all.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must lie in (0, 1], not {keep!r}")

    def build(of: StudentFamily) -> nn.Module:
        with _seeded(seed):
            return transform.apply(of.build(input_shape, classes, branches=branches))

    full = build(family)
    if keep == 1:
        return full, ""
    limit = macs(full, input_shape)
    narrow = family.thinned(keep)
    if narrow is not None:
        try:
            model = build(narrow)
        except ValueError:  # the transform may not divide the fewer channels
            model = None
        if model is not None and _costs_less(model, input_shape, classes, limit):
            return model, ""
    try:
        model = _cut(build(family), input_shape, keep, seed, time_limit)
        if _costs_less(model, input_shape, classes, limit):
            return model, ""
        reason = "it would not have become cheaper"
    except TimeoutError:
        reason = f"cutting out its channels took more than {time_limit:g} s"
    except Exception as error:  # whatever a foreign network makes of being cut, the full one still works
        reason = (str(error) or type(error).__name__).splitlines()[0]
    return full, f"student {family.name} was not thinned: {reason}"


def _costs_less(model: nn.Module, input_shape: InputShape, classes: int, limit: int) -> bool:
    try:
        return probe(model, input_shape).classes == classes and macs(model, input_shape) < limit
    except (RuntimeError, ValueError):
        return False


def _cut(model: nn.Module, input_shape: InputShape, keep: float, seed: int, time_limit: float) -> nn.Module:
    """`model` without a random 1 - keep of the channels of every layer but the classifier.

    Raises:
        TimeoutError: not done in time.
    """
    import torch_pruning

    generator = torch.Generator().manual_seed(seed)

    def importance(group: Any, **_: Any) -> Tensor:
        return torch.rand(len(group[0].idxs), generator=generator)

    fixed = [model.get_submodule(path) for path in _classifiers(model, input_shape)]
    heads = {
        part.qkv: part.num_heads
        for part in model.modules()
        if isinstance(getattr(part, "qkv", None), nn.Linear) and isinstance(getattr(part, "num_heads", None), int)
    }
    modes = {name: part.training for name, part in model.named_modules()}
    with _seeded(seed), _deadline(time_limit), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.eval()
        pruner = torch_pruning.pruner.BasePruner(
            model,
            torch.zeros(1, *input_shape),
            importance=importance,
            pruning_ratio=1 - keep,
            ignored_layers=fixed,
            num_heads=heads,
        )
        pruner.step()
    for name, part in model.named_modules():
        part.training = modes.get(name, True)
        if isinstance(getattr(part, "qkv", None), nn.Linear) and part.qkv in pruner.num_heads:
            part.num_heads = pruner.num_heads[part.qkv]
            part.head_dim = part.qkv.out_features // 3 // part.num_heads
    return model
