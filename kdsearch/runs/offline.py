"""The offline teacher: one memory-mapped file per signal, filled on first use and shared by every trial.

A file is addressed by what made it (teacher, data, view policy, seed) and its description is checked when it is
opened. Rows are written before their flag is set, so that a process killed at any moment, or a neighbour that fills
the same rows, leaves a cache that is right.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdsearch.kd_methods import ModelSpec, Need, Signals
from kdsearch.runs.data import Step
from kdsearch.runs.network import Network
from kdsearch.search_space.recipe import content_hash

CACHED, LIVE, PARAMETERS = "cached", "live", "parameters"
BYTES = 2  # float16


@dataclass(frozen=True)
class Supply:
    """The planner's decision: how each signal is supplied, and what the cached ones take on disk when full."""

    how: dict[Need, str]
    shapes: dict[str, tuple[int, ...]]
    views: int
    bytes: int

    @property
    def live(self) -> bool:
        return LIVE in self.how.values()

    def describe(self) -> str:
        parts = [f"{need.value} {how}" for need, how in self.how.items()]
        size = f"; {self.views} views in float16, {self.bytes / 2**20:.1f} MiB when full" if self.shapes else ""
        return ", ".join(parts) + size


def plan_supply(
    needs: frozenset[Need], spec: ModelSpec, stages: list[int], *, samples: int, views: int, limit: int
) -> Supply:
    """Cache what fits the limit (logits first), take the rest from a live teacher in the same step.

    A recipe that needs any live signal takes all of them from that one pass: the stored ones would only be read twice.
    Input gradients depend on the label and are always live.
    """
    how: dict[Need, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    total = 0
    for need in sorted(needs, key=lambda n: (n is not Need.LOGITS, n is not Need.EMBEDDING, n.value)):
        if need is Need.CLASSIFIER:
            how[need] = PARAMETERS
            continue
        if need is Need.INPUT_GRADIENT or need is Need.DISTILLATION_HEAD:
            how[need] = LIVE
            continue
        wanted = _shapes(need, spec, stages)
        size = sum(int(np.prod(shape)) for shape in wanted.values()) * samples * views * BYTES
        if total + size <= limit:
            how[need], total = CACHED, total + size
            shapes |= wanted
        else:
            how[need] = LIVE
    if LIVE in how.values():
        how = {need: PARAMETERS if h == PARAMETERS else LIVE for need, h in how.items()}
        shapes, total = {}, 0
    return Supply(how, shapes, views, total)


def _shapes(need: Need, spec: ModelSpec, stages: list[int]) -> dict[str, tuple[int, ...]]:
    if need is Need.LOGITS:
        return {"logits": (spec.classes,)}
    if need is Need.EMBEDDING:
        return {"embedding": (spec.embedding or 0,)}
    out: dict[str, tuple[int, ...]] = {}
    for k in stages:
        stage = spec.stages[k]
        positions = stage.size[0] * stage.size[1]
        shape = (stage.channels, *stage.size) if stage.kind == "map" else (positions + stage.prefix, stage.channels)
        out[f"{need.value}-{k}"] = shape
    return out


class Store:
    """Stored rows of one signal: float16 [views, samples, ...] and a flag for each row."""

    def __init__(
        self, folder: Path, name: str, shape: tuple[int, ...], views: int, samples: int, maker: dict[str, Any]
    ) -> None:
        description = {"signal": name, "shape": list(shape), "views": views, "samples": samples, "maker": maker}
        base = folder / f"{name}-{content_hash(description)}"
        meta, rows, flags = (base.with_suffix(s) for s in (".json", ".f16", ".done"))
        sizes = {rows: views * samples * int(np.prod(shape)) * BYTES, flags: views * samples}
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
        self.rows = np.memmap(rows, dtype=np.float16, mode="r+", shape=(views, samples, *shape))
        self.done = np.memmap(flags, dtype=np.uint8, mode="r+", shape=(views, samples))

    def missing(self, view: int, ids: np.ndarray) -> bool:
        return not self.done[view][ids].all()

    def read(self, view: int, ids: np.ndarray, device: torch.device) -> Tensor:
        return torch.from_numpy(self.rows[view][ids]).to(device, torch.float32)

    def write(self, view: int, ids: np.ndarray, values: Tensor) -> None:
        self.rows[view][ids] = values.detach().to("cpu", torch.float16).numpy()
        self.done[view][ids] = 1


def _intact(meta: Path, description: dict[str, Any], sizes: dict[Path, int]) -> bool:
    try:
        stored = json.loads(meta.read_text())
    except (OSError, ValueError):
        return False
    return stored == description and all(p.is_file() and p.stat().st_size == size for p, size in sizes.items())


class FixedTeacher:
    """A frozen network's signals for the views of one training: stored where planned, live where not."""

    def __init__(
        self, network: Network, spec: ModelSpec, supply: Supply, needs: frozenset[Need], stages: list[int]
    ) -> None:
        self.network, self.spec, self.supply, self.stages = network, spec, supply, stages
        self.needs = needs
        self.stores: dict[str, Store] = {}
        self.forward_seconds = 0.0

    def open(self, folder: Path, samples: int, maker: dict[str, Any]) -> None:
        """Open or make the files of the cached signals."""
        for name, shape in self.supply.shapes.items():
            self.stores[name] = Store(folder, name, shape, self.supply.views, samples, maker)

    def listen(self) -> None:
        self.network.module.eval()
        self.network.listen(self.needs, self.spec, self.stages)

    def live(self, images: Tensor, target: Tensor | None) -> Signals:
        """One frozen pass over these very images."""
        with torch.no_grad():
            return self.network(images, target).detach()

    def __call__(self, step: Step) -> Signals:
        """The signals of a step's views."""
        if self.supply.live or not self.stores:
            return self.live(step.images, step.target)
        view, ids = step.view % self.supply.views, step.ids.cpu().numpy()
        if any(store.missing(view, ids) for store in self.stores.values()):
            signals = self.live(step.images, step.target)
            for name, store in self.stores.items():
                store.write(view, ids, _field(signals, name, self.stages))
        # Read back even what was just written: every trial sees the same float16 values, the first one too.
        values = {name: store.read(view, ids, step.images.device) for name, store in self.stores.items()}
        return self._assemble(values)

    def _assemble(self, values: dict[str, Tensor]) -> Signals:
        logits = values.get("logits")
        some = next(iter(values.values()))
        return Signals(
            logits=logits if logits is not None else some.new_zeros(len(some), 0),
            features=[values[f"features-{k}"] for k in self.stages if f"features-{k}" in values],
            preact=[values[f"preact-{k}"] for k in self.stages if f"preact-{k}" in values],
            embedding=values.get("embedding"),
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
