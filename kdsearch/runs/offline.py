"""The offline teacher: one memory-mapped file per signal, filled on first use and shared by every trial.

A file is addressed by what made it (teacher, data, view policy, seed) and its description is checked when it is
opened. Rows are written before their flag is set, so that a process killed at any moment, or a neighbour that fills
the same rows, leaves a cache that is right.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods import ModelSpec, Need, Signals
from kdsearch.kd_methods.soft_labels import SoftLabels
from kdsearch.kd_methods.sparse import Visible
from kdsearch.runs.data import Data, Step
from kdsearch.runs.network import Network
from kdsearch.runs.views import ViewSpec
from kdsearch.search_space.recipe import content_hash

CACHED, LIVE, PARAMETERS = "cached", "live", "parameters"
NEVER_STORED = frozenset(
    {
        Need.INPUT,
        Need.INPUT_GRADIENT,
        Need.ATTENTION_GRADIENT,
        Need.DISTILLATION_HEAD,
        Need.TOKEN_HEADS,
        Need.PATCH_LOGITS,
        Need.QKV,
    }
)
AT_ONCE = 1 << 20  # views that are listed together when a store is filled
SUFFIXES = {"float16": ".f16", "int16": ".i16", "int32": ".i32"}

Views = int | np.ndarray
"""A view index for all rows, or one for each."""

Relabel = Callable[[Tensor, "int | Tensor", Tensor, Tensor], Tensor]
"""(ids, view, log-probabilities, labels) -> log-probabilities to learn from."""


@dataclass(frozen=True)
class Supply:
    """The planner's decision: how each signal is supplied, and what the cached ones take on disk when full.

    Attributes:
        shapes: of a row of each stored signal; `types` says which of them are not float16.
        labels: how logits are stored and handed on, where the data method says so.
    """

    how: dict[Need, str]
    shapes: dict[str, tuple[int, ...]]
    views: int
    bytes: int
    types: dict[str, str] = field(default_factory=dict)
    labels: SoftLabels | None = None
    classes: int = 0

    @property
    def live(self) -> bool:
        return LIVE in self.how.values()

    def describe(self) -> str:
        parts = [f"{need.value} {how}" for need, how in self.how.items()] or ["asked beside the batch alone"]
        if not self.shapes:
            return ", ".join(parts)
        kinds = " and ".join(sorted({self.types.get(name, "float16") for name in self.shapes}))
        size = f"; {self.views} views in {kinds}, {self.bytes / 2**20:.1f} MiB when full"
        labels = f"; {self.labels.describe(self.classes, self.views)}" if self.labels is not None else ""
        return ", ".join(parts) + size + labels


def plan_supply(
    needs: frozenset[Need],
    spec: ModelSpec,
    stages: list[int],
    *,
    samples: int,
    views: int,
    limit: int,
    labels: SoftLabels | None = None,
) -> Supply:
    """Cache what fits the limit (logits first), take the rest from a live teacher in the same step.

    A recipe that needs any live signal takes all of them from that one pass: the stored ones would only be read twice.
    Input gradients depend on the label, queries, keys and values are larger than what they are made of: both are always
    live. Graded labels are always stored, and then alone.

    Raises:
        TrialFailure: graded labels do not fit the limit ("invalid").
    """
    graded = labels is not None and labels.graded and Need.LOGITS in needs
    columns = labels.columns(spec.classes) if labels is not None and Need.LOGITS in needs else {}
    types = {name: kind for name, (kind, _) in columns.items()}
    how: dict[Need, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    total = 0
    for need in sorted(needs, key=lambda n: (n is not Need.LOGITS, n is not Need.EMBEDDING, n.value)):
        if need is Need.CLASSIFIER:
            how[need] = PARAMETERS
            continue
        if need in NEVER_STORED or (graded and need is not Need.LOGITS):
            how[need] = LIVE
            continue
        if need is Need.LOGITS and columns:
            wanted = {name: shape for name, (_, shape) in columns.items()}
        else:
            wanted = _shapes(need, spec, stages)
        size = sum(_bytes(shape, types.get(name)) for name, shape in wanted.items()) * samples * views
        if total + size <= limit:
            how[need], total = CACHED, total + size
            shapes |= wanted
        elif graded:
            raise TrialFailure(
                "invalid",
                f"the labels of {views} crops of each image take {size / 2**20:.0f} MiB and fidelity.cache_limit_mib "
                f"is {limit / 2**20:.0f}; store fewer crops, or raise the limit",
            )
        else:
            how[need] = LIVE
    if LIVE in how.values() and not graded:
        how = {need: PARAMETERS if h == PARAMETERS else LIVE for need, h in how.items()}
        shapes, total = {}, 0
    types = {name: types[name] for name in shapes if name in types}
    return Supply(how, shapes, views, total, types, labels if columns else None, spec.classes)


def _bytes(shape: tuple[int, ...], kind: str | None) -> int:
    return int(np.prod(shape)) * np.dtype(kind or "float16").itemsize


def _shapes(need: Need, spec: ModelSpec, stages: list[int]) -> dict[str, tuple[int, ...]]:
    if need is Need.LOGITS:
        return {"logits": (spec.classes,)}
    if need is Need.EMBEDDING:
        return {"embedding": (spec.embedding or 0,)}
    if need is Need.MAP:
        assert spec.map is not None  # a method that reads a map is not bound to a model without one
        return {"map": (spec.map.channels, *spec.map.size)}
    out: dict[str, tuple[int, ...]] = {}
    for k in stages:
        stage = spec.stages[k]
        positions = stage.size[0] * stage.size[1]
        shape = (stage.channels, *stage.size) if stage.kind == "map" else (positions + stage.prefix, stage.channels)
        out[f"{need.value}-{k}"] = shape
    return out


class Store:
    """Stored rows of one signal: [views, samples, ...] of one type, and a flag for each row."""

    def __init__(
        self,
        folder: Path,
        name: str,
        shape: tuple[int, ...],
        views: int,
        samples: int,
        maker: dict[str, Any],
        kind: str = "float16",
    ) -> None:
        description = {
            "signal": name,
            "shape": list(shape),
            "type": kind,
            "views": views,
            "samples": samples,
            "maker": maker,
        }
        base = folder / f"{name}-{content_hash(description)}"
        meta, rows, flags = (base.with_suffix(s) for s in (".json", SUFFIXES[kind], ".done"))
        sizes = {rows: views * samples * _bytes(shape, kind), flags: views * samples}
        if meta.exists() and not _intact(meta, description, sizes):
            for path in (meta, rows, flags):
                path.unlink(missing_ok=True)
        if not meta.exists():
            folder.mkdir(parents=True, exist_ok=True)
            for path, size in sizes.items():
                with open(path, "ab") as file:  # never shortens what a neighbour has begun
                    file.truncate(size)
            partial = meta.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(description))
            partial.replace(meta)
        self.type: torch.dtype = getattr(torch, kind)
        self.rows = np.memmap(rows, dtype=kind, mode="r+", shape=(views, samples, *shape))
        self.done = np.memmap(flags, dtype=np.uint8, mode="r+", shape=(views, samples))

    def absent(self, view: Views, ids: np.ndarray) -> np.ndarray:
        """Which rows [B] are still to be written."""
        return self.done[view, ids] == 0

    def missing(self, view: Views, ids: np.ndarray) -> bool:
        return bool(self.absent(view, ids).any())

    def read(self, view: Views, ids: np.ndarray, device: torch.device) -> Tensor:
        rows = torch.from_numpy(np.asarray(self.rows[view, ids])).to(device)
        return rows.float() if rows.is_floating_point() else rows

    def write(self, view: Views, ids: np.ndarray, values: Tensor) -> None:
        self.rows[view, ids] = values.detach().to("cpu", self.type).numpy()
        self.done[view, ids] = 1


def _intact(meta: Path, description: dict[str, Any], sizes: dict[Path, int]) -> bool:
    try:
        stored = json.loads(meta.read_text())
    except (OSError, ValueError):
        return False
    return stored == description and all(p.is_file() and p.stat().st_size == size for p, size in sizes.items())


class FixedTeacher:
    """A frozen network's signals for the views of one training: stored where planned, live where not.

    `relabel`, where a curriculum sets it, changes the labels that are read for the student to learn from.
    """

    relabel: Relabel | None = None

    def __init__(
        self, network: Network, spec: ModelSpec, supply: Supply, needs: frozenset[Need], stages: list[int]
    ) -> None:
        self.network, self.spec, self.supply, self.stages = network, spec, supply, stages
        self.needs = needs
        self.stores: dict[str, Store] = {}
        # Labels that are kept in full lie in the store of logits, and are logits.
        self.labels = None if supply.labels is None or supply.labels.plain else supply.labels

    def open(self, folder: Path, samples: int, maker: dict[str, Any]) -> None:
        """Open or make the files of the cached signals."""
        for name, shape in self.supply.shapes.items():
            kind = self.supply.types.get(name, "float16")
            own = maker
            if self.labels is not None and name in ("label_index", "label_value"):
                own = {**maker, "labels": [self.labels.kind, self.labels.k]}
            self.stores[name] = Store(folder, name, shape, self.supply.views, samples, own, kind)

    def listen(self) -> None:
        self.network.module.eval()
        self.network.listen(self.needs, self.spec, self.stages)

    def live(self, images: Tensor, target: Tensor | None, visible: Visible | None = None) -> Signals:
        """One frozen pass over these very images, or over what is visible of them."""
        with torch.no_grad():
            return self.network(images, target, visible=visible).detach()

    def __call__(self, step: Step) -> Signals:
        """The signals of a step's views: none where all that is read lies beside the batch."""
        if not self.supply.how:
            return Signals(step.images.new_empty(len(step.images), 0))
        if not self.stores:
            signals = self.live(step.images, step.target)
            if self.labels is not None:
                # What is not stored has still the coarseness of what would be.
                signals.logits = self.labels.decode(self.labels.encode(signals.logits), self.spec.classes)
            return signals
        values = self._stored(step)
        signals = self.live(step.images, step.target) if self.supply.live else self._assemble(values)
        if self.labels is not None:
            signals.logits = self._soft(step, values)
        return signals

    def fill(self, data: Data, ids: Tensor, spec: ViewSpec, batch_size: int) -> None:
        """Store the signals of all views of these samples, as far as they are not there yet."""
        views = torch.arange(self.supply.views, device=ids.device)
        for part in ids.split(max(1, AT_ONCE // self.supply.views)):
            rows = part.cpu().numpy()
            if not any(store.missing(v, rows) for store in self.stores.values() for v in range(self.supply.views)):
                continue
            # All views of an image stand together, so that it is decoded once.
            images, shown = part.repeat_interleave(len(views)), views.repeat(len(part))
            whole = len(images) - len(images) % batch_size
            for cut in (slice(0, whole), slice(whole, None)):
                if len(images[cut]):
                    for step in data.steps(images[cut], shown[cut], batch_size, spec):
                        self._stored(step)

    def confidence(self, ids: Tensor) -> Tensor:
        """The largest probability of every stored view of these samples, [V, M]; needs graded labels, filled."""
        rows = np.asarray(self.stores["label_confidence"].rows[:, ids.cpu().numpy(), 0])
        return torch.from_numpy(rows).to(ids.device).float()

    def _stored(self, step: Step) -> dict[str, Tensor]:
        """Rows of every store for a step, written first where they are missing.

        Images that the training has changed are answered live, and their answers are not stored.
        """
        view, ids = self._view(step.view), step.ids.cpu().numpy()
        changed = None if step.changed is None else step.changed.cpu().numpy()
        absent = np.zeros(len(ids), dtype=bool)
        for store in self.stores.values():
            absent |= store.absent(view, ids)
        # Boxes of another view make another image: it may stand in for a missing row, not fill it.
        foreign = absent & (step.mates[1] < 1).cpu().numpy() if step.mates is not None else np.zeros_like(absent)
        foreign = foreign if changed is None else foreign | changed
        wanted = absent | foreign
        fresh: dict[str, Tensor] = {}
        if wanted.any():
            rows = torch.from_numpy(wanted.nonzero()[0]).to(step.images.device)
            every = len(rows) == len(ids)
            images, target = ((t if every else t[rows]) for t in (step.images, step.target))
            signals = self.live(images, target)
            own = wanted & ~foreign
            keep = torch.from_numpy(own[wanted]).to(step.images.device)
            for name, value in self._columns(signals).items():
                self.stores[name].write(view if isinstance(view, int) else view[own], ids[own], value[keep])
                fresh[name] = value[~keep]
        # Read back even what was just written: every trial sees the same float16 values, the first one too.
        values = {name: store.read(view, ids, step.images.device) for name, store in self.stores.items()}
        if foreign.any():
            rows = torch.from_numpy(foreign.nonzero()[0]).to(step.images.device)
            for name, value in fresh.items():
                values[name][rows] = value.to(values[name].dtype)
        return values

    def _view(self, view: int | Tensor) -> Views:
        return view % self.supply.views if isinstance(view, int) else (view % self.supply.views).cpu().numpy()

    def _columns(self, signals: Signals) -> dict[str, Tensor]:
        """What the stores hold of these signals."""
        labels = self.labels.encode(signals.logits) if self.labels is not None else {}
        return {name: labels[name] if name in labels else _field(signals, name, self.stages) for name in self.stores}

    def _soft(self, step: Step, values: dict[str, Tensor]) -> Tensor:
        """The labels of a step as log-probabilities, changed and mixed as the curriculum says."""
        own = self._label(step, step.view, values)
        if step.mates is None:
            return own
        other, share = step.mates
        view, ids = self._view(other), step.ids.cpu().numpy()
        read = {name: self.stores[name].read(view, ids, step.images.device) for name in values}
        share = share[:, None]
        return torch.logaddexp(own + share.log(), self._label(step, other, read) + (1 - share).log())

    def _label(self, step: Step, view: int | Tensor, values: dict[str, Tensor]) -> Tensor:
        assert self.labels is not None
        label = self.labels.decode(values, self.spec.classes)
        return label if self.relabel is None else self.relabel(step.ids, view, label, step.target)

    def _assemble(self, values: dict[str, Tensor]) -> Signals:
        logits = values.get("logits")
        some = next(iter(values.values()))
        return Signals(
            logits=logits if logits is not None else some.new_zeros(len(some), 0),
            features=[values[f"features-{k}"] for k in self.stages if f"features-{k}" in values],
            preact=[values[f"preact-{k}"] for k in self.stages if f"preact-{k}" in values],
            embedding=values.get("embedding"),
            map=values.get("map"),
            classifier=self._classifier() if Need.CLASSIFIER in self.needs else None,
        )

    def _classifier(self) -> tuple[Tensor, Tensor | None]:
        """The teacher's classifier itself: parameters are never stored twice."""
        assert self.spec.classifier is not None
        layer: Any = self.network.module.get_submodule(self.spec.classifier)
        return layer.weight.flatten(1), layer.bias


def _field(signals: Signals, name: str, stages: list[int]) -> Tensor:
    if "-" not in name:
        value = getattr(signals, name)
        assert value is not None
        return value
    kind, stage = name.split("-")
    return getattr(signals, kind)[stages.index(int(stage))]
