"""Thinning: a random structured mask on the student, applied for good, so that a cheap trial costs less for true.

The mask of AutoKD's cheap trials keeps a share of the channels. Zeroed channels would cost as much as live ones, so
they are left out: by the family's own constructor where it has one for the width, else by cutting them out of the
built network.
"""

from __future__ import annotations

import inspect
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch.kd_methods.dry_run import evaluating
from kdsearch.kd_methods.probe import probe
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
        with suppress(ValueError):  # the transform may not divide the fewer channels
            return _checked(build(narrow), input_shape, classes, limit), ""
    try:
        model = _cut(build(family), input_shape, keep, seed, time_limit)
        return _checked(model, input_shape, classes, limit), ""
    except TimeoutError:
        reason = f"cutting out its channels took more than {time_limit:g} s"
    except Exception as error:  # whatever a foreign network makes of being cut, the full one still works
        reason = (str(error) or type(error).__name__).splitlines()[0]
    return full, f"student {family.name} was not thinned: {reason}"


def _checked(model: nn.Module, input_shape: InputShape, classes: int, limit: int) -> nn.Module:
    """The model itself, after one run.

    Raises:
        ValueError: it lost a class, or costs no less than `limit` multiply-accumulates.
    """
    left = probe(model, input_shape).classes
    if left != classes:
        raise ValueError(f"{left} of {classes} classes are left")
    if macs(model, input_shape) >= limit:
        raise ValueError("it does not become cheaper")
    return model


def _cut(model: nn.Module, input_shape: InputShape, keep: float, seed: int, time_limit: float) -> nn.Module:
    """`model` without a random 1 - keep of the channels of every layer but the classifier.

    Raises:
        TimeoutError: not done in time.
    """
    import torch_pruning

    generator = torch.Generator().manual_seed(seed)

    def importance(group: Any, **_: Any) -> Tensor:
        in_time()
        return torch.rand(len(group[0].idxs), generator=generator)

    attention: list[Any] = [
        part
        for part in model.modules()
        if isinstance(getattr(part, "qkv", None), nn.Linear) and isinstance(getattr(part, "num_heads", None), int)
    ]
    with _seeded(seed), _deadline(time_limit) as in_time, evaluating(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            model,
            torch.zeros(1, *input_shape),
            importance=importance,
            pruning_ratio=1 - keep,
            ignored_layers=_classifiers(model, input_shape),
            num_heads={part.qkv: part.num_heads for part in attention},
            # The library's own defaults are dictionaries that it fills and shares between calls.
            in_channel_groups={},
            out_channel_groups={},
        )
        for group in pruner.step(interactive=True):
            in_time()
            group.prune()
    for part in attention:
        part.head_dim = part.qkv.out_features // 3 // part.num_heads
        part.attn_dim = part.head_dim * part.num_heads
        part.scale = part.head_dim**-0.5
    return model


def _classifiers(model: nn.Module, input_shape: InputShape) -> list[nn.Module]:
    """The layers whose outputs are classes: the one that gives the logits, and others of its kind beside it."""
    spec = probe(model, input_shape)
    if spec.classifier is None:
        return []
    last: Any = model.get_submodule(spec.classifier)
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.shape == last.weight.shape] + [last]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield


@contextmanager
def _deadline(seconds: float) -> Iterator[Callable[[], None]]:
    """Raises TimeoutError in this thread once the time is over, at a function call of whatever code is running.

    Foreign code offers no other place to stop it. Gives a function that checks the time as well, for where an exception
    raised so is swallowed (by a generator that is being closed, say), since that ends the watch.
    """
    end = time.monotonic() + seconds
    before = sys.getprofile()

    def check() -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"not done within {seconds:g} s")

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and not frame.f_code.co_flags & inspect.CO_GENERATOR:
            check()

    sys.setprofile(watch)
    try:
        yield check
    finally:
        sys.setprofile(before)
