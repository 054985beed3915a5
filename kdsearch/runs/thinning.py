"""Thinning: a random structured mask on the student, applied for good, so that a cheap trial costs less for true.

The mask of AutoKD's cheap trials keeps a share of the channels. Zeroed channels would cost as much as live ones, so
they are left out: by the family's own constructor where it has one for the width, else by cutting them out of the
built network.
"""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch.kd_methods.dry_run import evaluating
from kdsearch.kd_methods.probe import probe
from kdsearch.runs.deadline import deadline
from kdsearch.runs.fidelity import Keep
from kdsearch.search_space.students.family import StudentFamily
from kdsearch.search_space.students.measure import macs
from kdsearch.search_space.students.transforms import StudentTransform

InputShape = tuple[int, int, int]


@dataclass(frozen=True)
class Thinned:
    """How a student is thinned: by another constructor call, or as a cut network to copy; and why not, where not."""

    narrow: StudentFamily | None
    model: nn.Module | None
    note: str = ""


HELD = 1 << 26
"""Weights of all cut students together that are kept for the trials to come."""
_known: OrderedDict[Hashable, Thinned] = OrderedDict()


def thin(
    family: StudentFamily,
    transform: StudentTransform,
    input_shape: InputShape,
    classes: int,
    keep: Keep,
    seed: int,
    *,
    branches: frozenset[str] = frozenset(),
    time_limit: float = 20.0,
) -> tuple[nn.Module, str]:
    """The student with about `keep` of its channels, and a note: empty, or why this is the full student after all.

    The weights and the choice of channels are functions of `seed`; the global random state is left as it was. The
    classifier keeps its classes. A thinned student has run once and costs fewer multiply-accumulates than the full one.
    Trials of a search share students and seed, so that what has been found out about one is kept: to cut a large
    network, or to find that it cannot be cut, takes longer than a short trial.

    Args:
        keep: share of the channels, in (0, 1]; several are spread evenly over the stages, in order.
        time_limit: processor seconds after which cutting channels out of a built network is given up.

    Raises:
        ValueError: `keep` outside (0, 1], or a student that cannot be built at all.
    """
    shares = keep if isinstance(keep, tuple) else (keep,)
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"keep must lie in (0, 1], not {keep!r}")
    if len(set(shares)) == 1:
        keep = shares[0]

    def build(of: StudentFamily) -> nn.Module:
        with _seeded(seed):
            return transform.apply(of.build(input_shape, classes, branches=branches))

    if keep == 1:
        return build(family), ""
    key = (
        *(type(family), tuple(family.hyper.items()), type(transform), tuple(transform.hyper.items())),
        *(input_shape, classes, keep, seed, branches, time_limit),
    )
    if key not in _known:
        _keep(key, _thinned(family, build, input_shape, classes, keep, seed, time_limit))
    _known.move_to_end(key)
    found = _known[key]
    if found.model is not None:
        return copy.deepcopy(found.model), ""
    return build(found.narrow or family), found.note


def _keep(key: Hashable, found: Thinned) -> None:
    """Remember it, and forget what was used longest ago where that makes too many weights."""
    _known[key] = found
    for old in list(_known)[:-1]:
        models = (known.model for known in _known.values() if known.model is not None)
        if sum(p.numel() for model in models for p in model.parameters()) <= HELD:
            return
        del _known[old]


def _thinned(
    family: StudentFamily,
    build: Callable[[StudentFamily], nn.Module],
    input_shape: InputShape,
    classes: int,
    keep: Keep,
    seed: int,
    time_limit: float,
) -> Thinned:
    limit = macs(build(family), input_shape)
    # A constructor knows one width; what each stage keeps is cut out.
    narrow = None if isinstance(keep, tuple) else family.thinned(keep)
    if narrow is not None:
        with suppress(ValueError):  # the transform may not divide the fewer channels
            _check(build(narrow), input_shape, classes, limit)
            return Thinned(narrow, None)
    try:
        model = _cut(build(family), input_shape, keep, seed, time_limit)
        _check(model, input_shape, classes, limit)
        return Thinned(None, model)
    except TimeoutError:
        reason = f"cutting out its channels took more than {time_limit:g} s"
    except Exception as error:  # whatever a foreign network makes of being cut, the full one still works
        reason = (str(error) or type(error).__name__).splitlines()[0]
    return Thinned(None, None, f"student {family.name} was not thinned: {reason}")


def _check(model: nn.Module, input_shape: InputShape, classes: int, limit: int) -> None:
    """Run it once.

    Raises:
        ValueError: it lost a class, or costs no less than `limit` multiply-accumulates.
    """
    left = probe(model, input_shape).classes
    if left != classes:
        raise ValueError(f"{left} of {classes} classes are left")
    if macs(model, input_shape) >= limit:
        raise ValueError("it does not become cheaper")


def _cut(model: nn.Module, input_shape: InputShape, keep: Keep, seed: int, time_limit: float) -> nn.Module:
    """`model` without a random 1 - keep of the channels of every layer but the classifier.

    Layers whose channels are tied, by a residual sum say, lose the same ones: as many as the first of them says.

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
    with _seeded(seed), deadline(time_limit) as in_time, evaluating(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            model,
            torch.zeros(1, *input_shape),
            importance=importance,
            pruning_ratio=1 - (keep[0] if isinstance(keep, tuple) else keep),
            pruning_ratio_dict=_ratios(model, input_shape, keep) if isinstance(keep, tuple) else {},
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


def _ratios(model: nn.Module, input_shape: InputShape, keep: tuple[float, ...]) -> dict[Any, float]:
    """The share that is cut out of each layer: a layer belongs to the first stage that does not end before it."""
    paths = [stage.path for stage in probe(model, input_shape).stages]
    ratios: dict[Any, float] = {}
    k, entered = 0, False
    for path, module in model.named_modules():
        inside = path == paths[k] or path.startswith(paths[k] + ".")
        if entered and not inside and k + 1 < len(paths):
            k += 1
            inside = path == paths[k] or path.startswith(paths[k] + ".")
        entered = inside
        if isinstance(module, nn.Conv2d | nn.Linear):
            ratios[module] = 1 - keep[k * len(keep) // len(paths)]
    return ratios


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
