"""What a model looks like from outside: stages, embedding, classes. Measured in a dry run, never read off metadata."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kdsearch.kd_methods.dry_run import BATCH, Call, record
from kdsearch.kd_methods.signals import ModelSpec, StageSpec

BLOCKS = 4
"""Stages of a network whose resolution never changes: so many blocks, evenly spread."""

MOST_PREFIX_TOKENS = 8
"""Class, distillation and register tokens in front of the patches."""

Shape = tuple[int, ...]


def probe(model: nn.Module, input_shape: tuple[int, int, int]) -> ModelSpec:
    """The spec of any image classifier, from one forward pass over two images.

    Stages are the outermost modules whose output is the last at its resolution. Where the resolution never changes
    (vision transformers, mixers), four evenly spaced blocks are the stages. Outputs with channels last are
    recognised and reported as maps.

    Args:
        input_shape: channels, height, width.

    Raises:
        ValueError: the model does not answer with one row of logits per image.
    """
    root, calls, logits = record(model, input_shape)
    extents = _Extents(calls, int(getattr(model, "num_prefix_tokens", 0) or 0))
    classifier = _classifier(calls, logits)
    total = max(1, root.layers)
    stages = _stages(root, extents)
    return ModelSpec(
        stages=tuple(
            StageSpec(
                call.path,
                e.kind,
                e.channels,
                e.size,
                min(1.0, max(1, call.before) / total),
                e.prefix,
                *_attention(call, e),
            )
            for call, e in stages
        ),
        classes=logits.shape[1],
        input_shape=input_shape,
        embedding=None if classifier is None or classifier.given is None else classifier.given[1],
        parameters=sum(p.numel() for p in model.parameters()),
        classifier=None if classifier is None else classifier.path,
        map=_map(calls, classifier, extents, total),
        entrance=_entrance(calls, {extent for _, extent in stages}, extents),
    )


@dataclass(frozen=True)
class Extent:
    """What a shape means."""

    kind: str
    channels: int
    size: tuple[int, int]
    prefix: int = 0

    @property
    def area(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def key(self) -> tuple[str, tuple[int, int]]:
        return self.kind, self.size


class _Extents:
    """Reads shapes: which axis holds the channels, and how tokens lie on their grid."""

    def __init__(self, calls: list[Call], prefix_tokens: int) -> None:
        self.prefix_tokens = prefix_tokens
        # One layer with a known convention settles the axes for its shape; [2, 8, 8, 96] says it by its geometry.
        self.first, self.last = set[Shape](), set[Shape]()
        for call in calls:
            if call.got is not None and len(call.got) == 4 and not call.children:
                if isinstance(call.module, nn.Linear) or type(call.module) is nn.LayerNorm:
                    self.last.add(call.got)
                elif isinstance(call.module, nn.Conv2d | nn.BatchNorm2d | nn.MaxPool2d | nn.AvgPool2d):
                    self.first.add(call.got)
        self.grids = {e.size for c in calls if c.got is not None and len(c.got) == 4 and (e := self.of(c.got))}

    def of(self, shape: Shape | None) -> Extent | None:
        """The meaning of a shape; None for what is neither a map nor tokens, one per image."""
        if shape is None or shape[0] != BATCH:
            return None
        if len(shape) == 4:
            return self._map(shape)
        return self._tokens(shape) if len(shape) == 3 else None

    def _map(self, shape: Shape) -> Extent:
        _, a, b, c = shape
        by_geometry = a == b != c
        channels_last = shape not in self.first and (shape in self.last or by_geometry)
        return Extent("map", c, (a, b)) if channels_last else Extent("map", a, (b, c))

    def _tokens(self, shape: Shape) -> Extent:
        _, count, channels = shape
        fitting = [g for g in self.grids if count - MOST_PREFIX_TOKENS <= g[0] * g[1] <= count and min(g) > 1]
        if fitting:
            size = max(fitting, key=lambda g: (g[0] * g[1] == count - self.prefix_tokens, g[0] * g[1]))
        else:
            side = math.isqrt(count - self.prefix_tokens if count > self.prefix_tokens else count)
            if side * side + self.prefix_tokens != count:
                side = math.isqrt(count)
            size = (side, side)
        return Extent("token", channels, size, count - size[0] * size[1])


@dataclass(frozen=True)
class _Candidate:
    """An output on the way from image to logits.

    `share` counts the layers that work towards it: every layer is counted for the outermost output around it whose
    inside is all of one resolution.
    """

    call: Call
    extent: Extent
    nesting: int
    share: int

    @property
    def container(self) -> bool:
        return bool(self.call.children) and self.call.layers > 0


def _stages(root: Call, extents: _Extents) -> list[tuple[Call, Extent]]:
    trunk = _trunk(root, extents, None, 0)
    pooled = min((c.call.order for c in trunk if _pools(c, extents)), default=None)
    if pooled is not None:
        trunk = [c for c in trunk if c.call.order < pooled]
    weight: dict[str, int] = defaultdict(int)
    for candidate in trunk:
        weight[candidate.extent.kind] += candidate.share
    if not weight:
        return []
    kind = max(weight, key=lambda k: (weight[k], k == "map"))
    groups: dict[tuple[int, int], list[_Candidate]] = defaultdict(list)
    for candidate in trunk:
        if candidate.extent.kind == kind and candidate.call.last:
            groups[candidate.extent.size].append(candidate)
    layers = {size: sum(c.share for c in group) for size, group in groups.items()}
    widest = max(layers, key=lambda size: layers[size])
    # Class-attention transformers end in a few blocks on the class token alone.
    if len(groups) == 1 or (kind == "token" and layers[widest] >= 0.75 * sum(layers.values())):
        blocks = _blocks(root, extents, (kind, widest))
        if len(blocks) > 1:
            return blocks
    chosen: list[_Candidate] = []
    for group in sorted(groups.values(), key=lambda g: g[0].call.order):
        found = _end(group, [c.call for c in chosen])
        if found is not None:
            chosen.append(found)
    return [(c.call, c.extent) for c in sorted(chosen, key=lambda c: c.call.order)]


def _trunk(call: Call, extents: _Extents, around: Extent | None, nesting: int) -> list[_Candidate]:
    """Outputs along the way, side branches left out: those are smaller than what follows beside or around them."""
    found: list[_Candidate] = []
    for k, child in enumerate(call.children):
        extent, given = extents.of(child.got), extents.of(child.given)
        if extent is not None:
            after = [extents.of(later.got) for later in call.children[k + 1 :] if later.layers]
            if any(e is not None and e.area > extent.area for e in (around, *after)):
                continue
        inner: list[_Candidate] = []
        if extent is None or given is None or given.key != extent.key:
            inner = _trunk(child, extents, extent, nesting + 1)
        if extent is not None:
            uniform = all(c.extent.size == extent.size for c in inner)
            inner = [replace(c, share=0) for c in inner] if uniform else inner
            found.append(_Candidate(child, extent, nesting, child.layers if uniform else 0))
        found += inner
    return found


def _pools(candidate: _Candidate, extents: _Extents) -> bool:
    """Whether this is the global pooling, after which maps are vectors in disguise."""
    given = extents.of(candidate.call.given)
    name = type(candidate.call.module).__name__.lower()
    shrinks = candidate.extent.area == 1 and given is not None and given.area > 1
    return shrinks and candidate.call.layers == 0 and ("adaptive" in name or "global" in name)


def _end(group: list[_Candidate], chosen: list[Call]) -> _Candidate | None:
    """The output that ends a resolution: the last at the nesting of the module that holds most of its layers.

    So a stage wins over a stem, and over the first half of the block that leads to the next resolution. None where
    nothing at this resolution has a weight (a final pooling).
    """

    def holds_a_stage(call: Call) -> bool:
        return any(inner in chosen for inner in call.descendants())

    free = [c for c in group if not holds_a_stage(c.call)]
    found = [c for c in free if c.container]
    if not found:
        if not any(c.call.layers and not c.call.children for c in free):
            return None
        found = [c for c in free if not isinstance(c.call.module, nn.Identity | nn.Dropout | nn.Dropout2d)]
        nesting = min(c.nesting for c in found)
    else:
        nesting = max(found, key=lambda c: (c.call.layers, -c.nesting)).nesting
    return max((c for c in found if c.nesting == nesting), key=lambda c: c.call.order)


def _blocks(root: Call, extents: _Extents, key: tuple[str, tuple[int, int]]) -> list[tuple[Call, Extent]]:
    """Evenly spaced blocks: of all sets of like siblings at this resolution, the set with the most layers."""
    best: list[tuple[Call, Extent]] = []
    most = 0
    for parent in (root, *root.descendants()):
        alike: dict[tuple[type, Extent, int], list[tuple[Call, Extent]]] = defaultdict(list)
        for child in parent.children:
            extent = extents.of(child.got)
            if extent is not None and extent.key == key and child.children and child.layers and child.last:
                alike[type(child.module), extent, child.layers].append((child, extent))
        for run in alike.values():
            layers = sum(call.layers for call, _ in run)
            if len(run) > 1 and layers > most:
                best, most = run, layers
    if len(best) <= BLOCKS:
        return best
    return [best[math.ceil((k + 1) * len(best) / BLOCKS) - 1] for k in range(BLOCKS)]


def _attention(stage: Call, extent: Extent) -> tuple[str, int, int]:
    """Path, heads and width of a head of the last self-attention over all tokens of the stage; "", 0, 0 if none.

    It is known by a linear layer `qkv` for queries, keys and values, and by `num_heads`. Windows and class attention
    have other tokens than the stage, and do not count.
    """
    found = "", 0, 0
    if extent.kind != "token":
        return found
    for call in stage.descendants():
        outer = call.parent
        if outer is None or getattr(outer.module, "qkv", None) is not call.module or call.got is None:
            continue
        heads = getattr(outer.module, "num_heads", None)
        if not isinstance(call.module, nn.Linear) or not isinstance(heads, int):
            continue
        if call.got[:2] == (BATCH, extent.prefix + extent.area) and call.got[2] % (3 * heads) == 0:
            found = outer.path, heads, call.got[2] // (3 * heads)
    return found


def _entrance(calls: list[Call], stages: set[Extent], extents: _Extents) -> str | None:
    """The layer at which the tokens of all stages can be thinned.

    timm's transformers have one for dropping patches, `patch_drop`, which does nothing unless it is asked to.
    """
    if len(stages) != 1 or next(iter(stages)).kind != "token":
        return None
    for call in calls:
        idle = isinstance(call.module, nn.Identity) and call.path.rpartition(".")[2] == "patch_drop"
        if idle and call.last and extents.of(call.got) in stages:
            return call.path
    return None


def _map(calls: list[Call], classifier: Call | None, extents: _Extents, total: int) -> StageSpec | None:
    """The output whose mean over positions enters the classifier: the largest such, the latest where several are."""
    if classifier is None or classifier.entered is None:
        return None
    wanted = classifier.entered
    found: list[tuple[int, int, Call, Extent]] = []
    for call in calls:
        extent = extents.of(call.got)
        if extent is None or extent.prefix or extent.channels != wanted.shape[1] or not call.last:
            continue
        if any(
            mean.shape == wanted.shape and torch.allclose(mean, wanted, rtol=1e-4, atol=1e-6) for mean in call.means
        ):
            found.append((extent.area, call.order, call, extent))
    if not found:
        return None
    _, _, call, e = max(found, key=lambda f: f[:2])
    return StageSpec(call.path, e.kind, e.channels, e.size, min(1.0, max(1, call.before) / total))


def _classifier(calls: list[Call], logits: Tensor) -> Call | None:
    """The linear layer (or 1×1 convolution of a pooled map) that gives the logits."""
    found = [c for c in calls if c.last and c.value is not None and c.value.shape[:2] == logits.shape]
    for call in found:
        if call.value is logits:
            return call
    # A distilled transformer answers with the average of its heads, one of which may serve twice; the class head is
    # the first.
    heads = [c for c in calls if c.value is not None and c.value.shape[:2] == logits.shape]
    for k in range(2, len(heads) + 1):
        answers = torch.stack([c.value.flatten(1) for c in heads[-k:] if c.value is not None])
        if torch.allclose(answers.mean(0), logits):
            return heads[-k]
    values = [c.value.flatten(1) for c in found if c.value is not None]
    for call, value in zip(reversed(found), reversed(values), strict=True):
        if torch.equal(value, logits):
            return call
    return found[-1] if found else None
